"""`plan`: whether traffic is stable on a GPU, with which thresholds and buffer, how fast, and on how many GPUs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core import _core, laws
from wait_core.laws import A100, kv_blocks_of
from wait_core.requests import sampled
from wait_core.traffic import Traffic, Types, poisson
from wait_core.trial import Engine, expected, saturated

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from wait_core.datasets import Dataset
    from wait_core.requests import Requests
    from wait_core.traces import Trace

GROWS = 1.5
"""Latency has not settled if it grows by more than this from one half of a run to the other."""


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
        policy, kv_blocks, block_size, capacity (tokens), max_num_seqs, token_budget, iteration_time.
    stable : bool
        Whether the engine keeps up: the rate is below that of `engine_limit`.
    reasons : list of str
        Why not: each inequality that fails, by how much, and what would make it hold.
    warnings : list of str
        Where the figures below promise more than they can keep.
    load : float
        x, the share of the GPU's time that the workload needs at the most efficient batch size.
    fluid : dict or None
        The fluid equilibrium; None where x >= 1.
    fluid_limit, engine_limit, bound : dict
        Three largest rates: of a constant composition (the fluid model), of the engine in overload
        (`wait_core.trial.saturated`), and the linear program's, which no schedule exceeds.
    goodput : dict or None
        For an objective: the linear program's largest goodput (share of the requests offered, and requests/s).
    expected : dict
        What the requests experience, played through the engine (`wait_core.trial.expected`): means, the least and the
        most over the runs, of the first `num_prompts` requests. Where the engine does not keep up they grow with that
        number.
    wait : dict
        WAIT's thresholds with the least latency, with slack, delays, and what fails of their conditions; `caps`: those
        that serve the most, for a work-conserving WAIT.
    segments : list of dict
        Segments of Nested WAIT, one per output length of the types, of all lengths that there are: with the mean, the
        variance and the maximum of their prompts.
    nested_wait : dict
        Its thresholds, and what fails; `protected`: whether they keep an overflow as rare as asked for, in KV blocks
        (proved in rust/core/src/safety/buffer.rs). Where not, `unprotected` lists the inequalities in the way.
    buffer : dict or None
        The safety buffer: what (failure_probability, horizon) needs, and what the memory that is left gives.
    gpus : dict or None
        For a target rate: their number, and what to expect on each, as in `expected`.
    dropped : dict of str to int
        Rows of a trace that were left out, by reason.
    notes : tuple of str
        What was assumed of a trace, or ignored in it.

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
    goodput: dict[str, Any] | None
    expected: dict[str, Any]
    wait: dict[str, Any]
    segments: list[dict[str, Any]]
    nested_wait: dict[str, Any]
    buffer: dict[str, Any] | None
    gpus: dict[str, Any] | None
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

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
    runs: int = 20,
    policy: str = "clairvoyant",
    iteration_time: str | Mapping[str, Any] = A100,
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
    slo_ttft_ms: float | None = None,
    slo_tpot_ms: float | None = None,
) -> PlanReport:
    """Plan one workload on one GPU: stability, thresholds, buffer, expected delays, number of GPUs.

    Parameters
    ----------
    types, dataset_name, dataset_path, requests
        What arrives, exactly one of them: (prompt, output, rate) of each type, a named dataset, a trace, `Requests`.
    request_rate : float, optional
        Requests/s; needed for a dataset, scales the others.
    num_prompts : int, optional
        Requests that are played, and that stand for the length distribution (types, dataset: 4000; trace: all of it).
    seed, runs : int
        First seed of a dataset or of types, and how many of them are played. A trace is played as it is.
    policy : str
        The engine's policy; the default admits first come first served and never evicts, because it knows the lengths.
    iteration_time : str or mapping
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
    slo_ttft_ms, slo_tpot_ms : float, optional
        An objective, ms: how much goodput can any schedule reach at this rate?

    Returns
    -------
    PlanReport

    Raises
    ------
    WaitCoreError
        A value is refused; the message names it.

    """
    law = laws.iteration_time(iteration_time)
    if not 0 < utilisation < 1:
        raise _core.WaitCoreError(f"utilisation = {utilisation}: must be above 0 and below 1")
    if target_rate is not None and not (math.isfinite(target_rate) and target_rate > 0):
        raise _core.WaitCoreError(f"target_rate = {target_rate}: must be finite and above 0")
    least = {"block_size": block_size, "kv_blocks": kv_blocks, "num_types": num_types, "num_prompts": num_prompts}
    for name, number in (least | {"runs": runs}).items():
        if number is not None and number < 1:
            raise _core.WaitCoreError(f"{name} = {number}: must be at least 1")
    blocks = kv_blocks_of(law, block_size) if kv_blocks is None else kv_blocks
    workload = Traffic.of(
        types=types, dataset_name=dataset_name, dataset_path=dataset_path, requests=requests, rate=request_rate,
        count=num_prompts, seed=seed, runs=runs, num_types=num_types,
    )  # fmt: skip

    def planner(of: Types) -> _core.Planner:
        return _core.Planner(of, law, capacity=blocks * block_size, max_running=max_num_seqs, token_budget=token_budget)

    exact, classes = planner(workload.exact), planner(workload.grouped)
    engine = Engine(policy=policy, law=law, kv_blocks=blocks, block_size=block_size, max_num_seqs=max_num_seqs,
                    token_budget=token_budget, num_types=num_types, settings={})  # fmt: skip
    played = workload.draw(workload.rate)
    bound = exact.capacity_bound()
    limit, experience = saturated(engine, played, bound["requests"]), expected(engine, played)
    wait = classes.thresholds()
    wait["caps"] = _caps(classes, engine, workload, played, bound["requests"])
    nested, buffer = _nested(
        exact, workload.boundaries, engine, margin=margin, delta=failure_probability, horizon_s=horizon_s
    )
    stable = workload.rate < limit["requests"]
    return PlanReport(
        workload=workload.name,
        rate=workload.rate,
        types=workload.grouped,
        engine={
            "policy": policy,
            "kv_blocks": blocks,
            "block_size": block_size,
            "capacity": blocks * block_size,
            "max_num_seqs": max_num_seqs,
            "token_budget": token_budget,
            "iteration_time": law,
        },
        stable=stable,
        reasons=[] if stable else _reasons(workload.rate, limit, wait),
        warnings=_warnings(workload, limit, experience),
        load=exact.load,
        fluid=exact.equilibrium(),
        fluid_limit=exact.largest_stable_rate(),
        engine_limit=limit,
        bound=bound,
        goodput=None if slo_ttft_ms is None and slo_tpot_ms is None else _goodput(exact, slo_ttft_ms, slo_tpot_ms),
        expected=experience,
        wait=wait,
        segments=exact.segments(workload.boundaries),
        nested_wait=nested,
        buffer=buffer,
        gpus=None if target_rate is None else _gpus(engine, workload, limit, target_rate, utilisation),
        dropped=dict(workload.dropped),
        notes=workload.notes,
    )


def goodput_bound(
    requests: Requests,
    slo_ttft_ms: float | None = None,
    slo_tpot_ms: float | None = None,
    *,
    iteration_time: str | Mapping[str, Any] = A100,
    kv_blocks: int | None = None,
    block_size: int = 16,
    max_num_seqs: int = 256,
    token_budget: int = 2048,
) -> float:
    """Return the share of these requests, at their rate, that no scheduler exceeds within an objective (ms).

    The linear program of `Planner.goodput_bound` over every pair of lengths; the other arguments are those of `plan`.
    """
    law = laws.iteration_time(iteration_time)
    blocks = kv_blocks_of(law, block_size) if kv_blocks is None else kv_blocks
    planner = _core.Planner(
        requests.types(len(requests))[0], law, capacity=blocks * block_size, max_running=max_num_seqs,
        token_budget=token_budget,
    )  # fmt: skip
    return float(_goodput(planner, slo_ttft_ms, slo_tpot_ms)["goodput"])


def _goodput(planner: _core.Planner, slo_ttft_ms: float | None, slo_tpot_ms: float | None) -> dict[str, Any]:
    ttft, tpot = (None if ms is None else 1e-3 * ms for ms in (slo_ttft_ms, slo_tpot_ms))
    found = planner.goodput_bound(slo_ttft=ttft, slo_tpot=tpot)
    return {key: found[key] for key in ("goodput", "requests")} | {
        "slo_ttft_ms": slo_ttft_ms,
        "slo_tpot_ms": slo_tpot_ms,
    }


def _caps(
    classes: _core.Planner, engine: Engine, workload: Traffic, played: list[Requests], bound: float
) -> dict[str, Any]:
    caps = classes.thresholds(block_size=engine.block_size)
    # Residents that the caps allow: whole requests of each type over its stages.
    residents = sum(math.ceil(n * output) for n, (_, output, _) in zip(caps["per_type"], workload.grouped, strict=True))
    capped = replace(engine, policy="wait", settings={"thresholds": caps["per_type"]})
    keys = ("per_type", "iteration_time", "memory")
    return {key: caps[key] for key in keys} | {"residents": residents, "saturated": saturated(capped, played, bound)}


def _nested(
    planner: _core.Planner, boundaries: list[int], engine: Engine, *, margin: float, delta: float, horizon_s: float
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    block = engine.block_size
    protected = planner.nested(
        boundaries, margin=margin, failure_probability=delta, horizon=horizon_s, block_size=block
    )  # fmt: skip
    chosen = protected if protected["feasible"] else planner.nested(boundaries, margin=margin)
    chosen["protected"] = protected["feasible"]
    chosen["unprotected"] = protected["violations"]
    if not chosen["feasible"]:
        return chosen, None
    buffer = planner.safety_buffer(chosen["per_segment"], boundaries, block_size=block)
    left = max(0.0, engine.kv_blocks * block - chosen["memory"])
    return chosen, {
        "failure_probability": delta,
        "horizon": horizon_s,
        "tokens": buffer.tokens(delta, horizon_s),
        "queue_bounds": buffer.queue_bounds(delta, horizon_s),
        "theta": buffer.theta,
        "tokens_left": left,
        # The bounds are about thresholds that are not paced and whose plan fits seats and budget.
        "failure_probability_left": buffer.failure_probability(left, horizon_s) if chosen["protected"] else 1.0,
        "horizon_left": buffer.horizon(left, delta) if chosen["protected"] else 0.0,
    }


def _reasons(rate: float, limit: dict[str, Any], wait: dict[str, Any]) -> list[str]:
    what = {"memory": "memory", "max-running": "max_num_seqs", "token-budget": "the token budget"}
    most = limit["requests"]
    first = (
        f"rate < saturated rate fails: {rate:.4g}/s against {most:.4g}/s, off by {rate - most:.4g}/s"
        f" ({what[limit['binding']]} binds); holds at {most / rate:.4f} times the rate or less"
    )
    return [first, *(explain(violation) for violation in wait["violations"])]


def explain(violation: Mapping[str, Any]) -> str:
    """One inequality that fails, in a sentence."""
    left, right, excess = (f"{violation[key]:,.6g}" for key in ("left", "right", "excess"))
    return f"{violation['condition']} fails: {left} against {right}, off by {excess}; {violation['remedy']}"


def _warnings(workload: Traffic, limit: dict[str, Any], experience: dict[str, Any]) -> list[str]:
    found = []
    share = workload.rate / limit["requests"]
    if 0.9 < share < 1:
        found.append(
            f"at {share:.0%} of the saturated rate: queues settle slowly, and delays differ from run to run and grow"
            " with the number of requests"
        )
    if experience["growth"] > GROWS:
        found.append(
            f"latency has not settled: it is {experience['growth']:.2g} times as long in the second half of the"
            f" {experience['num_prompts']:,} requests as in the first"
        )
    if workload.dispersion is not None and workload.dispersion > 3:
        found.append(
            f"arrivals are {workload.dispersion:.1f} times as variable as a Poisson stream: what is expected holds for"
            " bursts like these"
        )
    return found


def _gpus(
    engine: Engine, workload: Traffic, limit: dict[str, Any], target: float, utilisation: float
) -> dict[str, Any]:
    number = math.ceil(target / (utilisation * limit["requests"]) * (1 - 1e-12))
    return {
        "target_rate": target,
        "number": number,
        "rate_each": target / number,
        "utilisation": target / number / limit["requests"],
        "expected": expected(engine, workload.draw(target / number)),
    }


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


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
