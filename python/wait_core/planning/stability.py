"""The stability region: how the largest rate of a mix moves with the memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wait_core import _core
from wait_core.simulation.trial import Engine, saturated
from wait_core.workload import sampled
from wait_core.workload.traffic import poisson

if TYPE_CHECKING:
    from wait_core.planning.plan_report import PlanReport


def stability_region(report: PlanReport, points: int = 48) -> dict[str, list[float]]:
    """Largest rates of the report's mix against the memory: how the stability region ends.

    Returns columns: capacity (KV tokens), fluid, engine, bound (requests/s), as in `PlanReport`.
    """
    engine = report.engine
    own, block = engine["capacity"], engine["block_size"]
    longest = max(prompt + output for prompt, output, _ in report.types)
    grid = np.unique(np.linspace(max(2 * longest, own / 20), 2.0 * own, points).astype(int))
    played = [sampled(poisson(report.workload, report.types), request_rate=report.rate, num_prompts=4000)]
    columns: dict[str, list[float]] = {"capacity": [], "fluid": [], "engine": [], "bound": []}
    for capacity in grid:
        planner = _core.Planner(
            report.types, engine["iteration_time"], capacity=int(capacity), max_running=engine["max_num_seqs"],
            token_budget=engine["token_budget"],
        )  # fmt: skip
        smaller = Engine(
            policy=engine["policy"], law=engine["iteration_time"], kv_blocks=int(capacity) // block, block_size=block,
            max_num_seqs=engine["max_num_seqs"], token_budget=engine["token_budget"], num_types=len(report.types),
            settings={},
        )  # fmt: skip
        columns["capacity"].append(float(capacity))
        columns["fluid"].append(planner.largest_stable_rate()["requests"])
        columns["bound"].append(planner.capacity_bound()["requests"])
        columns["engine"].append(saturated(smaller, played, columns["bound"][-1])["requests"])
    return columns
