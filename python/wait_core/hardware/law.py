"""The iteration-time law of a deployment: a grid of queries to the package, and the measured form fitted to it.

The grid has three regions, each drawn log-uniformly from its range with a fixed seed: decodes alone, prefill alone
(whole prompts, or one chunk after what is computed already), and both together. No query holds more KV than fits. A
third of each region is held out: the errors that a law states are those of queries that it was not fitted to.

The ends of the stairs are found first, from dense queries of the kernels that depend on the number of tokens alone: the
fewest pieces that fit them to `TOLERANCE`, by dynamic programming. Then all costs are fitted together, as
`calibration` fits them to the iterations of a live engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core._core import iteration_seconds
from wait_core.hardware import calibration
from wait_core.hardware.deployment import Region
from wait_core.logs.step_log import Steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from wait_core.hardware.package import Kernels

    Column = npt.NDArray[np.float64]

SEED = 20
QUERIES = 900
"""In each of the three regions."""
HELD_OUT = 3
"""One query in this many."""
MOST_STAIRS = 16
TOLERANCE = 0.01
"""Relative error (root mean square) at which a staircase has pieces enough."""
FEWEST_POINTS = 3
"""Fewest token counts that support a stair."""
SOURCES = {"silicon": "measured", "empirical": "estimated", "mixed": "partly measured"}
"""What the package's labels of a kernel's time mean."""
LEAST_GAIN = 0.03
"""A further stair must lower the sum of squares by this share."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """One iteration: `decodes` that read `context` tokens each, and `prompts` chunks of `tokens` after `before`."""

    decodes: int = 0
    context: int = 0
    prompts: int = 0
    tokens: int = 0
    before: int = 0

    @property
    def shape(self) -> dict[str, Any]:
        """The arguments of `wait_core._core.iteration_seconds`."""
        return {
            "decodes": self.decodes,
            "decode_kv": self.decodes * self.context,
            "chunks": [(self.tokens, self.before)] * self.prompts,
        }

    @property
    def region(self) -> str:
        """The region under which the errors of this query are counted."""
        if self.prompts == 0:
            return "decodes alone, up to 32" if self.decodes <= 32 else "decodes alone, more"
        if self.decodes == 0:
            return "prefill alone"
        return "mixed, up to 512 prompt tokens" if self.prompts * self.tokens <= 512 else "mixed, more"


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A law, its errors by region on held-out queries, and the shares of time by source."""

    iteration_time: dict[str, Any]
    accuracy: tuple[Region, ...]
    sources: dict[str, float]


def grid(*, kv_tokens: int, seats: int, budget: int, longest: int) -> list[Query]:
    """Draw the queries: no more residents, tokens, context and KV than the deployment can have."""
    random = np.random.default_rng(SEED)

    def draw(low: int, high: int) -> int:
        """Draw a whole number, log-uniformly."""
        return int(np.exp(random.uniform(np.log(low), np.log(max(high, low) + 1))))

    def decodes(most: int, kv: int) -> dict[str, int]:
        count = min(draw(1, most), most)
        most_context = max(1, min(longest, kv // count))
        return {"decodes": count, "context": min(draw(min(32, most_context), most_context), most_context)}

    def chunks(most: int) -> dict[str, int]:
        total = min(draw(1, most), most)
        if random.random() < 0.5:
            return {"prompts": 1, "tokens": total, "before": max(0, min(draw(1, longest), longest - total) - 1)}
        tokens = min(draw(min(16, total), total), total)
        return {"prompts": max(1, total // tokens), "tokens": tokens, "before": 0}

    longest = min(longest, kv_tokens)
    alone = [Query(**decodes(seats, kv_tokens)) for _ in range(QUERIES)]
    prefill = [Query(**chunks(min(budget, longest))) for _ in range(QUERIES)]
    mixed = []
    for _ in range(QUERIES):
        running = decodes(min(seats, budget - 1), kv_tokens)
        mixed.append(Query(**running, **chunks(min(budget - running["decodes"], longest))))
    return alone + prefill + mixed


def seconds(kernels: Kernels, query: Query, sources: dict[str, float]) -> float:
    """Query the time of one iteration, s; adds to the time by source."""
    prefill = query.prompts * query.tokens
    if prefill == 0:
        rows = kernels.decodes(query.decodes, query.context)
    else:
        rows = kernels.tokens(prefill, query.decodes)
        rows += kernels.prefill_attention(query.prompts, query.tokens, query.before)
        if query.decodes:
            rows += kernels.decode_attention(query.decodes, query.context)
    for _, time, source in rows:
        sources[source] = sources.get(source, 0.0) + time
    return sum(time for _, time, _ in rows)


def fit(kernels: Kernels, queries: Sequence[Query], budget: int) -> Fitted:
    """Run every query and fit the law to all but those held out.

    Raises
    ------
    WaitCoreError
        If the answers determine no law.

    """
    sources: dict[str, float] = {}
    times = np.array([seconds(kernels, query, sources) for query in queries])
    ends = stairs(*_staircase(kernels, budget))
    held = np.arange(len(queries)) % HELD_OUT == 0
    law = _rounded(calibration.fit(_steps(queries, times, ~held), stairs=ends, consecutive=False).iteration_time)
    errors: dict[str, list[float]] = {}
    for query, time in zip((q for q, out in zip(queries, held, strict=True) if out), times[held], strict=True):
        errors.setdefault(query.region, []).append(abs(iteration_seconds(law, **query.shape) / time - 1.0))
    total = sum(sources.values())
    shares = {
        SOURCES.get(name, name): value / total for name, value in sorted(sources.items(), key=lambda each: -each[1])
    }
    return Fitted(
        iteration_time=law,
        accuracy=tuple(
            Region(
                name=name,
                queries=len(each),
                median_error=float(np.median(each)),
                p95_error=float(np.quantile(each, 0.95)),
                largest_error=max(each),
            )
            for name, each in sorted(errors.items())
        ),
        sources=shares,
    )


def _steps(queries: Sequence[Query], times: Column, chosen: npt.NDArray[np.bool_]) -> Steps:
    rows = np.array(
        [
            (q.decodes, q.decodes * q.context, q.prompts * q.tokens, q.prompts * (q.before + q.tokens),
             q.prompts * q.tokens * (q.before + q.tokens / 2))
            for q, use in zip(queries, chosen, strict=True) if use
        ],
        np.float64,
    ).T  # fmt: skip
    return Steps(
        seconds=times[chosen], decodes=rows[0], decode_kv=rows[1], prefill_tokens=rows[2], prefill_kv=rows[3],
        prefill_attention=rows[4],
    )  # fmt: skip


def _rounded(law: dict[str, Any]) -> dict[str, Any]:
    """Round costs to a tenth of a picosecond, so that no stated digit is noise of the solver."""
    steps = [{name: round(value, 4) for name, value in step.items()} for step in law["steps"]]
    return law | {"steps": steps, "attention": {name: round(value, 4) for name, value in law["attention"].items()}}


def _staircase(kernels: Kernels, budget: int) -> tuple[Column, Column]:
    """Token counts up to the budget, and what their kernels cost without attention, s."""
    few = range(1, 65)
    many = np.unique(np.geomspace(64, budget, 220).astype(int))
    round_ones = [n for k in range(6, budget.bit_length()) for n in (2**k, 2**k + 1, 3 * 2 ** (k - 1)) if n <= budget]
    counts = np.unique([*few, *many.tolist(), *round_ones]).astype(np.float64)
    return counts, np.array([sum(time for _, time, _ in kernels.tokens(int(n), 0)) for n in counts])


def stairs(counts: Column, times: Column) -> list[int]:
    """Return where the fewest pieces end that fit the times to `TOLERANCE`: lines that do not fall, least squares.

    Parameters
    ----------
    counts, times : array
        Token counts in ascending order, and seconds.

    """
    cost = _pieces(counts, times)
    number = len(counts)
    best = cost[0]  # best[j]: squares of the best pieces up to and with point j
    ends = [np.full(number, -1)]
    total = [float(best[-1])]
    while len(total) < MOST_STAIRS and total[-1] > TOLERANCE**2 * number:
        candidates = np.vstack([np.full(number, np.inf), best[:-1, None] + cost[1:, :]])
        before = candidates.argmin(axis=0)
        best = candidates[before, np.arange(number)]
        ends.append(before)
        total.append(float(best[-1]))
    used = len(total)
    while used > 1 and total[used - 1] > (1.0 - LEAST_GAIN) * total[used - 2]:
        used -= 1
    found = []
    last = number - 1
    for level in range(used - 1, -1, -1):
        found.append(int(counts[last]))
        last = int(ends[level][last]) - 1
    return found[::-1]


def _pieces(counts: Column, times: Column) -> Column:
    """Relative squares of the best line that does not fall through the points i..j, for all i, j; inf if too few."""
    weight = 1.0 / times**2
    sums = [
        np.concatenate([[0.0], np.cumsum(weight * term)])
        for term in (np.ones_like(counts), counts, counts**2, times, counts * times, times**2)
    ]
    i, j = np.meshgrid(np.arange(len(counts)), np.arange(len(counts)), indexing="ij")
    valid = j - i + 1 >= FEWEST_POINTS
    w, x, xx, y, xy, yy = (np.where(valid, total[j + 1] - total[np.minimum(i, j)], 1.0) for total in sums)
    spread, together = xx - x * x / w, xy - x * y / w
    slope = np.where(spread > 0, np.maximum(0.0, together) / np.where(spread > 0, spread, 1.0), 0.0)
    squares = yy - y * y / w - 2 * slope * together + slope**2 * spread
    return np.asarray(np.where(valid, np.maximum(squares, 0.0), np.inf), np.float64)
