"""`plan_fleet`: how many GPUs, in which split, behind which router, meet an objective at a rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from wait_core import _core, hardware
from wait_core.checked import checked
from wait_core.hardware import A100, kv_cache_of
from wait_core.planning.fleet_bound import FleetBound
from wait_core.planning.fleet_plan import FleetPlan
from wait_core.planning.fleet_search import FleetSearch
from wait_core.planning.plan_report import PlannedEngine
from wait_core.planning.verdict import GROWS
from wait_core.simulation.fleet import MOST_REPLICAS, MOST_ROUTERS, MOST_THREADS, known
from wait_core.simulation.run import STALENESS_S
from wait_core.simulation.transfer import Transfer
from wait_core.simulation.trial import Engine
from wait_core.workload.traffic import Traffic

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from wait_core.planning.fleet_plan import FleetTrial
    from wait_core.workload import Dataset, Requests, Trace

ROUTERS = ("forecast", "power-of-two")
"""Routers that are tried: the default, and what serving systems have."""
SPAN_S = 120.0
"""Requests arrive over so long at least, and over `STAYS` times as long as an output takes within the objective."""
STAYS = 4.0
FEWEST_DRAWN, MOST_DRAWN = 1_000, 100_000
"""Requests of a run, whatever the time in which they arrive."""
TPOT_S = 0.05
"""A time per output token, s, where the objective has none: only for how long the runs are."""


@checked
def plan_fleet(
    *,
    types: Sequence[tuple[int, int, float]] | None = None,
    dataset_name: str | Dataset | None = None,
    dataset_path: Trace | str | os.PathLike[str] | None = None,
    requests: Requests | None = None,
    request_rate: float | None = None,
    num_prompts: int | None = None,
    seed: int = 0,
    runs: int = 3,
    slo_ttft_ms: float | None = None,
    slo_tpot_ms: float | None = None,
    attainment: float = 0.95,
    replicas: int | None = None,
    routers: Sequence[str] = ROUTERS,
    num_routers: int = 1,
    session_affinity: bool = False,
    disaggregated: bool = True,
    transfer: Transfer | None = None,
    policy: str = "adaptive",
    iteration_time: str | Mapping[str, Any] = A100,
    gpus_each: int = 1,
    staleness_s: float = STALENESS_S,
    settings: Mapping[str, Any] | None = None,
    threads: int | None = None,
    progress: Callable[[FleetTrial], object] | None = None,
) -> FleetPlan:
    """Search for the smallest fleet that meets an objective, by simulation from the fluid bound upwards.

    For each router a fleet whose replicas do all, and one whose prefill and decode are apart. No fleet is smaller than
    what the goodput bound of the linear program allows: the search begins there, in steps that double, and halves the
    last of them. Of pools that are apart, the prefill replicas are the fewest with which the first tokens are in time,
    or one or a few more if that saves more decode replicas.

    Parameters
    ----------
    types, dataset_name, dataset_path, requests, request_rate
        What arrives at all replicas together, as in `wait_core.plan`.
    num_prompts : int, optional
        Requests of a run. By default those of two minutes, of longer where outputs take long; a trace is simulated as
        it is.
    seed, runs : int
        First seed of a dataset or of types, and how many of them are simulated.
    slo_ttft_ms, slo_tpot_ms : float, optional
        The objective, ms: at least one.
    attainment : float
        Share of the requests that must meet it, in (0, 1].
    replicas : int, optional
        Exactly this many: which split and which router is the best?
    routers : sequence of str
        Kinds of router that are tried, one kind for all replicas.
    num_routers : int
        Routers of that kind side by side, as `routers` of `wait_core.simulate`. With several, the fleets that are found
        are also simulated behind one.
    session_affinity : bool
        Whether all turns of a conversation come to one of them, as in `wait_core.simulate`.
    disaggregated : bool
        Whether pools for prefill and decode are tried too.
    transfer : Transfer, optional
        How KV goes from one to the other (default: `Transfer.of` the law).
    policy, iteration_time
        One replica, as in `wait_core.simulate`.
    gpus_each : int
        GPUs of a replica: tensor parallelism is in the law.
    staleness_s : float
        How old what the router knows of a replica is at most, s.
    settings : mapping, optional
        Settings of the core, the same on each replica: kv_blocks, max_num_seqs, prefix_caching, ...
    threads : int, optional
        Threads of all simulations together, by default as many as there are cores. The plan does not depend on them.
    progress : callable, optional
        Is called with each fleet that has been simulated.

    Raises
    ------
    WaitCoreError
        A value is refused, or no number of replicas meets the objective; the message says what the best would reach.

    """
    if slo_ttft_ms is None and slo_tpot_ms is None:
        raise _core.WaitCoreError("slo_ttft_ms and slo_tpot_ms are missing: which objective is a fleet planned for?")
    for name, ms in (("slo_ttft_ms", slo_ttft_ms), ("slo_tpot_ms", slo_tpot_ms)):
        if ms is not None and not (math.isfinite(ms) and ms > 0):
            raise _core.WaitCoreError(f"{name} = {ms}: must be finite and above 0 ms")
    if not 0 < attainment <= 1:
        raise _core.WaitCoreError(f"attainment = {attainment}: must be above 0 and at most 1")
    for name, number, limit in (
        ("runs", runs, 1000), ("gpus_each", gpus_each, 1024), ("replicas", replicas, MOST_REPLICAS),
        ("num_prompts", num_prompts, 1 << 32), ("num_routers", num_routers, MOST_ROUTERS),
        ("threads", threads, MOST_THREADS),
    ):  # fmt: skip
        if number is not None and not 1 <= number <= limit:
            raise _core.WaitCoreError(f"{name} = {number}: must be between 1 and {limit}")
    if not routers:
        raise _core.WaitCoreError("routers: none is given")
    law = hardware.iteration_time(iteration_time)
    core: dict[str, Any] = {"block_size": 16, "max_num_seqs": 256, "token_budget": 2048, **(settings or {})}
    core |= kv_cache_of(law, core)
    caches = bool(core.get("prefix_caching"))
    if disaggregated and transfer is None:
        transfer = Transfer.of(law, block_size=core["block_size"])
    traffic = Traffic.of(
        types=types, dataset_name=dataset_name, dataset_path=dataset_path, requests=requests, rate=request_rate,
        count=_count(num_prompts, types, dataset_name, request_rate, slo_tpot_ms), seed=seed, runs=runs, num_types=8,
    )  # fmt: skip
    kept = {name: core[name] for name in ("kv_blocks", "block_size", "max_num_seqs", "token_budget")}
    groups = {"kv_groups": core["kv_groups"]} if core.get("kv_groups") else {}
    engine = Engine(policy=policy, iteration_time=law, num_types=8, settings=groups, **kept)
    around = {"staleness_s": staleness_s, "session_affinity": session_affinity}
    search = FleetSearch(
        traffic=traffic,
        bound=None if caches else FleetBound(traffic.exact, engine, slo_ttft_ms, slo_tpot_ms),
        slo=(slo_ttft_ms, slo_tpot_ms),
        attainment=attainment,
        simulation={"policy": policy, "iteration_time": law, "seed": seed} | around | core,
        transfer=transfer if disaggregated else None,
        gpus_each=gpus_each,
        num_routers=num_routers,
        threads=threads,
        progress=progress,
    )
    with search:
        fluid = search.fluid()
        found = [
            best
            for router in dict.fromkeys(map(known, routers))
            for best in (search.smallest(router, fluid) if replicas is None else search.of(router, replicas, fluid))
        ]
        one_router = tuple(map(search.behind_one_router, found)) if num_routers > 1 else ()
    best = min((each for each in found if each.meets), key=_rank, default=None)
    played = search.played
    span_s = float(played[0].arrival_ns[-1] - played[0].arrival_ns[0]) * 1e-9
    within = FleetPlan(
        workload=traffic.name,
        request_rate=traffic.rate,
        engine=PlannedEngine.of(engine, max(prompt + output for prompt, output, _ in traffic.exact)),
        gpus_each=gpus_each,
        slo_ttft_ms=slo_ttft_ms,
        slo_tpot_ms=slo_tpot_ms,
        attainment=attainment,
        fluid=None if caches else fluid,
        trials=tuple(sorted(search.trials.values(), key=lambda each: (each.gpus, each.prefill, each.router))),
        found=tuple(found),
        num_routers=num_routers,
        session_affinity=session_affinity,
        one_router=one_router,
        recommended=best,
        transfer=search.transfer,
        num_prompts=len(played[0]),
        runs=len(played),
        simulated=(len(search.trials) + len(one_router)) * sum(map(len, played)),
        span_s=span_s,
        warnings=_warnings(best, attainment, span_s),
        dropped=dict(traffic.dropped),
        notes=traffic.notes,
    )
    if best is None and replicas is None:
        most = max(found, key=lambda each: each.goodput)
        raise _core.WaitCoreError(
            f"goodput {within.objective}: none of the fleets up to {max(each.gpus for each in within.trials):,} GPUs"
            f" meets it for {attainment:.4g} of the requests; the best reached is {most.goodput:.4g}, with"
            f" {most.gpus:,} GPUs, {most.split}, {most.router}"
        )
    return within


def _rank(trial: FleetTrial) -> tuple[float, ...]:
    return trial.gpus, -trial.goodput, trial.p99_ttft_s


def _warnings(best: FleetTrial | None, attainment: float, span_s: float) -> tuple[str, ...]:
    found = []
    if span_s < SPAN_S / 2:
        found.append(f"the requests of a run arrive in {span_s:.3g} s: a fleet that is overloaded may not show it")
    if best is not None and best.growth > GROWS:
        found.append(
            f"queues have not settled: the TTFT is {best.growth:.2g} times as long in the second half of the requests"
            " as in the first"
        )
    if best is not None and best.least_goodput < attainment:
        found.append(f"not in every run is the objective met: the least is {best.least_goodput:.4g} of the requests")
    return tuple(found)


def _count(
    given: int | None,
    types: Sequence[tuple[int, int, float]] | None,
    dataset: str | Dataset | None,
    rate: float | None,
    slo_tpot_ms: float | None,
) -> int | None:
    """How many requests make a run of a dataset or of types."""
    if given is not None or (types is None and dataset is None):
        return given
    per_second = rate if rate is not None else sum(each for *_, each in types or ())
    few = Traffic.of(
        types=types, dataset_name=dataset, dataset_path=None, requests=None, rate=rate, count=FEWEST_DRAWN, seed=0,
        runs=1, num_types=1,
    )  # fmt: skip
    mean = sum(output * each for _, output, each in few.exact) / few.rate
    span = max(SPAN_S, STAYS * mean * (TPOT_S if slo_tpot_ms is None else 1e-3 * slo_tpot_ms))
    return int(min(max(per_second * span, FEWEST_DRAWN), MOST_DRAWN))
