"""The workload of a plan: types, a dataset, a trace or requests, at any rate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from wait_core import _core
from wait_core.workload.datasets import Component, Constant, Dataset, Phase, Poisson
from wait_core.workload.requests import Requests, offered, sampled

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from wait_core.workload.traces import Trace

Types = list[tuple[int, int, float]]
"""(prompt, output, rate): tokens, tokens, requests/s."""

NUM_PROMPTS = 4000
"""Requests that are drawn by default."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Traffic at its rate, and how to draw it at others.

    Attributes
    ----------
    name : str
        For reports.
    exact, grouped : list of (prompt, output, rate)
        Its types: every pair of lengths, and few enough for thresholds.
    boundaries : list of int
        Output lengths at which Nested WAIT's segments end: the longest of each type of `grouped`.
    draw : callable
        Returns the requests of each run at a rate: of a trace the one there is, time-scaled.
    dispersion : float or None
        Variance over mean of the arrivals per hundredth of the time: 1 for a Poisson stream; None for types.
    dropped, notes
        What was left out of a trace, by reason, and what was assumed of it.

    """

    name: str
    exact: Types
    grouped: Types
    boundaries: list[int]
    draw: Callable[[float], list[Requests]]
    dispersion: float | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def rate(self) -> float:
        """Requests/s."""
        return sum(rate for _, _, rate in self.exact)

    @staticmethod
    def of(
        *,
        types: Sequence[tuple[int, int, float]] | None,
        dataset_name: str | Dataset | None,
        dataset_path: Trace | str | os.PathLike[str] | None,
        requests: Requests | None,
        rate: float | None,
        count: int | None,
        seed: int,
        runs: int,
        num_types: int,
    ) -> Traffic:
        """Make it from exactly one of the first four; arguments as in `wait_core.plan`."""
        number = NUM_PROMPTS if count is None else count

        def drawn(source: str | Dataset, rate: float) -> list[Requests]:
            return [sampled(source, request_rate=rate, num_prompts=number, seed=seed + run) for run in range(runs)]

        if types is not None:
            if dataset_name is not None or dataset_path is not None or requests is not None:
                raise _core.WaitCoreError("types are given: leave out dataset_name, dataset_path and requests")
            total = sum(each for _, _, each in types)
            scale = 1.0 if rate is None or not total > 0 else rate / total
            exact = [(prompt, output, each * scale) for prompt, output, each in types]
            name = " + ".join(f"p{prompt}d{output}" for prompt, output, _ in exact)
            ends = sorted({output for _, output, each in exact if each > 0})
            return Traffic(
                name=name, exact=exact, grouped=exact, boundaries=ends, draw=lambda at: drawn(poisson(name, exact), at)
            )
        if dataset_name is not None:
            count = number
        found = offered(dataset_name, dataset_path, requests, rate, count, seed, 1.0)
        if requests is not None and rate is not None:
            found = found.scaled(rate)
        if not np.isfinite(found.rate):
            raise _core.WaitCoreError("request_rate = inf: a plan needs a finite rate")

        def draw(at: float) -> list[Requests]:
            return [found.scaled(at)] if dataset_name is None else drawn(dataset_name, at)

        exact, _ = found.types(len(found))
        grouped, _ = found.types(num_types)
        return Traffic(
            name=found.name,
            exact=exact,
            grouped=grouped,
            boundaries=_boundaries(exact, grouped, num_types),
            draw=draw,
            dispersion=_dispersion(found),
            dropped=found.dropped,
            notes=found.notes,
        )


def poisson(name: str, types: Types) -> Dataset:
    """Poisson arrivals of these types."""
    components = (
        Component(str(j), rate, Constant(prompt), Constant(output))
        for j, (prompt, output, rate) in enumerate(types)
        if rate > 0
    )
    return Dataset(name, "", Poisson(), (Phase(0.0, tuple(components)),))


def _boundaries(exact: Types, grouped: Types, num_types: int) -> list[int]:
    outputs = np.array([output for _, output, _ in exact])
    if len(grouped) == len(exact):
        return sorted({int(output) for output in outputs})
    order = np.argsort(outputs, kind="stable")
    share = np.cumsum(np.array([rate for *_, rate in exact])[order])
    # Quantiles of the output length; the shares are sums of counts over the same number.
    at = np.searchsorted(share / share[-1], np.arange(1, num_types + 1) / num_types * (1 - 1e-9))
    return sorted({int(outputs[order][i]) for i in at})


def _dispersion(requests: Requests, windows: int = 100) -> float:
    at = requests.arrival_ns.astype(np.float64)
    if len(at) < 2 * windows or at[-1] <= at[0]:
        return 1.0
    counts, _ = np.histogram(at, bins=windows)
    return float(counts.var(ddof=1) / counts.mean())
