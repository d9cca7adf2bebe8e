"""Prefill and decode apart or together: the smallest fleet of each kind that meets an objective, by simulation.

Chat at 40 requests/s on A100s, nine in ten requests within an objective: a tight one, which a prompt computed between
two tokens is enough to miss, and a loose one. `forecast` routes in all pools; the bound beside each is that of the
linear program. `--markdown` prints the table of docs/fleet.md, `--data` writes it to docs/data/pools.csv.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from contract import start

from wait_core import plan_fleet

if TYPE_CHECKING:
    from wait_core import FleetPlan


class Objective(NamedTuple):
    """Bounds for nine in ten requests, ms."""

    ttft_ms: float
    tpot_ms: float

    def __str__(self) -> str:
        """Return it as the command line has it."""
        return f"ttft:{self.ttft_ms:g} tpot:{self.tpot_ms:g}"


TIGHT, LOOSE = Objective(300, 22), Objective(2000, 100)
RATE, ATTAINMENT, ROUTER = 40.0, 0.9, "forecast"
REQUESTS = 2500
"""Of a run: a minute of traffic."""


def planned(objective: Objective, count: int) -> FleetPlan:
    """Search for the smallest fleets that meet an objective."""
    return plan_fleet(
        dataset_name="chat",
        request_rate=RATE,
        num_prompts=count,
        slo_ttft_ms=objective.ttft_ms,
        slo_tpot_ms=objective.tpot_ms,
        attainment=ATTAINMENT,
        routers=[ROUTER],
    )


def main() -> None:
    """Plan for both objectives."""
    bench = start("pools", __doc__ or "")
    count = 500 if bench.options.quick else REQUESTS
    # The core runs without Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        plans = list(threads.map(lambda objective: planned(objective, count), (TIGHT, LOOSE)))
    for objective, plan in zip((TIGHT, LOOSE), plans, strict=True):
        gpus = {}
        for trial in plan.found:
            kind = "apart" if trial.prefill else "together"
            gpus[kind] = trial.gpus
            bench.claim(f"{objective}: {kind}, in time", trial.goodput, "share", f">= {ATTAINMENT}")
            bench.rows.append(
                {
                    "objective, ms": str(objective),
                    "GPUs": trial.gpus,
                    "split": trial.split,
                    "in time": f"{trial.goodput:.2%}",
                    "fluid bound": f"{trial.goodput_bound or 0.0:.2%}",
                    "p99 TTFT, ms": f"{1e3 * trial.p99_ttft_s:.0f}",
                    "mean TPOT, ms": f"{1e3 * trial.tpot_s:.1f}",
                    "p99 TPOT, ms": f"{1e3 * trial.p99_tpot_s:.1f}",
                }
            )
        bench.claim(f"{objective}: GPUs, apart / together", gpus["apart"] / gpus["together"], "ratio")
    bench.finish()


if __name__ == "__main__":
    main()
