"""What all benchmarks share: their options, claims, tables, data files, and the JSON line at the end."""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pages
from pages import DATA, markdown

from wait_core.report import table

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DATA", "ROOT", "TRACES", "Bench", "Claim", "interval", "machine", "markdown", "start"]

ROOT = Path(__file__).resolve().parent.parent
"""The repository."""

TRACES = Path(os.environ.get("WAIT_CORE_TRACES", ROOT.parent / "shared" / "traces"))
"""The folder of recorded traces, which are not part of the repository."""

# Student's t, two-sided 95 %, by degrees of freedom.
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23}
T95 |= {11: 2.20, 12: 2.18, 13: 2.16, 14: 2.14, 15: 2.13, 16: 2.12, 17: 2.11, 18: 2.10, 19: 2.09, 20: 2.09}


@dataclass(frozen=True)
class Claim:
    """One measured claim: `goal` is a bound such as ">= 0.99", or empty for a figure without one."""

    name: str
    value: float
    unit: str
    goal: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the goal is met; None without a goal."""
        if not self.goal:
            return None
        sign, bound = self.goal.split()
        return self.value >= float(bound) if sign == ">=" else self.value <= float(bound)

    @property
    def verdict(self) -> str:
        """The same in a word; empty without a goal."""
        return {True: "holds", False: "missed", None: ""}[self.holds]


@dataclass
class Bench:
    """A benchmark under way: collects claims and rows, prints them at the end, writes them to the file of its variant.

    `tables` are further tables of the documentation, by the end of the name of their file.
    """

    name: str
    options: argparse.Namespace
    claims: list[Claim] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    gpu: str = ""
    variant: str = ""

    def claim(self, name: str, value: float, unit: str, goal: str = "") -> None:
        """Record a claim."""
        # numpy's numbers and booleans are not JSON.
        self.claims.append(Claim(name, float(value), unit, goal))

    def files(self) -> dict[str, list[dict[str, str]]]:
        """Return the rows of each data file, by its name."""
        named = {self.variant: self.rows} | self.tables
        return {
            "-".join(filter(None, [self.name.replace("_", "-"), part])): _written(rows)
            for part, rows in named.items()
            if rows
        }

    def finish(self) -> None:
        """Print the tables and the claims; with --data write the former, with --json print what machines read."""
        for name, rows in self.files().items():
            if self.options.data:
                _write(DATA / f"{name}.csv", rows)
                pages.fill(name)
            if self.options.markdown:
                print(*pages.of_file(name, rows), sep="\n\n", end="\n\n")
        for rows in [self.rows, *self.tables.values()]:
            if header := _header(rows):
                print(table(header, [[row.get(key, "") for key in header] for row in rows]), end="\n\n")
        cells = [[claim.name, claim.value, claim.unit, claim.goal, claim.verdict] for claim in self.claims]
        if cells:
            print(table(["claim", "value", "unit", "goal", ""], cells))
        if self.options.json:
            claims = [asdict(claim) | {"holds": claim.holds} for claim in self.claims]
            line: dict[str, Any] = {
                "bench": self.name,
                "commit": _commit(),
                "machine": machine(),
                "claims": claims,
                "table": self.rows,
            }
            line |= {"tables": self.tables} if self.tables else {}
            line |= {"gpu": self.gpu} if self.gpu else {}
            print(json.dumps(line))
            sys.stdout.flush()


def start(name: str, description: str, **extra: dict[str, Any]) -> Bench:
    """Read the options that all benchmarks have, and those of `extra` (flag name without dashes to add_argument's).

    `positional` in `extra` describes the arguments without a flag.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="the same measurement at a size that fits in a minute")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on a line")
    if "markdown" not in extra:
        parser.add_argument("--markdown", action="store_true", help="print the tables of the documentation")
    parser.add_argument("--data", action="store_true", help="write these tables, and their files in docs/data")
    for flag, keywords in extra.items():
        parser.add_argument(flag if flag == "positional" else f"--{flag.replace('_', '-')}", **keywords)
    options = parser.parse_args()
    if options.data and options.quick:
        parser.error("--data: the documentation has the full size, without --quick")
    return Bench(name, options)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of up to 21 values, and half the width of its 95 % interval; infinite for a single one."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, math.inf
    return mean, T95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def _header(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the columns of a table, in the order in which they first occur."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _written(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Return rows as a data file has them."""
    header = _header(rows)
    return [{key: _cell(row.get(key, "")) for key in header} for row in rows]


def _write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _cell(value: object) -> str:
    """Return a value as a data file has it: what was measured with six digits, what was chosen as it was written."""
    measured = isinstance(value, float) and len(str(value).strip("-0").replace(".", "")) > pages.MEASURED
    if measured and abs(float(str(value))) >= 10**pages.MEASURED:
        return f"{value:.0f}"
    return f"{value:#.{pages.MEASURED}g}" if measured else str(value)


def machine() -> str:
    """Processor and number of cores."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return f"{model}, {os.cpu_count()} cores"


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
