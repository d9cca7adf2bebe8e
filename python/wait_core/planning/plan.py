"""`plan`: whether traffic is stable on a GPU, with which thresholds and buffer, how fast, and on how many GPUs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wait_core import _core, hardware
from wait_core.checked import checked
from wait_core.hardware import A100, kv_cache_of
from wait_core.planning.plan_report import PlannedEngine, PlannedGpus, PlanReport
from wait_core.planning.rates import CapacityBound, FluidEquilibrium, FluidLimit, Goodput
from wait_core.planning.stability import stability_region
from wait_core.planning.thresholds import Caps, NestedThresholds, SafetyBuffer, Segment, WaitThresholds
from wait_core.planning.verdict import reasons, warnings
from wait_core.simulation.trial import Engine, expected, saturated
from wait_core.workload.traffic import Traffic, Types

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from wait_core.settings.types import KvGroup
    from wait_core.simulation.trial import SaturatedRate
    from wait_core.workload import Dataset, Requests, Trace

MOST_RUNS = 10_000
"""Seeds that are simulated."""


@checked
def plan(
    *,
    types: Sequence[tuple[int, int, float]] | None = None,
    dataset_name: str | Dataset | None = None,
    dataset_path: Trace | str | os.PathLike[str] | None = None,
    requests: Requests | None = None,
    request_rate: float | None = None,
    num_prompts: int | None = None,
    seed: int = 0,
    runs: int = 20,
    policy: str = "adaptive",
    iteration_time: str | Mapping[str, Any] = A100,
    kv_blocks: int | None = None,
    kv_groups: Sequence[KvGroup] = (),
    block_size: int = 16,
    max_num_seqs: int = 256,
    token_budget: int = 2048,
    num_types: int = 8,
    settings: Mapping[str, Any] | None = None,
    margin: float = 0.05,
    failure_probability: float = 0.05,
    horizon_s: float = 3600.0,
    target_rate: float | None = None,
    utilisation: float = 0.8,
    slo_ttft_ms: float | None = None,
    slo_tpot_ms: float | None = None,
    region: int = 0,
) -> PlanReport:
    """Plan one workload on one GPU: stability, thresholds, buffer, expected delays, number of GPUs.

    Parameters
    ----------
    types, dataset_name, dataset_path, requests
        What arrives, exactly one of them: (prompt, output, rate) of each type, a named dataset, a trace, `Requests`.
    request_rate : float, optional
        Requests/s; needed for a dataset, scales the others.
    num_prompts : int, optional
        Requests that are simulated, and that represent the length distribution (types, dataset: 4000; trace: all of
        it).
    seed, runs : int
        First seed of a dataset or of types, and how many of them are simulated. A trace is simulated as it is.
    policy : str
        The engine's policy. "clairvoyant" knows the lengths: it admits first come, first served, and never preempts.
    iteration_time : str or mapping
        How long an iteration takes, see `wait_core.hardware.iteration_time.iteration_time`.
    kv_blocks, kv_groups, block_size, max_num_seqs, token_budget
        The engine: KV blocks and the groups that take them (default: what goes with the law), tokens per block, most
        residents, tokens per iteration. With groups, formulas count the capacity in tokens of the longest requests.
    num_types : int
        Most types for thresholds, by quantiles of the output length.
    settings : mapping, optional
        Further settings of the core, as `wait_core.simulate` has them: for what is simulated, not for the formulas.
    margin : float
        By how much Nested WAIT's ratios exceed the shares that continue (the paper's eta).
    failure_probability, horizon_s : float
        Allowed probability of a memory overflow (delta) within this time (s): the safety buffer's arguments.
    target_rate : float, optional
        Requests/s for all GPUs together: how many are needed?
    utilisation : float
        Share of the saturated rate that a GPU is planned for, in (0, 1).
    slo_ttft_ms, slo_tpot_ms : float, optional
        An objective, ms: how much goodput can any schedule reach at this rate?
    region : int
        Number of other capacities at which the largest rates are computed: the stability region, for a picture.

    Returns
    -------
    PlanReport

    Raises
    ------
    WaitCoreError
        A value is refused; the message names it.

    """
    law = hardware.iteration_time(iteration_time)
    if not 0 < utilisation < 1:
        raise _core.WaitCoreError(f"utilisation = {utilisation}: must be above 0 and below 1")
    if target_rate is not None and not (math.isfinite(target_rate) and target_rate > 0):
        raise _core.WaitCoreError(f"target_rate = {target_rate}: must be finite and above 0")
    least = {"block_size": block_size, "kv_blocks": kv_blocks, "num_types": num_types, "num_prompts": num_prompts}
    least |= {"runs": runs, "max_num_seqs": max_num_seqs, "token_budget": token_budget}
    for name, number in least.items():
        if number is not None and number < 1:
            raise _core.WaitCoreError(f"{name} = {number}: must be at least 1")
    if runs > MOST_RUNS:
        raise _core.WaitCoreError(f"runs = {runs}: must be at most {MOST_RUNS:,}")
    further = dict(settings or {})
    if own := sorted({"policy", "iteration_time", "kv_groups", *least} & further.keys()):
        raise _core.WaitCoreError(f"settings: {own[0]} has an argument of its own")
    cache: dict[str, Any] = {"kv_groups": list(kv_groups)} if kv_groups else {}
    if kv_blocks is not None:
        cache["kv_blocks"] = kv_blocks
    cache |= kv_cache_of(law, cache | {"block_size": block_size})
    blocks = cache.pop("kv_blocks")
    workload = Traffic.of(
        types=types, dataset_name=dataset_name, dataset_path=dataset_path, requests=requests, rate=request_rate,
        count=num_prompts, seed=seed, runs=runs, num_types=num_types,
    )  # fmt: skip
    engine = Engine(policy=policy, iteration_time=law, kv_blocks=blocks, block_size=block_size,
                    max_num_seqs=max_num_seqs, token_budget=token_budget, num_types=num_types,
                    settings=cache | further)  # fmt: skip
    longest = max(prompt + output for prompt, output, _ in workload.exact)
    capacity = engine.capacity(longest)
    shortest = min(prompt for prompt, _, _ in workload.exact)
    if capacity < shortest:
        rule = f"{capacity:,} KV tokens do not hold the shortest prompt ({shortest:,})"
        raise _core.WaitCoreError(f"kv_blocks = {blocks}: {rule}")

    def planner(of: Types) -> _core.Planner:
        return _core.Planner(of, law, capacity=capacity, max_running=max_num_seqs, token_budget=token_budget)

    exact, classes = planner(workload.exact), planner(workload.grouped)
    played = workload.draw(workload.rate)
    bound = CapacityBound.of(exact)
    limit, experience = saturated(engine, played, bound.request_rate), expected(engine, played)
    wait = WaitThresholds.of(classes, _caps(classes, engine, workload, played, bound.request_rate))
    protection = {"failure_probability": failure_probability, "horizon_s": horizon_s}
    nested = NestedThresholds.of(exact, workload.boundaries, margin=margin, block_size=block_size, **protection)
    stable = workload.rate < limit.request_rate
    fluid_limit = FluidLimit.of(exact)
    rates = {"fluid": fluid_limit.request_rate, "engine": limit.request_rate, "bound": bound.request_rate}
    return PlanReport(
        workload=workload.name,
        request_rate=workload.rate,
        types=tuple(workload.grouped),
        engine=PlannedEngine.of(engine, longest),
        stable=stable,
        reasons=() if stable else reasons(workload.rate, limit, wait),
        warnings=warnings(workload, limit, experience),
        load=exact.load,
        fluid=FluidEquilibrium.of(exact),
        fluid_limit=fluid_limit,
        engine_limit=limit,
        bound=bound,
        goodput=None if slo_ttft_ms is None and slo_tpot_ms is None else Goodput.of(exact, slo_ttft_ms, slo_tpot_ms),
        expected=experience,
        wait=wait,
        segments=tuple(Segment(**each) for each in exact.segments(workload.boundaries)),
        nested_wait=nested,
        buffer=SafetyBuffer.of(
            exact, workload.boundaries, nested, kv_blocks=blocks, block_size=block_size, **protection
        ),
        gpus=None if target_rate is None else _gpus(engine, workload, limit, target_rate, utilisation),
        region=None
        if region == 0
        else stability_region(workload.exact, played[limit.typical_run], engine, rates, region),
        dropped=dict(workload.dropped),
        notes=workload.notes,
    )


def _caps(classes: _core.Planner, engine: Engine, workload: Traffic, played: list[Requests], bound: float) -> Caps:
    found = classes.thresholds(block_size=engine.block_size)
    # Residents that the caps allow: whole requests of each type over its stages.
    residents = sum(
        math.ceil(n * output) for n, (_, output, _) in zip(found["per_type"], workload.grouped, strict=True)
    )
    capped = replace(engine, policy="wait", settings={**engine.settings, "thresholds": found["per_type"]})
    return Caps(
        per_type=tuple(found["per_type"]),
        iteration_s=found["iteration_time"],
        kv_tokens=found["memory"],
        residents=residents,
        saturated=saturated(capped, played, bound),
    )


def _gpus(engine: Engine, workload: Traffic, limit: SaturatedRate, target: float, utilisation: float) -> PlannedGpus:
    number = math.ceil(target / (utilisation * limit.request_rate) * (1 - 1e-12))
    return PlannedGpus(
        target_rate=target,
        number=number,
        rate_each=target / number,
        utilisation=target / number / limit.request_rate,
        expected=expected(engine, workload.draw(target / number)),
    )
