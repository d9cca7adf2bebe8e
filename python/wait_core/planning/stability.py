"""The stability region: how the largest rate of a mix depends on memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from wait_core import _core
from wait_core.planning.plan_report import StabilityRegion
from wait_core.simulation.trial import saturated

if TYPE_CHECKING:
    from wait_core.simulation.trial import Engine
    from wait_core.workload import Requests
    from wait_core.workload.traffic import Types


def stability_region(
    types: Types, typical: Requests, engine: Engine, own: dict[str, float], points: int
) -> StabilityRegion:
    """Return the largest rates of a mix against the memory, from a twentieth of the engine's to twice it.

    Parameters
    ----------
    types : list of (prompt, output, rate)
        The mix.
    typical : Requests
        A run of it that the saturated engine serves at each capacity but its own; there it carries what is typical of
        all runs, so that the curve passes through the plan's rate.
    engine : Engine
        What serves them.
    own : dict
        fluid, engine, bound (requests/s) at the engine's own capacity: taken from the plan, so that both agree.
    points : int
        Number of other capacities.

    """
    longest = max(prompt + output for prompt, output, _ in types)
    capacity = engine.capacity(longest)
    tokens = np.linspace(max(2 * longest, capacity / 20), 2.0 * capacity, points).astype(int)
    blocks = np.unique(tokens * engine.kv_blocks // capacity)
    rows = [(float(capacity), own["fluid"], own["engine"], own["bound"])]
    for number in map(int, blocks[(blocks != engine.kv_blocks) & (blocks > 0)]):
        other = replace(engine, kv_blocks=number)
        planner = _core.Planner(
            types, engine.iteration_time, capacity=other.capacity(longest), max_running=engine.max_num_seqs,
            token_budget=engine.token_budget,
        )  # fmt: skip
        bound = planner.capacity_bound()["requests"]
        carried = saturated(other, [typical], bound).request_rate
        rows.append((float(other.capacity(longest)), planner.largest_stable_rate()["requests"], carried, bound))
    capacities, fluid, carried_by_engine, bounds = zip(*sorted(rows), strict=True)
    return StabilityRegion(capacity=capacities, fluid=fluid, engine=carried_by_engine, bound=bounds)
