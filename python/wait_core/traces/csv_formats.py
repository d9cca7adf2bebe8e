"""Readers of the csv formats: BurstGPT, Azure 2023 and 2024, Vidur, word counts."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wait_core.traces.fields import (
    NS_PER_S_EXPONENT,
    Place,
    TraceError,
    count,
    datetime_nanoseconds,
    nanoseconds,
)
from wait_core.traces.trace import Trace, TraceBuilder, Unit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


@dataclass(frozen=True)
class CsvFormat:
    """Which column holds what; columns not named here are ignored.

    Attributes
    ----------
    name : str
        Name of the format.
    prompt, output : str
        Columns of the lengths.
    arrival : str or None
        Column of the arrival time.
    arrival_optional : bool
        True if files without that column are read as lengths only.
    is_datetime : bool
        True for dates and times, False for seconds.
    classes : tuple of str
        Columns that name the class of a request, joined by a comma.
    zero_output : str
        Reason under which rows with an output of 0 are dropped.
    unit : {"tokens", "words"}
        What the lengths count.

    """

    name: str
    prompt: str
    output: str
    arrival: str | None = None
    arrival_optional: bool = False
    is_datetime: bool = False
    classes: tuple[str, ...] = ()
    zero_output: str = "output length 0"
    unit: Unit = "tokens"

    @property
    def required(self) -> frozenset[str]:
        """The columns without which a file is not of this format."""
        arrival = () if self.arrival is None or self.arrival_optional else (self.arrival,)
        return frozenset((self.prompt, self.output, *arrival, *self.classes))


CSV_FORMATS = (
    CsvFormat(
        "burstgpt",
        "Request tokens",
        "Response tokens",
        "Timestamp",
        classes=("Model", "Log Type"),
        zero_output="failed (response of 0 tokens)",
    ),
    CsvFormat("azure", "ContextTokens", "GeneratedTokens", "TIMESTAMP", is_datetime=True),
    CsvFormat("vidur", "num_prefill_tokens", "num_decode_tokens", "arrived_at", arrival_optional=True),
    CsvFormat("words", "question_length", "answer_length", unit="words"),
)


def detect_csv(header_line: str) -> str | None:
    """Return the name of the csv format whose columns stand in `header_line`, or None."""
    columns = {column.strip() for column in next(csv.reader([header_line]), [])}
    return next((form.name for form in CSV_FORMATS if form.required <= columns), None)


def read_csv(path: Path, form: CsvFormat, limit: int | None) -> Trace:
    """Read `path` as `form`, at most `limit` requests."""
    place = Place(path)
    builder = TraceBuilder()
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = _rows(file, place)
        header = [column.strip() for column in next(rows, [])]
        if missing := sorted(form.required - set(header)):
            raise TraceError(path, f"is missing from the header {header}", line=1, column=missing[0], value=header)
        index = {column: header.index(column) for column in header}
        arrival = form.arrival if form.arrival in index else None
        for row in rows:
            if len(row) != len(header):
                if len(row) < len(header):
                    raise place.missing(header[len(row)])
                raise place.error(None, row, f"a row of {len(header)} columns: {len(row)} were found")
            builder.add(
                count(row[index[form.prompt]], place, form.prompt),
                count(row[index[form.output]], place, form.output),
                arrival_ns=None if arrival is None else _arrival(row[index[arrival]], form, place, arrival),
                class_name=", ".join(row[index[name]].strip() for name in form.classes) if form.classes else None,
                zero_output=form.zero_output,
            )
            if limit is not None and len(builder) >= limit:
                break
    notes = ("lengths are words, not tokens",) if form.unit == "words" else ()
    return builder.build(source=str(path), format_name=form.name, unit=form.unit, notes=notes)


def _rows(file: Iterable[str], place: Place) -> Iterator[list[str]]:
    """Yield the rows that are not blank, keeping the line number of `place` at each."""
    reader = csv.reader(file, strict=True)
    try:
        for row in reader:
            place.line = reader.line_num
            if row:
                yield row
    except csv.Error as error:
        raise TraceError(place.path, f"not csv: {error}", line=reader.line_num) from None


def _arrival(value: str, form: CsvFormat, place: Place, column: str) -> int:
    if form.is_datetime:
        return datetime_nanoseconds(value, place, column)
    return nanoseconds(value, NS_PER_S_EXPONENT, place, column)
