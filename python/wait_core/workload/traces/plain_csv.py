"""The fast path through csv: whole columns of a piece of the file at once, if its fields are as plain as most are.

A piece is plain if it has no quotes and no blank lines, and as many fields in each row as the header. A column of it is
plain if all its fields are digits, with a point where decimals may stand, or all are dates and times of one shape. For
anything else the answer is None: field by field, `csv_formats` then reads what else is accepted, or says what is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wait_core.workload.traces.fields import NS_PER_S

if TYPE_CHECKING:
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]
    Integers = npt.NDArray[np.int64]

_COMMA, _NEWLINE, _POINT, _ZERO = b",\n.0"
_DIGITS = 18
"""Most digits of a number: what int64 surely holds."""
_SHAPE = b"0000-00-00 00:00:00"
_FIELDS = slice(0, 4), slice(11, 13), slice(14, 16), slice(17, 19)
_UTC = np.frombuffer(b"+00:00", np.uint8)
_LONGEST_DATE = len("2023-11-16 18:15:46.680590012+00:00")
_LONGEST_TEXT = 100


def _is_text(raw: bytes) -> bool:
    try:
        return raw.isascii() or bool(raw.decode())
    except UnicodeDecodeError:
        return False


@dataclass(frozen=True)
class Piece:
    """Rows of csv: `begins` and `ends` say where in `data` each field stands, shape (rows, columns)."""

    data: Bytes
    begins: Integers
    ends: Integers

    @staticmethod
    def of(raw: bytes, columns: int) -> Piece | None:
        """Split whole lines into fields."""
        if b'"' in raw or not _is_text(raw):
            return None
        text = raw.replace(b"\r\n", b"\n")
        if not text.endswith(b"\n"):
            text += b"\n"
        if b"\r" in text:
            return None
        data = np.frombuffer(text, np.uint8)
        ends = np.flatnonzero((data == _COMMA) | (data == _NEWLINE))
        if len(ends) % columns:
            return None
        begins = np.concatenate([[0], ends[:-1] + 1])
        marks = data[ends].reshape(-1, columns)
        if (marks[:, :-1] != _COMMA).any() or (marks[:, -1] != _NEWLINE).any():
            return None
        return Piece(data, begins.reshape(-1, columns), ends.reshape(-1, columns))

    def numbers(self, column: int, decimals: int) -> Integers | None:
        """Return the numbers of a column times 10^`decimals`, exactly."""
        field = self._characters(column, _DIGITS + 1)
        if field is None:
            return None
        text, width = field
        value = np.zeros(len(text), np.int64)
        point = np.full(len(text), -1, np.int64)  # where it stands, -1 for nowhere
        for i in range(text.shape[1]):
            inside = i < width
            digit = text[:, i] - _ZERO  # wraps around below zero
            is_digit = (digit < 10) & inside
            is_point = (text[:, i] == _POINT) & inside & (point < 0)
            if (inside & ~is_digit & ~is_point).any():
                return None
            np.copyto(value, value * 10 + digit, where=is_digit)
            np.copyto(point, i, where=is_point)
        has_point = point >= 0
        before, after = np.where(has_point, point, width), np.where(has_point, width - 1 - point, 0)
        if before.min() < 1 or (after[has_point] < 1).any():
            return None  # a digit is missing
        if before.max() + decimals > _DIGITS or after.max() > decimals:
            return None
        return np.asarray(value * 10 ** (decimals - after), np.int64)

    def datetimes(self, column: int) -> Integers | None:
        """Return dates and times, with up to nine decimals and no offset but +00:00, as nanoseconds since 1970."""
        field = self._characters(column, _LONGEST_DATE)
        if field is None or field[1].min() < len(_SHAPE):
            return None
        text, width = field
        last = self.data[self.ends[:, column, None] + np.arange(-len(_UTC), 0)]
        fraction = _fraction(text, width - len(_UTC) * (last == _UTC).all(axis=1))
        if fraction is None or not _has_shape(text):
            return None
        digits = text - _ZERO
        day = np.ascontiguousarray(text[:, :10]).view("S10")[:, 0]
        year, hour, minute, second = (_integer(digits[:, part]) for part in _FIELDS)
        if year.min() < 1970 or year.max() > 2261 or hour.max() > 23 or minute.max() > 59 or second.max() > 60:
            return None
        try:
            days = day.astype("datetime64[D]").astype(np.int64)
        except ValueError:  # no such day
            return None
        return np.asarray((((days * 24 + hour) * 60 + minute) * 60 + second) * NS_PER_S + fraction, np.int64)

    def texts(self, column: int) -> list[bytes] | None:
        """Return the fields of a column as they are."""
        field = self._characters(column, _LONGEST_TEXT)
        if field is None or (self.data == 0).any():  # numpy takes zeros at the end for padding
            return None
        text, _ = field
        fields: list[bytes] = np.ascontiguousarray(text).view(f"S{text.shape[1]}")[:, 0].tolist()
        return fields

    def _characters(self, column: int, most: int) -> tuple[Bytes, Integers] | None:
        """Return the characters of each field, padded with zeros, and their numbers; None if one is empty or long."""
        begins = self.begins[:, column]
        width = self.ends[:, column] - begins
        if width.min() < 1 or width.max() > most:
            return None
        positions = np.arange(width.max())
        # Beyond the last field of the piece there is nothing to read; what stands there is cut off below.
        text = self.data[np.minimum(begins[:, None] + positions, len(self.data) - 1)]
        return np.where(positions < width[:, None], text, np.uint8(0)), width


def _has_shape(text: Bytes) -> bool:
    """Return whether all begin as dates and times do."""
    for i, mark in enumerate(_SHAPE):
        characters = text[:, i]
        if mark == _ZERO:
            fits = characters - _ZERO < 10
        elif mark == ord(" "):
            fits = (characters == mark) | (characters == ord("T"))
        else:
            fits = characters == mark
        if not fits.all():
            return False
    return True


def _fraction(text: Bytes, width: Integers) -> Integers | None:
    """Return what follows the seconds, a point and up to nine digits, in nanoseconds."""
    begin = len(_SHAPE)
    decimals = width - begin - 1  # -1 where there is no fraction
    if (decimals == 0).any() or decimals.max() > 9 or (text[decimals > 0, begin : begin + 1] != _POINT).any():
        return None
    value = np.zeros(len(text), np.int64)
    for i in range(begin + 1, int(width.max())):
        inside, digit = i < width, text[:, i] - _ZERO
        if (digit[inside] > 9).any():
            return None
        np.copyto(value, value * 10 + digit, where=inside)
    return np.asarray(value * 10 ** (9 - np.maximum(decimals, 0)), np.int64)


def _integer(digits: Bytes) -> Integers:
    return np.asarray(digits @ 10 ** np.arange(digits.shape[1] - 1, -1, -1), np.int64)
