"""What is offered: the workloads of arXiv 2504.11320 §6, with the sizes and settings that are fixed in advance."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from contract import TRACES

from wait_core.hardware import A100
from wait_core.workload import Requests, sampled
from wait_core.workload.datasets import Component, Constant, Dataset, Phase, Poisson, dataset

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

BLOCK = 16
KV_BLOCKS = 8562
"""C of about 137,000 KV tokens, in blocks of 16 (one A100-80GB)."""

D0, D1 = 10.6076e-3, 4.0136e-7
"""The paper's law d0 + d1 x KV, s and s per KV token: fitted from its table of M*, see `fluid`."""
LINEAR = f"linear:{D0},{D1}"

TWO_TYPES = Dataset(
    "two-type",
    "0.7 of p512d20 and 0.3 of p512d50",
    Poisson(),
    (
        Phase(
            0.0,
            (
                Component("short", 0.7, Constant(512), Constant(20)),
                Component("long", 0.3, Constant(512), Constant(50)),
            ),
        ),
    ),
)

LMSYS_WORDS = "lmsys_chat_1m_words_100k.csv"
LMSYS_LONGEST = 500


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One workload of the paper.

    Attributes
    ----------
    name : str
        As in the tables.
    source : Dataset or tuple of arrays
        What is sampled; (prompt, output) arrays are drawn from with replacement.
    rates : tuple of float
        Requests/s of the sweep.
    num_requests : int
        N of each run.
    sizes, chunks : tuple of int
        The grid on which every policy is tuned: batch cap of the baselines and tl of WAIT; token budget.
    law : str
        Iteration-time law.
    overhead_s : float
        Added to each iteration, s.
    boundaries : tuple of int
        Output lengths at which Nested WAIT's segments end; empty where lengths are known (WAIT).

    """

    name: str
    source: Dataset | tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]
    rates: tuple[float, ...]
    num_requests: int = 10_000
    sizes: tuple[int, ...]
    chunks: tuple[int, ...] = (384, 512, 768, 1024, 2048, 4096)
    law: str = A100
    overhead_s: float = 0.0
    boundaries: tuple[int, ...] = ()

    @property
    def policy(self) -> str:
        """The paper's policy for it."""
        return "nested-wait" if self.boundaries else "wait"

    def requests(self, rate: float, n: int, seed: int) -> Requests:
        """Return the requests offered: Poisson arrivals at `rate`."""
        if isinstance(self.source, Dataset):
            return _sampled(self.source, rate, n, seed)
        prompt, output = self.source
        rows = np.random.Generator(np.random.PCG64(seed)).integers(len(prompt), size=n)
        times = _sampled(dataset("p1d1"), rate, n, seed).arrival_ns
        return Requests(name=self.name, arrival_ns=times, prompt=prompt[rows], output=output[rows], rate=rate)

    def lengths(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """Prompt and output lengths of its population, from which thresholds are made."""
        return self.source if isinstance(self.source, tuple) else _population(self.source)

    def types(self, rate: float) -> list[dict[str, Any]]:
        """Return WAIT's types: each pair of constant lengths that the definition has."""
        if not isinstance(self.source, Dataset):
            raise TypeError(f"{self.name} has no types")
        components = self.source.phases[0].components
        total = sum(part.weight for part in components)
        return [
            {"prompt": round(c.prompt.mean()), "output": round(c.output.mean()), "rate": rate * c.weight / total}
            for c in components
        ]


@lru_cache(maxsize=64)
def _sampled(source: Dataset, rate: float, n: int, seed: int) -> Requests:
    return sampled(source, request_rate=rate, num_prompts=n, seed=seed)


def _population(source: Dataset) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    # A seed of its own: no run is planned from its own requests.
    population = _sampled(source, 1.0, 100_000, 123_456)
    return population.prompt, population.output


def spread_total(
    total: float, outputs: npt.NDArray[np.uint32], boundaries: Sequence[int], margin: float
) -> list[float]:
    """Return Nested WAIT's thresholds as the paper's experiments make them (§6).

    n_k = n_1 q_2 ... q_k with q_k = min(p_k + η, 0.99), scaled so that the sum of n_k times the stages of segment k is
    `total`, the paper's tl.
    """
    edges = [0, *boundaries]
    alive = [float(np.mean(outputs > edge)) for edge in edges[:-1]]
    shares = [1.0] + [min(after / before + margin, 0.99) for before, after in itertools.pairwise(alive)]
    chain = np.cumprod(shares)
    stages = np.diff(edges)
    return [float(n) for n in chain * total / float(chain @ stages)]


def equal_ranges(longest: int, count: int) -> tuple[int, ...]:
    """Boundaries of `count` segments of equal range."""
    return tuple(dict.fromkeys(-(-longest * k // count) for k in range(1, count + 1)))


def word_counts(*, least: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]] | None:
    """Return the word counts of lmsys-chat-1m, both below 500 and at least `least`; None where the file is absent.

    The paper's population has the conversations with an empty answer (least = 0); none can be served (least = 1).
    """
    path = TRACES / LMSYS_WORDS
    if not path.is_file():
        return None
    rows = np.loadtxt(path, delimiter=",", skiprows=1, dtype=np.uint32)
    kept = rows[np.all((rows >= least) & (rows < LMSYS_LONGEST), axis=1)]
    return np.ascontiguousarray(kept[:, 0]), np.ascontiguousarray(kept[:, 1])


SINGLE = Workload(
    name="single",
    source=dataset("p512d20"),
    rates=(12, 14, 16, 18, 19, 20, 21, 22, 23, 24, 25, 26),
    sizes=(5, 7, 10, 15, 20, 25, 30, 40, 60, 128),
)
TWO_TYPE = Workload(
    name="two-type",
    source=TWO_TYPES,
    rates=(12, 14, 16, 18, 19, 20, 21, 22, 23, 24, 25),
    sizes=(6, 10, 15, 20, 25, 30, 40, 60, 80, 128),
    boundaries=(20, 50),
)
LONG = Workload(
    name="long",
    source=dataset("p512d1000"),
    rates=(0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0),
    num_requests=1_000,
    sizes=(16, 32, 64, 96, 112, 128, 160, 256),
    chunks=(384, 512, 1024, 2048),
)
LMSYS = Workload(
    name="lmsys",
    source=dataset("lmsys"),
    rates=(10, 30, 50, 60, 70, 75, 80, 90, 110, 130, 150),
    # The server takes half a minute to fill, 2,000 requests and more.
    num_requests=20_000,
    sizes=(16, 32, 64, 128, 256, 384, 512, 640, 800, 1024),
    chunks=(1024, 2048),
    boundaries=equal_ranges(LMSYS_LONGEST, 5),
)
DECODE_ONLY = Workload(
    name="decode-only",
    source=dataset("p630d20"),
    rates=tuple(range(100, 501, 25)),
    sizes=(16, 32, 64, 96, 128, 160, 192, 214, 256),
    # Prompts arrive computed: an admission is never cut into chunks.
    chunks=(1 << 20,),
    law=LINEAR,
)


@dataclass(frozen=True, kw_only=True)
class TimeVarying(Workload):
    """Two types whose rate and mix change from window to window.

    Attributes
    ----------
    windows : tuple of (float, float)
        Rate (requests/s) and share of the long type in each window, in turn.
    window_s : float
        Length of a window, s.
    planned_share : float
        Share of the long type that Nested WAIT is planned for.

    """

    windows: tuple[tuple[float, float], ...]
    window_s: float
    planned_share: float

    def requests(self, rate: float, n: int, seed: int) -> Requests:
        """Poisson arrivals at the rate and mix of each window; `rate` is their mean and only names the run."""
        random = np.random.Generator(np.random.PCG64(seed))
        times: list[npt.NDArray[np.float64]] = []
        longs: list[npt.NDArray[np.bool_]] = []
        for k in itertools.count():
            each, share = self.windows[k % len(self.windows)]
            count = random.poisson(each * self.window_s)
            times.append(np.sort(random.random(count)) * self.window_s + k * self.window_s)
            longs.append(random.random(count) < share)
            if sum(map(len, times)) >= n:
                break
        arrival_ns = (np.concatenate(times)[:n] * 1e9).astype(np.uint64)
        output = np.where(np.concatenate(longs)[:n], 50, 20).astype(np.uint32)
        return Requests(
            name=self.name, arrival_ns=arrival_ns, prompt=np.full(n, 512, np.uint32), output=output, rate=rate
        )

    def lengths(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """Return a population with the share that is planned for."""
        longs = round(1000 * self.planned_share)
        output = np.repeat(np.array([20, 50], np.uint32), [1000 - longs, longs])
        return np.full(len(output), 512, np.uint32), output
