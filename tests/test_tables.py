"""Tables of benchmarks on the pages are those of the data files that the benchmarks write: docs/data/NAME.csv.

A table that shows rows and columns of such a file says which, in a comment above it:

    <!-- data/NAME.csv where COLUMN = VALUE; VALUE and COLUMN = VALUE -->
"""

from __future__ import annotations

import csv
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
MARK = re.compile(r"^<!-- data/(?P<name>\S+)\.csv(?: where (?P<where>.+))? -->\n\n(?P<table>(?:\|.*\n)+)", re.MULTILINE)
PAGES = sorted(path for path in DOCS.rglob("*.md") if "<!-- data/" in path.read_text(encoding="utf-8"))

sys.path.insert(0, str(ROOT / "bench"))


@dataclass(frozen=True)
class Shown:
    """A table on a page, and which rows of which file it shows."""

    name: str
    where: dict[str, list[str]]
    header: list[str]
    rows: list[list[str]]


def cells(line: str) -> list[str]:
    """Return the cells of a line of a table, without marks of code."""
    return [cell.strip().strip("`") for cell in line.strip()[1:-1].split(" | ")]


def shown(page: Path) -> list[Shown]:
    """Return the tables of a page that name their data."""
    found = []
    for match in MARK.finditer(page.read_text(encoding="utf-8")):
        header, _, *rows = map(cells, match["table"].splitlines())
        conditions = [part.split(" = ") for part in (match["where"] or "").split(" and ") if part]
        where = {column: values.split("; ") for column, values in conditions}
        found.append(Shown(match["name"], where, header, rows))
    return found


def data(name: str) -> list[dict[str, str]]:
    """Return the rows of a data file."""
    with (DOCS / "data" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def same(cell: str, value: str) -> bool:
    """Whether a cell is this value, or the same number rounded."""
    if cell == value:
        return True
    try:
        number, exact = float(cell.replace(",", "")), float(value)
    except ValueError:
        return False
    digits = len(cell.partition(".")[2])
    return abs(number - exact) <= 0.5000001 * 10.0**-digits


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_table_that_names_its_data_shows_it(page: Path) -> None:
    tables = shown(page)
    assert len(tables) == page.read_text(encoding="utf-8").count("<!-- data/"), "a comment stands above each table"
    for table in tables:
        rows = [row for row in data(table.name) if all(row[key] in values for key, values in table.where.items())]
        assert len(rows) == len(table.rows), table.name
        for row, line in zip(rows, table.rows, strict=True):
            for column, cell in zip(table.header, line, strict=True):
                assert same(cell, row[column]), f"{table.name}: {column} of {line} is {row[column]}"


def test_a_cell_is_the_value_or_its_rounding() -> None:
    assert same("2,562", "2562.31")
    assert same("0.95", "0.9479")
    assert not same("0.95", "0.9561")
    assert same("1.000+-0.002", "1.000+-0.002")
    assert not same("vllm", "wait")


def test_the_worst_cells_of_the_learned_law_are_those_of_its_data() -> None:
    from learned_law import by_law

    assert by_law(data("learned-law")) in (DOCS / "adaptive.md").read_text(encoding="utf-8")


def test_the_means_of_the_panel_by_engine_are_those_of_its_data() -> None:
    page = (DOCS / "panel.md").read_text(encoding="utf-8")
    rows = data("panel")
    for line in re.findall(r"^\| (?:a100|llama|qwen|gpt).* \| \d+ \| .*", page, re.MULTILINE):
        engine, count, *means = cells(line)
        inside = [row for row in rows if row["engine"] == engine]
        assert len(inside) == int(count), engine
        keys = [f"{key} / stock" for key in ("output_throughput", "mean_e2el_ms", "p99_ttft_ms")]
        keys += [f"{key} / best static" for key in ("output_throughput", "mean_e2el_ms")]
        for key, mean in zip(keys, means, strict=False):
            exact = statistics.geometric_mean(float(row[key].partition("+-")[0]) for row in inside)
            assert float(mean) == pytest.approx(exact, abs=0.0011), f"{engine}: {key}"
        rows = [row for row in rows if row["engine"] != engine]
    assert rows == [], "every engine has a line"


def test_the_goals_that_the_panel_misses_are_those_of_its_data() -> None:
    """A ratio that rounds to its goal may be on either side of it."""
    page = (DOCS / "panel.md").read_text(encoding="utf-8")
    goals = dict(re.findall(r"^\| (\w+ / \w[\w ]*) \| ([<>]= [\d.]+) \| \d+ of \d+ \|$", page, re.MULTILINE))
    listed = set(re.findall(r"^\| (\w+ / [\w ]+) \| (.+), load ([\d.]+) \| ([\d.]+) ", page, re.MULTILINE))
    assert len(goals) == 7
    for row in data("panel"):
        for figure, goal in goals.items():
            value = row[figure].partition("+-")[0]
            miss = (figure, f"{row['engine']}: {row['workload']}", f"{float(row['load']):g}", value)
            sign, bound = goal.split()
            beyond = float(value) - float(bound) if sign == "<=" else float(bound) - float(value)
            if abs(beyond) > 1e-9:
                assert (miss in listed) == (beyond > 0), miss
            listed.discard(miss)
    assert listed == set(), "every miss is a cell"
