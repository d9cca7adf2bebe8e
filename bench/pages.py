"""Tables of the documentation, made from the data files in docs/data.

A comment above a table says what it shows:

    <!-- data/NAME.csv -->                              the rows of that file, in the columns of the table
    <!-- data/NAME.csv where COLUMN = VALUE; VALUE and COLUMN = VALUE -->    some of its rows
    <!-- data/NAME.csv as BENCH.FUNCTION -->            what that function of bench/BENCH.py makes of its rows; or of
                                                        some of them, with `where …` before `as`

A benchmark with `--markdown` prints the tables that show its rows; with `--data` it writes its files and these tables.
"""

from __future__ import annotations

import csv
import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DOCS = Path(__file__).resolve().parent.parent / "docs"
DATA = DOCS / "data"
"""The data files, one CSV a benchmark and table."""

MARK = re.compile(
    r"^<!-- data/(?P<name>\S+)\.csv(?: where (?P<where>.+?))?(?: as (?P<view>\w+\.\w+))? -->\n\n(?P<table>(?:\|.*\n)+)",
    re.MULTILINE,
)
MEASURED = 6
"""Significant digits of a measured number in a data file; a page shows fewer."""

Row = dict[str, str]


@dataclass(frozen=True)
class Table:
    """A table on a page: the file and the rows that it shows, or the function that makes it of them."""

    name: str
    where: dict[str, list[str]]
    view: str | None
    header: list[str]
    lines: list[list[str]]

    @classmethod
    def of(cls, match: re.Match[str]) -> Table:
        """Read a table and the comment above it."""
        header, _, *lines = [line.strip()[2:-2].split(" | ") for line in match["table"].splitlines()]
        conditions = [part.split(" = ") for part in (match["where"] or "").split(" and ") if part]
        where = {column: values.split("; ") for column, values in conditions}
        return cls(match["name"], where, match["view"], header, lines)

    def chosen(self, rows: Sequence[Row]) -> list[Row]:
        """Return those of the rows of its file that it shows."""
        return [row for row in rows if all(row[key] in values for key, values in self.where.items())]

    def made_of(self, rows: Sequence[Row]) -> str:
        """Return the table that shows these rows of its file."""
        if self.view is not None:
            module, function = self.view.split(".")
            return str(getattr(importlib.import_module(module), function)(self.chosen(rows)))
        columns = [plain(cell) for cell in self.header]
        return markdown(self.header, [[shown(row[column]) for column in columns] for row in self.chosen(rows)])


def plain(cell: str) -> str:
    """Return the text of a cell without marks of code."""
    return cell.strip().strip("`")


def is_number(text: str) -> bool:
    """Whether a cell of a data file is a number."""
    return re.fullmatch(r"-?\d+(\.\d+)?", text) is not None


def shown(text: str) -> str:
    """Return a cell of a data file as a page shows it: thousands apart, and three digits of what was measured.

    Ratios and their intervals have three decimal places.
    """
    if "+-" in text:
        return "+-".join(f"{float(part):.3f}" for part in text.split("+-"))
    if not is_number(text):
        return text
    whole, _, fraction = text.partition(".")
    if len((whole + fraction).lstrip("-0")) >= MEASURED and fraction:
        return f"{float(text):,.0f}" if abs(float(text)) >= 99.95 else f"{float(text):#.3g}"
    return f"{int(whole):,}.{fraction}" if fraction and whole != "-0" else text if fraction else f"{int(whole):,}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table for the documents."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def read(name: str) -> list[Row]:
    """Return the rows of a data file."""
    with (DATA / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def pages() -> list[Path]:
    """Return the pages with tables of data files."""
    return sorted(path for path in DOCS.rglob("*.md") if "<!-- data/" in path.read_text(encoding="utf-8"))


def tables(page: Path) -> list[Table]:
    """Return the tables of a page that name their data."""
    return [Table.of(match) for match in MARK.finditer(page.read_text(encoding="utf-8"))]


def of_file(name: str, rows: Sequence[Row]) -> Iterator[str]:
    """Make every table of the documentation that shows this file, of these rows."""
    for page in pages():
        yield from (table.made_of(rows) for table in tables(page) if table.name == name)


def fill(name: str) -> None:
    """Write every table of the documentation that shows this file."""

    def filled(match: re.Match[str]) -> str:
        table = Table.of(match)
        if table.name != name:
            return match[0]
        return match[0].removesuffix(match["table"]) + table.made_of(read(name)) + "\n"

    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (written := MARK.sub(filled, text)) != text:
            page.write_text(written, encoding="utf-8")
