"""What all benchmarks share: their options, claims, table, and the JSON line at the end."""

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

from wait_core.report import table

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent
"""The repository."""

DATA = ROOT / "docs" / "data"
"""The tables of the documentation, one CSV a benchmark."""

TRACES = Path(os.environ.get("WAIT_CORE_TRACES", ROOT.parent / "shared" / "traces"))
"""The folder of recorded traces, which are not part of the repository."""

# Student's t, two-sided 95 %, by degrees of freedom.
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


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


@dataclass
class Bench:
    """A benchmark under way; collects claims and rows, prints them at the end, in the data file of its variant."""

    name: str
    options: argparse.Namespace
    claims: list[Claim] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    gpu: str = ""
    variant: str = ""

    def claim(self, name: str, value: float, unit: str, goal: str = "") -> None:
        """Record a claim."""
        # numpy's numbers and booleans are not JSON.
        self.claims.append(Claim(name, float(value), unit, goal))

    def header(self) -> list[str]:
        """Return the columns of the table, in the order in which they first occur."""
        return list(dict.fromkeys(key for row in self.rows for key in row))

    def write(self, path: Path) -> None:
        """Write the table as CSV."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.header(), restval="")
            writer.writeheader()
            writer.writerows({key: _cell(value) for key, value in row.items()} for row in self.rows)

    def finish(self) -> None:
        """Print the table, the claims, and with --json the object that machines read; with --data write the table."""
        if self.options.data:
            self.write(DATA / f"{'-'.join(filter(None, [self.name, self.variant])).replace('_', '-')}.csv")
        if self.rows:
            header = self.header()
            print(table(header, [[row.get(key, "") for key in header] for row in self.rows]))
            print()
        verdicts = {True: "holds", False: "MISSED", None: ""}
        cells = [[claim.name, claim.value, claim.unit, claim.goal, verdicts[claim.holds]] for claim in self.claims]
        if cells:
            print(table(["claim", "value", "unit", "goal", ""], cells))
        if self.options.json:
            claims = [asdict(claim) | {"holds": claim.holds} for claim in self.claims]
            line = {"bench": self.name, "commit": _commit(), "machine": machine(), "claims": claims, "table": self.rows}
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
    parser.add_argument(
        "--data", action="store_true", help=f"write the table to docs/data/{name.replace('_', '-')}.csv"
    )
    for flag, keywords in extra.items():
        parser.add_argument(flag if flag == "positional" else f"--{flag.replace('_', '-')}", **keywords)
    options = parser.parse_args()
    if options.data and options.quick:
        parser.error("--data: the documentation has the full size, without --quick")
    return Bench(name, options)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of up to ten values, and half the width of its 95 % interval; infinite for a single one."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, math.inf
    return mean, T95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table for the documents."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _cell(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) and not value.is_integer() else value


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
