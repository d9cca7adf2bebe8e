"""The table in the documentation: a file of data, one line a quantity."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

COLUMNS = ("experiment", "quantity", "paper", "ours")


def write(path: Path, summary: Sequence[Mapping[str, str]]) -> None:
    """Replace the experiments of `summary` in the file; those that were not run stay as they are, in their places."""
    rows: dict[str, list[Mapping[str, str]]] = {}
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            for old in csv.DictReader(file):
                rows.setdefault(old["experiment"], []).append(old)
    rows |= {row["experiment"]: [] for row in summary}
    for row in summary:
        rows[row["experiment"]].append(row)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(row for group in rows.values() for row in group)
