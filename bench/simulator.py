"""Speed of the simulator: simulated token-steps per second, on one core."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from contract import start

from wait_core import simulate
from wait_core.requests import sampled

if TYPE_CHECKING:
    from wait_core.requests import Requests

KV_BLOCKS = 7424
# 1.2 times what the A100 law carries (p512d1000: 2.3 requests/s; lmsys: about 77).
WORKLOADS = {"p512d1000": 2.76, "lmsys": 92.0}


def measure(policy: str, requests: Requests, rounds: int) -> tuple[float, float, float]:
    """Median token-steps/s, iterations/s and seconds of several runs."""
    steps, iterations, seconds = [], [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        summary = simulate(policy, requests=requests, kv_blocks=KV_BLOCKS).summary()
        elapsed = time.perf_counter() - begin
        if summary["completed"] != len(requests):
            raise RuntimeError(f"{policy} completed {summary['completed']} of {len(requests)} requests")
        steps.append((summary["decode_tokens"] + summary["prefill_tokens"]) / elapsed)
        iterations.append(summary["iterations"] / elapsed)
        seconds.append(elapsed)
    return statistics.median(steps), statistics.median(iterations), statistics.median(seconds)


def main() -> None:
    """Print the table."""
    bench = start("simulator", str(__doc__))
    n, rounds = (4_000, 3) if bench.options.quick else (40_000, 5)
    for workload, rate in WORKLOADS.items():
        requests = sampled(workload, request_rate=rate, num_prompts=n, seed=1)
        for policy in ("vllm", "wait"):
            steps, iterations, seconds = measure(policy, requests, rounds)
            bench.rows.append(
                {
                    "workload": workload,
                    "policy": policy,
                    "requests": n,
                    "M token-steps/s": steps / 1e6,
                    "M iterations/s": iterations / 1e6,
                    "seconds": seconds,
                }
            )
            bench.claim(f"token-steps/s, {policy}, {workload}", steps / 1e6, "M/s", ">= 100")
    if not bench.options.quick:
        million = sampled("lmsys", request_rate=92.0, num_prompts=1_000_000, seed=1)
        _, _, seconds = measure("vllm", million, 1)
        bench.claim("a million requests, vllm, lmsys", seconds, "s", "<= 30")
    bench.finish()


if __name__ == "__main__":
    main()
