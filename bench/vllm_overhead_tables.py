"""Tables of `vllm_overhead` for the documentation: a line for each case, a column for each scheduler."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from pages import markdown, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pages import Row

CASE = itemgetter("case", "running", "waiting")


def _table(rows: Sequence[Row], column: str) -> str:
    names = list(dict.fromkeys(row["scheduler"] for row in rows))
    lines = []
    for (case, running, waiting), group in groupby(rows, CASE):
        cells = {row["scheduler"]: shown(row[column]) for row in group}
        lines.append([case, shown(running), shown(waiting), *(cells.get(name, "") for name in names)])
    header = ["case", "running", "waiting", *(name if "stock" in name else f"`{name}`" for name in names)]
    return markdown(header, lines)


def times(rows: Sequence[Row]) -> str:
    """Return what a step costs, microseconds."""
    return _table(rows, "sum us")


def ratios(rows: Sequence[Row]) -> str:
    """Return what a step costs against stock's."""
    return _table([row for row in rows if row["scheduler"] != "stock"], "sum / stock")


def schedule(rows: Sequence[Row]) -> str:
    """Return what `schedule()` alone costs against stock's."""
    return _table([row for row in rows if row["scheduler"] != "stock"], "schedule / stock")
