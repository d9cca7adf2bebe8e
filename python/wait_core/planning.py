"""`plan`: whether traffic is stable on a GPU, with which thresholds and buffer, how fast, and on how many GPUs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core import _core
from wait_core.laws import A100, iteration_time, kv_blocks_of
from wait_core.requests import Requests, offered

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from wait_core.datasets import Dataset
    from wait_core.traces import Trace

Types = list[tuple[int, int, float]]


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """What `plan` found. Times are in seconds, rates in requests per second, memory in KV tokens.

    Attributes
    ----------
    workload : str
        What arrives.
    rate : float
        How much of it.
    types : list of (prompt, output, rate)
        The request types that the thresholds are for.
    engine : dict
        kv_blocks, block_size, capacity (tokens), max_num_seqs, token_budget, iteration_time.
    stable : bool
        Whether an engine that admits first come first served and never evicts keeps up.
    reasons : list of str
        Why not: each inequality that fails, by how much, and what would make it hold.
    warnings : list of str
        Where the figures below promise more than they can keep.
    load : float
        x, the share of the GPU's time that the workload needs at the most efficient batch size.
    fluid : dict or None
        The fluid equilibrium; None where x >= 1.
    fluid_limit, engine_limit, bound : dict
        Three largest rates: of a constant composition (the fluid model), of the saturated engine, and the linear
        program's, which no schedule exceeds.
    expected : dict or None
        Mean TTFT, TPOT, latency, memory of that engine; None where it does not keep up.
    wait : dict
        WAIT's thresholds with the least latency, with slack, delays, and what fails of their conditions; `caps`: those
        that serve the most, for a work-conserving WAIT.
    segments : list of dict
        Segments of Nested WAIT, one per output length of the types.
    nested_wait : dict
        Its thresholds, and what fails.
    buffer : dict or None
        The safety buffer: what (failure_probability, horizon) needs, and what the memory that is left gives.
    gpus : dict or None
        For a target rate: their number, and what to expect on each.

    """

    workload: str
    rate: float
    types: Types
    engine: dict[str, Any]
    stable: bool
    reasons: list[str]
    warnings: list[str]
    load: float
    fluid: dict[str, Any] | None
    fluid_limit: dict[str, Any]
    engine_limit: dict[str, Any]
    bound: dict[str, Any]
    expected: dict[str, Any] | None
    wait: dict[str, Any]
    segments: list[dict[str, Any]]
    nested_wait: dict[str, Any]
    buffer: dict[str, Any] | None
    gpus: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; what is infinite becomes None."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain

    def to_json(self) -> str:
        """Return `to_dict` as one line of JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)


def plan(
    *,
    types: Sequence[tuple[int, int, float]] | None = None,
    dataset_name: str | Dataset | None = None,
    dataset_path: Trace | str | os.PathLike[str] | None = None,
    requests: Requests | None = None,
    request_rate: float | None = None,
    num_prompts: int | None = None,
    seed: int = 0,
    iteration_time_law: str | Mapping[str, Any] = A100,
    kv_blocks: int | None = None,
    block_size: int = 16,
    max_num_seqs: int = 256,
    token_budget: int = 2048,
    num_types: int = 8,
    margin: float = 0.05,
    failure_probability: float = 0.05,
    horizon_s: float = 3600.0,
    target_rate: float | None = None,
    utilisation: float = 0.8,
) -> PlanReport:
    """Plan one workload on one GPU: stability, thresholds, buffer, expected delays, number of GPUs.

    Parameters
    ----------
    types, dataset_name, dataset_path, requests
        What arrives, exactly one of them: (prompt, output, rate) of each type, a named dataset, a trace, `Requests`.
    request_rate : float, optional
        Requests/s; needed for a dataset, scales the others.
    num_prompts : int, optional
        Requests that stand for the length distribution (dataset: 4000; trace: all of it).
    seed : int
        Seed of a dataset's lengths.
    iteration_time_law : str or mapping
        How long an iteration takes, see `wait_core.laws.iteration_time`.
    kv_blocks, block_size, max_num_seqs, token_budget
        The engine: KV blocks (default: what goes with the law), tokens per block, most residents, tokens per iteration.
    num_types : int
        Most types for thresholds, by quantiles of the output length.
    margin : float
        By how much Nested WAIT's ratios exceed the shares that go on (the paper's eta).
    failure_probability, horizon_s : float
        How rarely memory may overflow (delta), and within which time (s): the safety buffer's arguments.
    target_rate : float, optional
        Requests/s for all GPUs together: how many are needed?
    utilisation : float
        Share of the saturated rate that a GPU is planned for, in (0, 1).

    Returns
    -------
    PlanReport

    Raises
    ------
    WaitCoreError
        A value is refused; the message names it.

    """
    law = iteration_time(iteration_time_law)
    if not 0 < utilisation < 1:
        raise _core.WaitCoreError(f"utilisation = {utilisation}: must be above 0 and below 1")
    if target_rate is not None and not (math.isfinite(target_rate) and target_rate > 0):
        raise _core.WaitCoreError(f"target_rate = {target_rate}: must be finite and above 0")
    if block_size < 1:
        raise _core.WaitCoreError(f"block_size = {block_size}: must be at least 1")
    blocks = kv_blocks_of(law, block_size) if kv_blocks is None else kv_blocks
    if blocks < 1:
        raise _core.WaitCoreError(f"kv_blocks = {blocks}: must be at least 1")
    workload = _workload(types, dataset_name, dataset_path, requests, request_rate, num_prompts, seed, num_types)

    def planner(of: Types, running: int = max_num_seqs) -> _core.Planner:
        return _core.Planner(of, law, capacity=blocks * block_size, max_running=running, token_budget=token_budget)

    exact = planner(workload.exact)
    state = exact.steady_state(block_size)
    wait = _wait(planner, workload.grouped, block_size)
    classes = planner(workload.grouped)
    nested, buffer = _nested(classes, margin, failure_probability, horizon_s, blocks * block_size)
    stable = state["expected"] is not None
    return PlanReport(
        workload=workload.name,
        rate=workload.rate,
        types=workload.grouped,
        engine={
            "kv_blocks": blocks,
            "block_size": block_size,
            "capacity": blocks * block_size,
            "max_num_seqs": max_num_seqs,
            "token_budget": token_budget,
            "iteration_time": law,
        },
        stable=stable,
        reasons=[] if stable else _reasons(workload.rate, state["saturated"], wait),
        warnings=_warnings(workload, state),
        load=exact.load,
        fluid=exact.equilibrium(),
        fluid_limit=exact.largest_stable_rate(),
        engine_limit=state["saturated"],
        bound=exact.capacity_bound(),
        expected=state["expected"],
        wait=wait,
        segments=classes.segments(),
        nested_wait=nested,
        buffer=buffer,
        gpus=None if target_rate is None else _gpus(planner, workload, state, block_size, target_rate, utilisation),
    )


@dataclass(frozen=True)
class _Workload:
    name: str
    exact: Types
    grouped: Types
    dispersion: float | None

    @property
    def rate(self) -> float:
        return sum(rate for _, _, rate in self.exact)

    def at(self, rate: float) -> Types:
        return [(prompt, output, each * rate / self.rate) for prompt, output, each in self.exact]


def _workload(  # noqa: PLR0917 - one keyword of `plan` each
    types: Sequence[tuple[int, int, float]] | None,
    dataset_name: str | Dataset | None,
    dataset_path: Trace | str | os.PathLike[str] | None,
    requests: Requests | None,
    request_rate: float | None,
    num_prompts: int | None,
    seed: int,
    num_types: int,
) -> _Workload:
    if num_types < 1:
        raise _core.WaitCoreError(f"num_types = {num_types}: must be at least 1")
    if types is not None:
        if dataset_name is not None or dataset_path is not None or requests is not None:
            raise _core.WaitCoreError("types are given: leave out dataset_name, dataset_path and requests")
        total = sum(rate for _, _, rate in types)
        scale = 1.0 if request_rate is None or not total > 0 else request_rate / total
        exact = [(prompt, output, rate * scale) for prompt, output, rate in types]
        name = " + ".join(f"p{prompt}d{output}" for prompt, output, _ in exact)
        return _Workload(name, exact, exact, None)
    if dataset_name is not None and num_prompts is None:
        num_prompts = 4000
    found = offered(dataset_name, dataset_path, requests, request_rate, num_prompts, seed, 1.0)
    if requests is not None and request_rate is not None:
        found = replace(requests, rate=request_rate)
    if not np.isfinite(found.rate):
        raise _core.WaitCoreError("request_rate = inf: a plan needs a finite rate")
    exact, _ = found.types(len(found))
    grouped, _ = found.types(num_types)
    return _Workload(found.name, exact, grouped, _dispersion(found))


def _dispersion(requests: Requests, windows: int = 100) -> float:
    """Variance over mean of the arrivals per window: 1 for a Poisson stream, more for bursts."""
    at = requests.arrival_ns.astype(np.float64)
    if len(at) < 2 * windows or at[-1] <= at[0]:
        return 1.0
    counts, _ = np.histogram(at, bins=windows)
    return float(counts.var(ddof=1) / counts.mean())


def _wait(planner: Any, grouped: Types, block_size: int) -> dict[str, Any]:
    planned = planner(grouped)
    thresholds: dict[str, Any] = planned.thresholds()
    caps = planned.thresholds(block_size=block_size)
    # Residents that the caps allow: whole requests of each type over its stages.
    residents = sum(math.ceil(n * output) for n, (_, output, _) in zip(caps["per_type"], grouped, strict=True))
    limited = planner(grouped, max(1, residents)).steady_state(block_size)
    keys = ("per_type", "iteration_time", "memory")
    thresholds["caps"] = {key: caps[key] for key in keys} | {
        "residents": residents,
        "saturated": limited["saturated"],
        "expected": limited["expected"],
    }
    return thresholds


def _nested(
    planner: _core.Planner, margin: float, delta: float, horizon_s: float, capacity: int
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    protected = planner.nested(margin=margin, failure_probability=delta, horizon=horizon_s)
    chosen = protected if protected["feasible"] else planner.nested(margin=margin)
    chosen["protected"] = protected["feasible"]
    if not chosen["feasible"]:
        return chosen, None
    buffer = planner.safety_buffer(chosen["per_segment"])
    left = max(0.0, capacity - chosen["memory"])
    return chosen, {
        "failure_probability": delta,
        "horizon": horizon_s,
        "tokens": buffer.tokens(delta, horizon_s),
        "queue_bounds": buffer.queue_bounds(delta, horizon_s),
        "theta": buffer.theta,
        "tokens_left": left,
        "failure_probability_left": buffer.failure_probability(left, horizon_s),
        "horizon_left": buffer.horizon(left, delta),
    }


def _reasons(rate: float, saturated: dict[str, Any], wait: dict[str, Any]) -> list[str]:
    what = {"memory": "memory", "max-running": "max_num_seqs", "token-budget": "the token budget"}
    limit = saturated["requests"]
    first = (
        f"rate < saturated rate fails: {rate:.4g}/s against {limit:.4g}/s, off by {rate - limit:.4g}/s"
        f" ({what.get(saturated['binding'], 'compute')} binds); holds at {limit / rate:.4f} times the rate or less"
    )
    return [first, *(explain(violation) for violation in wait["violations"])]


def explain(violation: Mapping[str, Any]) -> str:
    """One inequality that fails, in a sentence."""
    left, right, excess = (f"{violation[key]:,.6g}" for key in ("left", "right", "excess"))
    return f"{violation['condition']} fails: {left} against {right}, off by {excess}; {violation['remedy']}"


def _warnings(workload: _Workload, state: dict[str, Any]) -> list[str]:
    found = []
    share = workload.rate / state["saturated"]["requests"]
    if 0.9 < share < 1:
        found.append(
            f"at {share:.0%} of the saturated rate: queues settle slowly and delays may be several times as long"
        )
    if workload.dispersion is not None and workload.dispersion > 3:
        found.append(
            f"arrivals are {workload.dispersion:.1f} times as variable as a Poisson stream: expect longer delays"
        )
    return found


def _gpus(  # noqa: PLR0917 - called once
    planner: Any, workload: _Workload, state: dict[str, Any], block_size: int, target: float, utilisation: float
) -> dict[str, Any]:
    number = math.ceil(target / (utilisation * state["saturated"]["requests"]) * (1 - 1e-12))
    each = planner(workload.at(target / number)).steady_state(block_size)
    return {
        "target_rate": target,
        "number": number,
        "rate_each": target / number,
        "utilisation": target / number / state["saturated"]["requests"],
        "expected": each["expected"],
    }


def stability_region(report: PlanReport, points: int = 48) -> dict[str, list[float]]:
    """Largest rates of the report's mix against the memory: how the stability region ends.

    Returns columns: capacity (KV tokens), fluid, engine, bound (requests/s), as in `PlanReport`.
    """
    engine = report.engine
    own = engine["capacity"]
    longest = max(prompt + output for prompt, output, _ in report.types)
    grid = np.unique(np.linspace(max(2 * longest, own / 20), 2.0 * own, points).astype(int))
    columns: dict[str, list[float]] = {"capacity": [], "fluid": [], "engine": [], "bound": []}
    for capacity in grid:
        planner = _core.Planner(
            report.types,
            engine["iteration_time"],
            capacity=int(capacity),
            max_running=engine["max_num_seqs"],
            token_budget=engine["token_budget"],
        )
        columns["capacity"].append(float(capacity))
        columns["fluid"].append(planner.largest_stable_rate()["requests"])
        columns["engine"].append(planner.saturated(engine["block_size"])["requests"])
        columns["bound"].append(planner.capacity_bound()["requests"])
    return columns


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
