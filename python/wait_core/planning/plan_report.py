"""The results of a plan, and how they are written out."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wait_core.planning.rates import CapacityBound, FluidEquilibrium, FluidLimit, Goodput
    from wait_core.planning.thresholds import NestedThresholds, SafetyBuffer, Segment, WaitThresholds
    from wait_core.simulation.trial import Engine, Expected, SaturatedRate


@dataclass(frozen=True, kw_only=True)
class PlannedEngine:
    """The engine that a plan is for.

    Attributes
    ----------
    policy : str
        What admits.
    kv_blocks, block_size, max_num_seqs, token_budget : int
        KV blocks, tokens per block, most residents, most tokens per iteration.
    capacity : int
        KV tokens that the blocks hold of the longest requests.
    iteration_time : dict
        The iteration-time law.

    """

    policy: str
    kv_blocks: int
    block_size: int
    capacity: int
    max_num_seqs: int
    token_budget: int
    iteration_time: Mapping[str, Any]

    @classmethod
    def of(cls, engine: Engine, longest: int) -> Self:
        """Describe an engine for requests of at most `longest` tokens, prompt and output."""
        same = {each.name: getattr(engine, each.name) for each in fields(cls) if each.name != "capacity"}
        return cls(capacity=engine.capacity(longest), **same)


@dataclass(frozen=True, kw_only=True)
class PlannedGpus:
    """GPUs for a target rate.

    Attributes
    ----------
    target_rate, rate_each : float
        Requests/s, of all and of each.
    number : int
        How many it takes.
    utilisation : float
        Share of the saturated rate that each has.
    expected : Expected
        What requests experience on each.

    """

    target_rate: float
    number: int
    rate_each: float
    utilisation: float
    expected: Expected


@dataclass(frozen=True, kw_only=True)
class StabilityRegion:
    """How the largest rates depend on memory.

    Attributes
    ----------
    capacity : tuple of float
        KV tokens, rising; that of the engine is among them.
    fluid, engine, bound : tuple of float
        Requests/s at each: `fluid_limit`, `engine_limit` and `bound` of the plan.

    """

    capacity: tuple[float, ...]
    fluid: tuple[float, ...]
    engine: tuple[float, ...]
    bound: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """The results of `plan`. Names give units: _s seconds, _ms milliseconds, tokens KV tokens; rates are per second.

    Attributes
    ----------
    workload : str
        What arrives.
    request_rate : float
        How much of it, requests/s.
    types : tuple of (prompt, output, rate)
        The request types that the thresholds are for.
    engine : PlannedEngine
        What serves it.
    stable : bool
        Whether the engine keeps up: the rate is below that of `engine_limit`.
    reasons : tuple of str
        Why not: each inequality that fails, by how much, and what would make it hold.
    warnings : tuple of str
        Where the figures below are less certain than they look.
    load : float
        x, the share of the GPU's time that the workload needs at the most efficient batch size.
    fluid : FluidEquilibrium or None
        The fluid equilibrium; None where x >= 1.
    fluid_limit : FluidLimit
        The largest rate of a constant composition: the fluid model.
    engine_limit : SaturatedRate
        The largest rate of this engine: what it serves in overload.
    bound : CapacityBound
        The linear program's largest rate, which no schedule exceeds.
    goodput : Goodput or None
        For an objective: the largest goodput of any scheduler.
    expected : Expected
        What requests experience, simulated with the engine. Where the engine does not keep up, delays grow with
        `num_prompts`.
    wait : WaitThresholds
        WAIT's thresholds, gated and as caps.
    segments : tuple of Segment
        Segments of Nested WAIT, one per output length of the types.
    nested_wait : NestedThresholds
        Nested WAIT's thresholds.
    buffer : SafetyBuffer or None
        The safety buffer of these; None where there are no feasible thresholds.
    gpus : PlannedGpus or None
        For a target rate: the number of GPUs.
    region : StabilityRegion or None
        The stability region, if it was asked for.
    dropped : dict of str to int
        Rows of a trace that were left out, by reason.
    notes : tuple of str
        What was assumed of a trace, or ignored in it.

    """

    workload: str
    request_rate: float
    types: tuple[tuple[int, int, float], ...]
    engine: PlannedEngine
    stable: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    load: float
    fluid: FluidEquilibrium | None
    fluid_limit: FluidLimit
    engine_limit: SaturatedRate
    bound: CapacityBound
    goodput: Goodput | None
    expected: Expected
    wait: WaitThresholds
    segments: tuple[Segment, ...]
    nested_wait: NestedThresholds
    buffer: SafetyBuffer | None
    gpus: PlannedGpus | None
    region: StabilityRegion | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; what is infinite or NaN becomes None."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain

    def to_json(self) -> str:
        """Return `to_dict` as one line of JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)


def finite(value: Any) -> Any:
    """Return plain values in which None stands for what is infinite or NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
