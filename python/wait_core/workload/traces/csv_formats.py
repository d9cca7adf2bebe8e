"""Readers of the csv formats: BurstGPT, Azure 2023 and 2024, Vidur, word counts."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import chain
from typing import TYPE_CHECKING

from wait_core.files import MAX_LINE, Place, decoded, opened, shown
from wait_core.workload.traces.fields import (
    MAX_TOKENS,
    NS_PER_S_EXPONENT,
    TraceError,
    count,
    datetime_nanoseconds,
    nanoseconds,
)
from wait_core.workload.traces.plain_csv import Piece
from wait_core.workload.traces.trace import Trace, TraceBuilder, Unit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from wait_core.files import Source

_PIECE = 1 << 20
"""Bytes that are read at once."""


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
    try:
        columns = {column.strip() for column in next(csv.reader([header_line]), [])}
    except csv.Error:
        return None
    return next((form.name for form in CSV_FORMATS if form.required <= columns), None)


def read_csv(path: Path, form: CsvFormat, limit: int | None) -> Trace:
    """Read `path` as `form`, at most `limit` requests."""
    place = Place(path, TraceError)
    builder = TraceBuilder()
    with opened(place) as file:
        table = _Table(form, _header(file, place), path)
        while raw := _piece(file, place):
            if limit is None and table.add_columns(raw, builder):
                place.line += raw.count(b"\n") + (not raw.endswith(b"\n"))
                continue
            lines: Iterable[bytes] = BytesIO(raw)
            if b'"' in raw or limit is not None:  # a quoted field may reach beyond the piece
                lines = chain(lines, iter(partial(file.readline, MAX_LINE + 1), b""))
            if table.add_rows(lines, place, builder, limit):
                break
    notes = ("lengths are words, not tokens",) if form.unit == "words" else ()
    return builder.build(source=str(path), format_name=form.name, unit=form.unit, notes=notes)


def _header(file: Source, place: Place) -> list[str]:
    """Return the columns that the first line names that is not blank."""
    for row in _rows(iter(partial(file.readline, MAX_LINE + 1), b""), place):
        return [column.strip() for column in row]
    return []


def _piece(file: Source, place: Place) -> bytes:
    """Return the next lines of a file, whole ones."""
    raw = file.read(_PIECE)
    if raw and not raw.endswith(b"\n"):
        rest = file.readline(MAX_LINE + 1)
        raw += rest
        if len(rest) > MAX_LINE:
            place.line += raw.count(b"\n") + 1
            raise place.too_long()
    return raw


class _Table:
    """Rows under a header, and the positions of the fields that a format needs."""

    def __init__(self, form: CsvFormat, header: list[str], path: Path) -> None:
        if missing := sorted(form.required - set(header)):
            raise TraceError(
                path, f"is missing from the header {shown(header)}", line=1, column=missing[0], value=header
            )
        self.form = form
        self.header = header
        self.arrival = form.arrival if form.arrival in header else None

    def add_columns(self, raw: bytes, builder: TraceBuilder) -> bool:
        """Add a piece of the file, column by column, if it is plain; whether it was."""
        form, index = self.form, self.header.index
        piece = Piece.of(raw, len(self.header))
        if piece is None:
            return False
        prompt, output = (piece.numbers(index(name), 0) for name in (form.prompt, form.output))
        if prompt is None or output is None or max(prompt.max(), output.max()) > MAX_TOKENS:
            return False
        arrival_ns = None
        if self.arrival is not None:
            column = index(self.arrival)
            arrival_ns = piece.datetimes(column) if form.is_datetime else piece.numbers(column, NS_PER_S_EXPONENT)
            if arrival_ns is None:
                return False
        classes = [piece.texts(index(name)) for name in form.classes]
        named: list[str] | None = None
        if form.classes:
            if any(texts is None for texts in classes):
                return False
            parts = list(zip(*[texts for texts in classes if texts is not None], strict=True))
            names = {part: ", ".join(text.decode().strip() for text in part) for part in set(parts)}
            named = [names[part] for part in parts]
        builder.extend(prompt, output, arrival_ns=arrival_ns, class_names=named, zero_output=form.zero_output)
        return True

    def add_rows(self, lines: Iterable[bytes], place: Place, builder: TraceBuilder, limit: int | None) -> bool:
        """Add lines field by field; whether there are `limit` requests now."""
        form, header = self.form, self.header
        index = {column: header.index(column) for column in header}
        for row in _rows(lines, place):
            if len(row) < len(header):
                raise place.missing(header[len(row)])
            if len(row) > len(header):
                raise place.error(None, row, f"a row of {len(header)} columns: {len(row)} were found")
            builder.add(
                count(row[index[form.prompt]], place, form.prompt),
                count(row[index[form.output]], place, form.output),
                arrival_ns=None if self.arrival is None else self._time(row[index[self.arrival]], place),
                class_name=", ".join(row[index[name]].strip() for name in form.classes) if form.classes else None,
                zero_output=form.zero_output,
            )
            if limit is not None and len(builder) >= limit:
                return True
        return False

    def _time(self, value: str, place: Place) -> int:
        assert self.arrival is not None  # noqa: S101  the caller has looked
        if self.form.is_datetime:
            return datetime_nanoseconds(value, place, self.arrival)
        return nanoseconds(value, NS_PER_S_EXPONENT, place, self.arrival)


def _rows(lines: Iterable[bytes], place: Place) -> Iterator[list[str]]:
    """Yield the rows that are not blank, keeping the line number of `place` at each."""

    def texts() -> Iterator[str]:
        for raw in lines:
            place.line += 1
            yield decoded(raw, place)

    try:
        for row in csv.reader(texts(), strict=True):
            if row:
                yield row
    except csv.Error as error:
        raise place.problem(f"not csv: {str(error).partition(' - ')[0]}") from None
