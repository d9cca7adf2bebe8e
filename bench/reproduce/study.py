"""A study under way: the benchmark it reports to, its size, and the summary that goes into the documentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reproduce.runs import SEEDS, Cell, Setting, cell, tune

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from contract import Bench

    from reproduce.workloads import Workload

PAPER, TUNED = "as published", "tuned"


@dataclass
class Study:
    """Experiments and what they found.

    Attributes
    ----------
    bench : Bench
        Takes rows and claims.
    figures : Path or None
        Where figures are drawn.
    summary : list of dict
        Rows of the documentation: experiment, quantity, paper, ours.

    """

    bench: Bench
    figures: Path | None
    summary: list[dict[str, str]] = field(default_factory=list)

    @property
    def quick(self) -> bool:
        """Whether this is the small size."""
        return bool(self.bench.options.quick)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds that are reported."""
        return SEEDS[:2] if self.quick else SEEDS

    def size(self, workload: Workload) -> int:
        """N of each run."""
        return workload.num_requests // 5 if self.quick else workload.num_requests

    def few(self, values: Sequence[Any], keep: Sequence[Any] = ()) -> tuple[Any, ...]:
        """All values, or in the small size those of `keep` and every third."""
        chosen = tuple(value for i, value in enumerate(values) if value in keep or i % 3 == 0)
        return chosen if self.quick else tuple(values)

    def tuned(self, policy: str, workload: Workload, rate: float, chunks: Sequence[int] = ()) -> Setting:
        """Return the best setting of the grid, or of the part of it with these chunks."""
        sizes, chunks = workload.sizes, tuple(chunks) or workload.chunks
        if self.quick:
            sizes, chunks = sizes[::3] + sizes[-1:], chunks[:2]
        return tune(policy, workload, rate, self.size(workload), sizes, chunks)

    def measure(self, setting: Setting, workload: Workload, rate: float, note: str, n: int | None = None) -> Cell:
        """Measure a setting on all seeds, and add it to the table."""
        found = cell(setting, workload, rate, n or self.size(workload), self.seeds)
        self.bench.rows.append(found.row(workload.name, rate, note))
        return found

    def state(self, experiment: str, quantity: str, paper: str, ours: str) -> None:
        """Add a row to the summary."""
        self.summary.append({"experiment": experiment, "quantity": quantity, "paper": paper, "ours": ours})
