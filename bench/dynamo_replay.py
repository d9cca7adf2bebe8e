"""Replays Mooncake traces with the offline mocker of `ai-dynamo-runtime`, for bench/simulator.py --against.

Runs in that package's own environment, which is why it imports nothing else. For each path on standard input it prints
one JSON object: the seconds of processor and wall time of the whole call, and of a call that only reads the trace.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

# The engine of bench/simulator.py: 7,424 blocks of 16 tokens, max_num_seqs 256, 2,048 tokens an iteration.
ENGINE = {
    "backend": "vllm",
    "num_gpu_blocks": 7424,
    "block_size": 16,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 2048,
    "enable_prefix_caching": False,
}


def replay(core: Any, path: str, max_sim_time_ms: float | None) -> dict[str, Any]:
    """Replay one trace; returns what it cost and how many requests it completed."""
    settings = core._normalize_mocker_config({"engine": ENGINE})  # noqa: SLF001 - its own launcher calls it
    wall, cpu = time.perf_counter(), time.process_time()
    # Its traces name prefix blocks of 512 tokens.
    done = core.run_mocker_trace_replay([path], settings, trace_block_size=512, max_sim_time_ms=max_sim_time_ms)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    figures = {name: done.summary.get(name) for name in ("completed_requests", "committed_prefill_tokens")}
    return {"wall_s": wall, "cpu_s": cpu, **figures}


def main() -> None:
    """Answer one line with one line."""
    core = importlib.import_module("dynamo._core")
    for line in sys.stdin:
        path = line.strip()
        whole, read = replay(core, path, None), replay(core, path, 1e-3)
        print(json.dumps(whole | {"read_cpu_s": read["cpu_s"]}), flush=True)


if __name__ == "__main__":
    main()
