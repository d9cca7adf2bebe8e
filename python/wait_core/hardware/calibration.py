"""Iteration-time laws fitted to what an engine measured.

Both laws are sums of nonnegative costs, so both are fitted by nonnegative least squares: of relative errors, because a
long iteration may miss by more than a short one. A table of measured means would need every combination of prefill and
decodes to occur; a sum of costs is determined by the combinations that do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core._core import WaitCoreError
from wait_core.extras import install
from wait_core.logs.step_log import FEWEST

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from wait_core.logs.step_log import Column, Steps

FORMS = ("measured", "linear")

MOST_STAIRS = 8
MOST_CANDIDATES = 256
"""Most multiples among the places where a stair may end."""
PASSES = 4
OUTLIER = 8.0
"""Iterations further off than this many standard deviations (estimated from the median deviation) are left out."""
LEAST_GAIN = 0.02
"""A further stair must lower the sum of squares by this share."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A law and how well it fits the measured iterations.

    Attributes
    ----------
    iteration_time : dict
        The law, as `simulate`, `plan` and the core's setting `iteration_time` take it.
    iterations, outliers : int
        Iterations in the log; those of them left out.
    outlier_time : float
        Share of the measured time that was left out.
    r_squared : float
        Share of the variance explained.
    median_error, p90_error : float
        Relative errors of single iterations, absolute values; of pairs, where iterations were taken together.
    total_error : float
        Relative error of the sum over all iterations, those left out included: the error of a predicted throughput.

    """

    iteration_time: dict[str, Any]
    iterations: int
    outliers: int
    outlier_time: float
    r_squared: float
    median_error: float
    p90_error: float
    total_error: float

    def summary(self) -> dict[str, Any]:
        """Return all figures by name, the law last."""
        figures = dict(vars(self))
        return figures | {"iteration_time": figures.pop("iteration_time")}


def fit(steps: Steps, form: str = "measured", stairs: Sequence[int] | None = None, *, consecutive: bool = True) -> Fit:
    """Fit a law of the given form.

    Parameters
    ----------
    steps : Steps
        What was measured.
    form : {"measured", "linear"}
        A staircase in the tokens computed, plus the costs of decodes, prefill and attention; or the paper's
        d0 + d1 x KV. The stairs are found: one is added where it lowers the error by enough.
    stairs : sequence of int, optional
        Where the stairs of a measured law end, in ascending order, if that is known; the last serves all beyond it.
    consecutive : bool
        The iterations followed one another, as in a step log: see `starts_of`.

    Raises
    ------
    WaitCoreError
        If the form is unknown, or the iterations do not determine a law.

    """
    if form not in FORMS:
        raise WaitCoreError(f"form = {form!r}: one of {', '.join(FORMS)}")
    edges = [float(steps.tokens.max())] if stairs is None else [float(end) for end in stairs]
    starts = starts_of(steps) if consecutive else np.arange(len(steps))
    seconds = np.add.reduceat(steps.seconds, starts)
    number = np.diff([*starts, len(steps)])  # of iterations that each time is the sum of
    kept = np.ones(len(seconds), bool)
    names, columns = _columns(steps, starts, form, edges)
    costs = _solve(columns, seconds, kept)[0]
    for last in (False,) * (PASSES - 1) + (True,):
        predicted = _predicted(columns, costs)
        error = (seconds - predicted) / predicted
        deviation = 1.4826 * float(np.median(np.abs(error - np.median(error))))
        kept = np.abs(error - np.median(error)) <= max(OUTLIER * deviation, 1e-9)
        if form == "measured" and stairs is None and not last:
            edges = _stairs(steps, starts, seconds, kept, 1.0 / predicted)
            names, columns = _columns(steps, starts, form, edges)
        costs, _ = _solve(columns, seconds, kept, 1.0 / predicted)
    predicted = _predicted(columns, costs)
    error = np.abs(seconds - predicted)[kept] / predicted[kept]
    variance = float(np.var(seconds[kept]))
    found = dict(zip(names, costs.tolist(), strict=True))
    return Fit(
        iteration_time=_linear(found) if form == "linear" else _measured(found, edges),
        iterations=len(steps),
        outliers=int(number[~kept].sum()),
        outlier_time=float(seconds[~kept].sum() / seconds.sum()),
        r_squared=1.0 - float(np.mean((seconds - predicted)[kept] ** 2)) / variance if variance else 1.0,
        median_error=float(np.median(error)),
        p90_error=float(np.quantile(error, 0.9)),
        total_error=float(predicted.sum() / seconds.sum()) - 1.0,
    )


def starts_of(steps: Steps) -> npt.NDArray[np.intp]:
    """Return the iterations that are not taken together with the one before: those whose time can be told apart.

    An engine that schedules one iteration ahead takes in the output of an iteration only when the next has been
    launched. Launching prefill that no CUDA graph covers takes longer than a decode iteration runs, so part of its time
    is measured as that of the decode iteration before it; together they took what was measured.
    """
    prefill = steps.prefill_tokens > 0
    paired = np.zeros(len(steps), bool)
    paired[1:] = prefill[1:] & ~prefill[:-1]
    return np.flatnonzero(~paired)


def _columns(steps: Steps, starts: npt.NDArray[np.intp], form: str, edges: Sequence[float]) -> tuple[list[str], Column]:
    """Return the names of the costs, and what each multiplies: shape (times, costs)."""
    named: dict[str, Column] = {}
    if form == "linear":
        named = {"d0": np.ones(len(steps)), "d1": steps.decode_kv + steps.prefill_kv}
        return list(named), np.add.reduceat(np.stack(list(named.values()), axis=1), starts)
    first, tokens = 1.0, steps.tokens
    for i, edge in enumerate(edges):
        on_stair = (tokens >= first) & (tokens <= edge)
        named[f"first {i}"] = on_stair.astype(np.float64)
        named[f"slope {i}"] = np.where(on_stair, tokens - first, 0.0)
        first = edge + 1
    if min(int((steps.decodes > 0).sum()), int((steps.decodes == 0).sum())) >= FEWEST:
        # The fixed cost of decodes can be separated from the stairs only where some iterations have none.
        named["decode_base_ns"] = (steps.decodes > 0).astype(np.float64)
    named |= {
        "per_decode_ns": steps.decodes,
        "per_decode_kv_ns": steps.decode_kv,
        "prefill_base_ns": (steps.prefill_tokens > 0).astype(np.float64),
        "per_prefill_token_ns": steps.prefill_tokens,
        "per_prefill_kv_ns": steps.prefill_kv,
        "per_prefill_attention_ns": steps.prefill_attention,
    }
    return list(named), np.add.reduceat(np.stack(list(named.values()), axis=1), starts)


def _stairs(
    steps: Steps, starts: npt.NDArray[np.intp], seconds: Column, kept: npt.NDArray[np.bool_], weight: Column
) -> list[float]:
    """Return where the stairs end: powers of two and multiples of 64 or more, added while they lower the error."""
    tokens = steps.tokens
    kept_tokens = tokens[np.repeat(kept, np.diff([*starts, len(steps)]))]
    most = int(tokens.max())
    spacing = 64 * math.ceil(most / (64 * MOST_CANDIDATES))
    candidates = {2**k for k in range(most.bit_length())} | set(range(spacing, most, spacing))
    edges = [float(most)]
    _, least = _solve(_columns(steps, starts, "measured", edges)[1], seconds, kept, weight)
    while len(edges) < MOST_STAIRS:
        tried: list[tuple[float, list[float]]] = []
        for edge in sorted(candidates - {int(e) for e in edges}):
            ends = sorted([*edges, float(edge)])
            on_each = np.histogram(kept_tokens, [0.5, *(e + 0.5 for e in ends)])[0]
            if on_each.min() >= FEWEST:
                tried.append((_solve(_columns(steps, starts, "measured", ends)[1], seconds, kept, weight)[1], ends))
        if not tried or min(tried)[0] > (1 - LEAST_GAIN) * least:
            break
        least, edges = min(tried)
    while len(edges) > 1:  # one that was taken early may be idle beside those taken later
        without = [sorted(set(edges) - {edge}) for edge in edges[:-1]]
        squares, fewer = min(
            (_solve(_columns(steps, starts, "measured", ends)[1], seconds, kept, weight)[1], ends) for ends in without
        )
        if least < (1 - LEAST_GAIN) * squares:
            break
        least, edges = squares, fewer
    return edges


def _solve(
    columns: Column, seconds: Column, kept: npt.NDArray[np.bool_], weight: Column | None = None
) -> tuple[Column, float]:
    """Return the nonnegative costs of least weighted squares, and the sum of squares."""
    scaled, target = columns[kept], seconds[kept]
    if weight is not None:
        scaled, target = scaled * weight[kept, None], target * weight[kept]
    length = np.sqrt((scaled**2).sum(axis=0))
    length[length == 0] = math.inf  # never seen: no cost
    scaled = scaled / length
    costs, norm = _nnls()(scaled, target)
    return costs / length, float(norm**2)


def _nnls() -> Any:
    try:
        from scipy.optimize import nnls  # noqa: PLC0415  an extra: most commands fit nothing
    except ImportError:
        raise WaitCoreError(f"a law is fitted with scipy: {install('calibrate')}") from None
    return nnls


def _predicted(columns: Column, costs: Column) -> Column:
    predicted = np.asarray(columns @ costs, np.float64)
    if not predicted.min() > 0:
        raise WaitCoreError("the iterations do not determine a law: some would take no time")
    return predicted


def _linear(costs: dict[str, float]) -> dict[str, Any]:
    if costs["d0"] <= 0:
        raise WaitCoreError("the linear law does not fit: no time is left for an iteration without KV; use measured")
    return {"law": "linear", "d0": costs["d0"], "d1": costs["d1"]}


def _measured(costs: dict[str, float], edges: Sequence[float]) -> dict[str, Any]:
    per_cost = {name: value * 1e9 for name, value in costs.items() if name.endswith("_ns")}
    # Every token is one of a decode or of a prompt: what both cost is the token's, and belongs to the stairs, from
    # which the token budget is chosen.
    shared = min(per_cost["per_decode_ns"], per_cost["per_prefill_token_ns"])
    per_cost["per_decode_ns"] -= shared
    per_cost["per_prefill_token_ns"] -= shared
    steps = []
    first = 1.0
    for i, edge in enumerate(edges):
        slope = costs[f"slope {i}"] * 1e9 + shared
        at_first = max(1.0, costs[f"first {i}"] * 1e9 + shared * first)
        steps.append({"up_to": int(edge), "base_ns": at_first - slope * first, "per_token_ns": slope})
        first = edge + 1
    return {"law": "measured", "round_to": 1, "steps": steps, "attention": per_cost}
