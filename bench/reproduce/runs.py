"""One run and what is read from it: the latency in the window, the completion rate, the verdict on stability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reproduce.workloads import BLOCK, KV_BLOCKS, Workload, spread_total
from wait_core import simulate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wait_core.simulation import Report
    from wait_core.workload import Requests

WINDOW = (0.2, 0.8)
"""The requests measured, as shares of the order of arrival: neither the filling nor the draining of the queue."""
SEEDS = tuple(range(10))
"""Seeds that are reported."""
TUNING_SEEDS = (1000, 1001)
"""Seeds on which settings are chosen, never reported."""
COMPLETES, GROWS = 0.98, 1.5
"""Stable: in the window, completions / arrivals at least this; mean latency of its second half / first half at most."""
WATERMARK = 0.01
MARGIN = 0.05
"""η of the paper's threshold construction."""


@dataclass(frozen=True)
class Setting:
    """A policy with its size (batch cap; tl of WAIT) and chunk (tokens in an iteration)."""

    policy: str
    size: int
    chunk: int
    waits: bool = True
    """For WAIT and Nested WAIT: whether requests are held for thresholds, or thresholds are caps only."""

    def __str__(self) -> str:
        size = "tl" if self.policy.endswith("wait") else "cap"
        return f"{size} {self.size}, chunk {self.chunk}" + ("" if self.waits else ", waiting off")

    def keywords(self, workload: Workload, rate: float) -> dict[str, Any]:
        """Return the settings of the core."""
        common = {"policy": self.policy, "token_budget": self.chunk, "kv_blocks": KV_BLOCKS, "block_size": BLOCK}
        if not self.policy.endswith("wait"):
            # vLLM V1's own default is no watermark; the two simulated by the paper leave 1 % free.
            watermark = 0.0 if self.policy == "vllm" else WATERMARK
            return common | {"max_num_seqs": self.size, "watermark": watermark}
        common |= {"max_num_seqs": min(self.chunk, 4096), "work_conserving": not self.waits}
        if self.policy == "wait":
            types = workload.types(rate)
            stages = sum(kind["rate"] * kind["output"] for kind in types)
            thresholds = [self.size * kind["rate"] / stages for kind in types]
            return common | {"types": types, "thresholds": thresholds}
        _, outputs = workload.lengths()
        boundaries = list(workload.boundaries)
        return common | {
            "boundaries": boundaries,
            "thresholds": spread_total(self.size, outputs, boundaries, MARGIN),
        }


@dataclass(frozen=True)
class Outcome:
    """What one run gave, in the window."""

    latency_s: float
    ttft_s: float
    completion: float
    growth: float
    preempted: float

    @staticmethod
    def of(report: Report) -> Outcome:
        """Read a finished run; every request must have completed."""
        run = report.run
        arrived, finished = run.arrival_ns, run.finished_ns
        if np.any(finished == np.iinfo(np.uint64).max):
            raise RuntimeError(f"{report.policy} did not finish every request of {report.workload}")
        latency = (finished - arrived) * 1e-9
        first, last = (int(share * len(arrived)) for share in WINDOW)
        middle = (first + last) // 2
        done = np.count_nonzero((finished >= arrived[first]) & (finished < arrived[last]))
        return Outcome(
            latency_s=float(latency[first:last].mean()),
            ttft_s=float((run.first_token_ns[first:last] - arrived[first:last]).mean() * 1e-9),
            completion=done / (last - first),
            growth=float(latency[middle:last].mean() / latency[first:middle].mean()),
            preempted=float(np.mean(run.preemptions > 0)),
        )


@dataclass(frozen=True)
class Cell:
    """The outcomes of one setting over the seeds."""

    setting: Setting
    outcomes: tuple[Outcome, ...]

    def values(self, name: str) -> list[float]:
        """One figure, by seed."""
        return [getattr(outcome, name) for outcome in self.outcomes]

    def mean(self, name: str) -> float:
        """Mean of one figure over the seeds."""
        return float(np.mean(self.values(name)))

    def spread(self, name: str) -> float:
        """Sample standard deviation over the seeds."""
        values = self.values(name)
        return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    @property
    def latency(self) -> str:
        """Mean latency and its spread over the seeds, s."""
        return plus_minus(self.mean("latency_s"), self.spread("latency_s"))

    @property
    def stable(self) -> bool:
        """The verdict by the stated criterion, on the means over the seeds."""
        return self.mean("completion") >= COMPLETES and self.mean("growth") <= GROWS

    def row(self, experiment: str, rate: float, note: str) -> dict[str, Any]:
        """As a line of the table."""
        return {
            "experiment": experiment,
            "rate (1/s)": rate,
            "policy": self.setting.policy,
            "set": note,
            "setting": str(self.setting),
            "latency (s)": self.mean("latency_s"),
            "± (s)": self.spread("latency_s"),
            "TTFT (s)": self.mean("ttft_s"),
            "completion": self.mean("completion"),
            "growth": self.mean("growth"),
            "preempted": self.mean("preempted"),
            "stable": "yes" if self.stable else "no",
        }


def run(setting: Setting, workload: Workload, rate: float, requests: Requests) -> Outcome:
    """Simulate one run."""
    keywords = setting.keywords(workload, rate)
    law, overhead_s = workload.law, workload.overhead_s
    return Outcome.of(simulate(requests=requests, iteration_time=law, overhead_s=overhead_s, **keywords))


def cell(setting: Setting, workload: Workload, rate: float, n: int, seeds: Sequence[int]) -> Cell:
    """Simulate one setting on every seed."""
    return Cell(setting, tuple(run(setting, workload, rate, workload.requests(rate, n, seed)) for seed in seeds))


def tune(  # noqa: PLR0917
    policy: str, workload: Workload, rate: float, n: int, sizes: Sequence[int], chunks: Sequence[int]
) -> Setting:
    """Return the setting of least mean latency on the tuning seeds, over the grid that all policies share."""
    grid = [Setting(policy, size, chunk) for chunk in chunks for size in sizes if chunk >= size]
    latency = {setting: cell(setting, workload, rate, n, TUNING_SEEDS).mean("latency_s") for setting in grid}
    return min(latency, key=lambda setting: latency[setting])


def plus_minus(mean: float, spread: float | None) -> str:
    """Mean and spread with sensible digits."""
    digits = 2 if mean < 10 else 1
    return f"{mean:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")
