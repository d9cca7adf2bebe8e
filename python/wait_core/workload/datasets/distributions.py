"""Distributions of lengths and processes of arrivals: the leaves of a dataset."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from wait_core._core import WaitCoreError

if TYPE_CHECKING:
    import numpy.typing as npt

MAX_LENGTH = 2**32 - 1


def require(holds: bool, where: str, value: object, expected: str) -> None:
    """Raise the error that `value`, standing at `where`, is not `expected`, unless it `holds`."""
    if not holds:
        raise WaitCoreError(f"{where}: {value!r} is not {expected}")


def is_number(value: object) -> bool:
    """Return whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_length(value: object) -> bool:
    """Return whether `value` is a length: an integer from 1 to `MAX_LENGTH`."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_LENGTH


class Distribution:
    """A distribution of lengths (tokens, integers of at least 1)."""

    kind: ClassVar[str]

    def pmf(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return every possible length and its probability, both of shape (k,)."""
        raise NotImplementedError

    def mean(self) -> float:
        """Return the mean length in tokens."""
        values, probability = self.pmf()
        return float(values @ probability)


@dataclass(frozen=True)
class Constant(Distribution):
    """Always `value` tokens."""

    kind: ClassVar[str] = "constant"
    value: int

    def __post_init__(self) -> None:
        require(is_length(self.value), "constant.value", self.value, f"an integer from 1 to {MAX_LENGTH}")

    def pmf(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return the one value, with probability 1."""
        return np.array([self.value], np.int64), np.ones(1)


@dataclass(frozen=True)
class LogNormal(Distribution):
    """exp(mu + sigma·Z), Z standard normal, rounded to the nearest integer, then clipped to [low, high].

    What falls outside counts as the nearer limit, so that both limits carry an atom.
    """

    kind: ClassVar[str] = "lognormal"
    mu: float
    sigma: float
    low: int
    high: int

    def __post_init__(self) -> None:
        require(is_number(self.mu), "lognormal.mu", self.mu, "a finite number")
        require(is_number(self.sigma) and self.sigma > 0, "lognormal.sigma", self.sigma, "a finite number above 0")
        require(is_length(self.low), "lognormal.low", self.low, f"an integer from 1 to {MAX_LENGTH}")
        expected = f"an integer from low ({self.low}) to {MAX_LENGTH}"
        require(is_length(self.high) and self.low <= self.high, "lognormal.high", self.high, expected)

    def pmf(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return low..=high and their probabilities."""
        scale = 1 / (self.sigma * math.sqrt(2))
        below = [math.erf((math.log(value + 0.5) - self.mu) * scale) / 2 + 0.5 for value in range(self.low, self.high)]
        return np.arange(self.low, self.high + 1, dtype=np.int64), np.diff([0.0, *below, 1.0])


@dataclass(frozen=True)
class Histogram(Distribution):
    """Bin k with probability weights[k] / Σ weights; within it each integer of [edges[k], edges[k+1]) is as likely."""

    kind: ClassVar[str] = "histogram"
    edges: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, values in (("edges", self.edges), ("weights", self.weights)):
            require(isinstance(values, tuple), f"histogram.{name}", values, "a list")
        rising = all(is_length(edge) for edge in self.edges) and bool(np.all(np.diff(self.edges) > 0))
        require(rising and len(self.edges) >= 2, "histogram.edges", self.edges, "two or more rising lengths")
        expected = f"{len(self.edges) - 1} numbers of at least 0 with a sum above 0"
        right = len(self.weights) == len(self.edges) - 1 and all(is_number(w) and w >= 0 for w in self.weights)
        require(right and sum(self.weights) > 0, "histogram.weights", self.weights, expected)

    def pmf(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return all integers from the first edge to before the last, and their probabilities."""
        widths = np.diff(self.edges)
        share = np.array(self.weights, np.float64) / sum(self.weights) / widths
        return np.arange(self.edges[0], self.edges[-1], dtype=np.int64), np.repeat(share, widths)


class Arrivals:
    """An arrival process, up to its mean rate, which the run gives."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class Poisson(Arrivals):
    """Times between arrivals are exponential."""

    kind: ClassVar[str] = "poisson"


@dataclass(frozen=True)
class Gamma(Arrivals):
    """Times between arrivals are gamma distributed with shape `burstiness`: 1 is Poisson, less is burstier.

    The word and its meaning are those of `vllm bench serve --burstiness`.
    """

    kind: ClassVar[str] = "gamma"
    burstiness: float

    def __post_init__(self) -> None:
        right = is_number(self.burstiness) and self.burstiness > 0
        require(right, "gamma.burstiness", self.burstiness, "a finite number above 0")


@dataclass(frozen=True)
class Mmpp(Arrivals):
    """Markov-modulated Poisson process of two states: the rate is multipliers[i] times the mean rate in state i.

    Sojourns are exponential with means sojourn_s[i] (s); the first state is drawn from the stationary distribution.
    The time average of the multipliers must be 1, so that the mean rate is the one that was asked for: with rates of
    0.5 and 2 times the mean the slow state lasts twice as long as the fast one.
    """

    kind: ClassVar[str] = "mmpp"
    multipliers: tuple[float, float]
    sojourn_s: tuple[float, float]

    def __post_init__(self) -> None:
        for name, pair in (("multipliers", self.multipliers), ("sojourn_s", self.sojourn_s)):
            right = isinstance(pair, tuple) and len(pair) == 2 and all(is_number(value) and value > 0 for value in pair)
            require(right, f"mmpp.{name}", pair, "a pair of finite numbers above 0")
        average = sum(m * s for m, s in zip(self.multipliers, self.sojourn_s, strict=True)) / sum(self.sojourn_s)
        right = math.isclose(average, 1, rel_tol=1e-9)
        require(right, "mmpp.multipliers", self.multipliers, f"of time average 1 but of {average}")


DISTRIBUTIONS: dict[str, type[Distribution]] = {kind.kind: kind for kind in (Constant, LogNormal, Histogram)}
ARRIVALS: dict[str, type[Arrivals]] = {kind.kind: kind for kind in (Poisson, Gamma, Mmpp)}
