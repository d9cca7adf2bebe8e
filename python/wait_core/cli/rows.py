"""Rows of results in the forms that other programs read: JSON lines, JSON, CSV, Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from wait_core._core import WaitCoreError
from wait_core.extras import install

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FORMS = (".jsonl", ".json", ".csv", ".parquet")
"""File name endings, one for each form."""


def form_of(path: Path) -> str:
    """Return the form for the ending of a file's name.

    Raises
    ------
    WaitCoreError
        If it is none of `FORMS`, or Parquet without pyarrow.

    """
    form = path.suffix.lower()
    if form not in FORMS:
        raise WaitCoreError(f"{path}: the name must end in one of {', '.join(FORMS)}")
    if form == ".parquet" and find_spec("pyarrow") is None:
        raise WaitCoreError(f"{path}: Parquet needs pyarrow: {install('arrow')}")
    return form


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as JSON: what was never observed is null."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without nested values: those of a dictionary under "key.name", a list as one text."""
    made: dict[str, Any] = {}
    for key, value in plain(row).items():
        if isinstance(value, dict):
            made |= {f"{key}.{name}": each for name, each in value.items()}
        else:
            made[key] = "; ".join(map(str, value)) if isinstance(value, list) else value
    return made


def json_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return one JSON object a line."""
    return "".join(json.dumps(plain(row), allow_nan=False) + "\n" for row in rows)


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return CSV with a header; the columns are those of all rows."""
    flattened = [flat(row) for row in rows]
    text = io.StringIO()
    columns = dict.fromkeys(key for row in flattened for key in row)
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flattened)
    return text.getvalue()


def encoded(rows: Sequence[Mapping[str, Any]], form: str) -> bytes:
    """Return rows in one of `FORMS`."""
    if form == ".parquet":
        import pyarrow as pa  # noqa: PLC0415  an extra
        import pyarrow.parquet  # noqa: PLC0415

        sink = io.BytesIO()
        pyarrow.parquet.write_table(pa.Table.from_pylist([flat(row) for row in rows]), sink)
        return sink.getvalue()
    if form == ".csv":
        return comma_separated(rows).encode()
    if form == ".json":
        return (json.dumps([plain(row) for row in rows], indent=1, allow_nan=False) + "\n").encode()
    return json_lines(rows).encode()
