"""Thresholds that a plan proposes: WAIT's by type, Nested WAIT's by segment, and the safety buffer beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wait_core import _core
    from wait_core.simulation.trial import SaturatedRate


@dataclass(frozen=True, kw_only=True)
class Violation:
    """An inequality that fails; as text, a sentence.

    Attributes
    ----------
    condition : str
        The inequality.
    left, right, excess : float
        Its sides, and by how much it fails.
    remedy : str
        What would make it hold.

    """

    condition: str
    left: float
    right: float
    excess: float
    remedy: str

    def __str__(self) -> str:
        left, right, excess = (f"{number:,.6g}" for number in (self.left, self.right, self.excess))
        return f"{self.condition} fails: {left} against {right}, off by {excess}; {self.remedy}"

    @classmethod
    def all_of(cls, found: Sequence[Mapping[str, Any]]) -> tuple[Violation, ...]:
        """Return those that the core found."""
        return tuple(cls(**each) for each in found)


@dataclass(frozen=True, kw_only=True)
class Delays:
    """Mean delays of a request type, s: to the first token, per output token, to completion; infinite if unstable."""

    ttft_s: float
    tpot_s: float
    e2el_s: float


@dataclass(frozen=True, kw_only=True)
class Caps:
    """Thresholds as caps of a work-conserving engine: those that serve the most.

    Attributes
    ----------
    per_type : tuple of float
        n, for each request type.
    iteration_s, kv_tokens : float
        Time of an iteration (s) and KV tokens in use, with all caps reached.
    residents : int
        Most requests that the caps admit.
    saturated : SaturatedRate
        What a WAIT engine with these caps serves in overload.

    """

    per_type: tuple[float, ...]
    iteration_s: float
    kv_tokens: float
    residents: int
    saturated: SaturatedRate


@dataclass(frozen=True, kw_only=True)
class WaitThresholds:
    """WAIT's thresholds with the least mean latency, gated as in the paper.

    Attributes
    ----------
    per_type : tuple of float
        n, for each request type.
    iteration_s, kv_tokens : float
        Time of an iteration (s) and M^pi, the KV tokens in use.
    slack : float
        Share of the time between admissions that iterations leave; negative where they take longer.
    paced : bool
        Whether some n is not an integer, so that admissions are paced by credit.
    delays : tuple of Delays
        For each request type.
    violations : tuple of Violation
        What fails of the paper's conditions; empty if the thresholds are feasible.
    caps : Caps
        The thresholds for a work-conserving engine.

    """

    per_type: tuple[float, ...]
    iteration_s: float
    kv_tokens: float
    slack: float
    paced: bool
    delays: tuple[Delays, ...]
    violations: tuple[Violation, ...]
    caps: Caps

    @classmethod
    def of(cls, planner: _core.Planner, caps: Caps) -> WaitThresholds:
        """Return the thresholds of a workload."""
        found = planner.thresholds()
        delays = (Delays(ttft_s=each["ttft"], tpot_s=each["tpot"], e2el_s=each["latency"]) for each in found["delays"])
        return cls(
            per_type=tuple(found["per_type"]),
            iteration_s=found["iteration_time"],
            kv_tokens=found["memory"],
            slack=found["slack"],
            paced=found["paced"],
            delays=tuple(delays),
            violations=Violation.all_of(found["violations"]),
            caps=caps,
        )


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A range of output stages of Nested WAIT, of all lengths that occur.

    Attributes
    ----------
    first_stage, last_stage : int
        The range, in output tokens.
    rate : float
        Requests/s that reach it.
    survival : float
        p: share of the requests of the segment before that reach it; 1 for the first.
    prompt, prompt_variance, longest_prompt : float
        Mean, variance and maximum of their prompts, tokens.

    """

    first_stage: int
    last_stage: int
    rate: float
    survival: float
    prompt: float
    prompt_variance: float
    longest_prompt: float


@dataclass(frozen=True, kw_only=True)
class NestedThresholds:
    """Nested WAIT's thresholds with the least mean latency.

    Attributes
    ----------
    per_segment : tuple of float
        n, for each segment; empty where no chain of thresholds is feasible.
    iteration_s, kv_tokens, e2el_s : float
        Time of an iteration (s), M^pi, the KV tokens in use without the buffer, and the mean latency (s); NaN where no
        chain is feasible.
    protected : bool
        Whether an overflow is proved to be as rare as asked for, in whole KV blocks
        (rust/core/src/fluid/safety_buffer.rs).
    unprotected : tuple of Violation
        The inequalities in the way of that proof.
    violations : tuple of Violation
        Why no chain is feasible.
    unstable : str or None
        Why not, where no thresholds could make the workload stable.

    """

    per_segment: tuple[float, ...]
    iteration_s: float
    kv_tokens: float
    e2el_s: float
    protected: bool
    unprotected: tuple[Violation, ...]
    violations: tuple[Violation, ...]
    unstable: str | None

    @property
    def feasible(self) -> bool:
        """Whether the thresholds meet the paper's conditions without the buffer."""
        return bool(self.per_segment) and not self.violations

    @classmethod
    def of(
        cls,
        planner: _core.Planner,
        boundaries: Sequence[int],
        *,
        margin: float,
        failure_probability: float,
        horizon_s: float,
        block_size: int,
    ) -> NestedThresholds:
        """Return the thresholds of a workload: protected if that is possible, else without the buffer."""
        protected = planner.nested(
            boundaries,
            margin=margin,
            failure_probability=failure_probability,
            horizon=horizon_s,
            block_size=block_size,
        )
        chosen = protected if protected["feasible"] else planner.nested(boundaries, margin=margin)
        return cls(
            per_segment=tuple(chosen["per_segment"] or ()),
            iteration_s=chosen.get("iteration_time", math.nan),
            kv_tokens=chosen.get("memory", math.nan),
            e2el_s=chosen.get("latency", math.nan),
            protected=protected["feasible"],
            unprotected=Violation.all_of(protected["violations"]),
            violations=Violation.all_of(chosen["violations"]),
            unstable=chosen.get("unstable"),
        )


@dataclass(frozen=True, kw_only=True)
class SafetyBuffer:
    """Memory kept free for the queues at segment boundaries: what a protection needs, and what the memory left gives.

    Attributes
    ----------
    failure_probability, horizon_s : float
        The protection asked for: how rarely memory may overflow, and within which time (s).
    tokens : float
        KV tokens that it needs above those of the thresholds.
    queue_bounds, theta : tuple of float
        For the queue before each segment but the first: requests that it may hold, and its exponent.
    tokens_left : float
        KV tokens that the thresholds leave.
    failure_probability_left, horizon_left_s : float
        The probability that these keep over `horizon_s`, and the time over which they keep `failure_probability`.

    """

    failure_probability: float
    horizon_s: float
    tokens: float
    queue_bounds: tuple[float, ...]
    theta: tuple[float, ...]
    tokens_left: float
    failure_probability_left: float
    horizon_left_s: float

    @classmethod
    def of(
        cls,
        planner: _core.Planner,
        boundaries: Sequence[int],
        nested: NestedThresholds,
        *,
        failure_probability: float,
        horizon_s: float,
        kv_blocks: int,
        block_size: int,
    ) -> SafetyBuffer | None:
        """Return the buffer of feasible thresholds, or None where there are none."""
        if not nested.feasible:
            return None
        buffer = planner.safety_buffer(nested.per_segment, boundaries, block_size=block_size)
        left = max(0.0, kv_blocks * block_size - nested.kv_tokens)
        return cls(
            failure_probability=failure_probability,
            horizon_s=horizon_s,
            tokens=buffer.tokens(failure_probability, horizon_s),
            queue_bounds=tuple(buffer.queue_bounds(failure_probability, horizon_s)),
            theta=tuple(buffer.theta),
            tokens_left=left,
            # The bounds are about thresholds that are not paced and whose plan fits seats and budget.
            failure_probability_left=buffer.failure_probability(left, horizon_s) if nested.protected else 1.0,
            horizon_left_s=buffer.horizon(left, failure_probability) if nested.protected else 0.0,
        )
