"""What a plan says, and how it is written out."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wait_core.workload.traffic import Types


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
        (`wait_core.simulation.trial.saturated`), and the linear program's, which no schedule exceeds.
    goodput : dict or None
        For an objective: the linear program's largest goodput (share of the requests offered, and requests/s).
    expected : dict
        What the requests experience, played through the engine (`wait_core.simulation.trial.expected`): means, the
        least and the most over the runs, of the first `num_prompts` requests. Where the engine does not keep up they
        grow with that number.
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
    region : dict or None
        The stability region: capacity (KV tokens, rising) against the largest rates fluid, engine and bound
        (requests/s), those above among them; None unless it was asked for.
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
    region: dict[str, list[float]] | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; what is infinite becomes None."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain

    def to_json(self) -> str:
        """Return `to_dict` as one line of JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
