"""A recorded trace at its own times and at scaled rates: where FCFS breaks, and what thresholds do there.

The trace is the Azure conversation trace of 2023 (Vidur csv) unless --dataset-path names another; it is not part of
this repository. Types for `wait` and `nested-wait` are eight classes of output length at its quantiles, each with the
mean lengths and the rate of its members; thresholds are below one there, so admission is paced.
"""

from __future__ import annotations

import sys
from pathlib import Path

from contract import TRACES, start

from wait_core import simulate
from wait_core.workload import replayed

POLICIES = ("vllm", "wait", "nested-wait", "clairvoyant", "adaptive")
RATES = (3.0, 4.0, 4.5, 5.0, 5.53, 7.0)
DEFAULT = TRACES / "azure_conv_2023.csv"


def main() -> None:
    """Print the table."""
    bench = start(
        "trace",
        str(__doc__),
        dataset_path={"type": Path, "default": DEFAULT, "help": "the trace (%(default)s)"},
        policies={"nargs": "+", "default": list(POLICIES), "help": "(%(default)s)"},
    )
    path = bench.options.dataset_path
    if not path.is_file():
        sys.exit(f"{path}: no such trace; --dataset-path names one")
    head = 4_000 if bench.options.quick else None
    for rate in RATES:
        requests = replayed(path, request_rate=rate, num_prompts=head)
        for policy in bench.options.policies:
            summary = simulate(policy, requests=requests).summary(slo_ttft_ms=2_000.0, slo_tpot_ms=100.0)
            if summary["completed"] != len(requests):
                raise RuntimeError(f"{policy} at {rate}/s completed {summary['completed']} of {len(requests)}")
            bench.rows.append(
                {
                    "requests/s": f"{rate:g}",
                    "policy": policy,
                    "output tok/s": summary["output_throughput"],
                    "mean E2E s": summary["mean_e2el_ms"] / 1e3,
                    "mean TTFT s": summary["mean_ttft_ms"] / 1e3,
                    "p99 TTFT s": summary["p99_ttft_ms"] / 1e3,
                    "mean TPOT ms": summary["mean_tpot_ms"],
                    "preemptions": summary["preemptions"],
                    "recomputed": summary["recomputed_tokens"],
                    "goodput": summary["goodput"],
                }
            )
            bench.claim(f"requests finished, {policy}, {rate:g}/s", summary["completed"] / len(requests), "", ">= 1")
    bench.finish()


if __name__ == "__main__":
    main()
