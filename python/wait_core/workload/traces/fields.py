"""Exact reading of single fields."""

from __future__ import annotations

import re
from datetime import date
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import TYPE_CHECKING

from wait_core.files import FileError

if TYPE_CHECKING:
    from wait_core.files import Place

NS_PER_S = 1_000_000_000
NS_PER_MS_EXPONENT = 6
NS_PER_S_EXPONENT = 9
MAX_TOKENS = 2**32 - 1
MAX_NS = 2**63 - 1

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_DATETIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):?(\d\d))?", re.ASCII
)
# Wide enough that no length or time of a real file is rounded before its last step.
_EXACT = Context(prec=80, rounding=ROUND_HALF_EVEN)


class TraceError(FileError):
    """A trace file that cannot be read; see `wait_core.files.FileError`."""


class Digits(str):
    """A JSON number with a point or an exponent, as it is written: a float would round the nanoseconds away."""

    __slots__ = ()


def decimal(value: object) -> Decimal | None:
    """Return the exact finite number that a csv field or a JSON value holds, or None if it holds none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return Decimal(value)
    if isinstance(value, str) and _NUMBER.fullmatch(text := value.strip()):
        return Decimal(text)
    return None


def count(value: object, place: Place, column: str, most: int = MAX_TOKENS) -> int:
    """Return `value` as an integer in 0..=`most`; "374.0", which some writers make of 374, is accepted."""
    if type(value) is int and 0 <= value <= most:  # what nearly all are
        return value
    number = decimal(value)
    if number is None or not 0 <= number <= most or number != number.to_integral_value(context=_EXACT):
        raise place.error(column, value, f"an integer from 0 to {most}")
    return int(number)


def nanoseconds(value: object, exponent: int, place: Place, column: str) -> int:
    """Return a time of 10^`exponent` nanoseconds per unit as integer nanoseconds, half to even past the last one."""
    scale: int = 10**exponent
    if type(value) is int and 0 <= value <= MAX_NS // scale:
        return value * scale
    number = decimal(value)
    if number is None or not 0 <= number <= MAX_NS:
        raise place.error(column, value, "a time of zero or more")
    scaled = int(_EXACT.scaleb(number, exponent).to_integral_value(context=_EXACT))
    if scaled > MAX_NS:
        raise place.error(column, value, "a time below 292 years")
    return scaled


def datetime_nanoseconds(value: object, place: Place, column: str) -> int:
    """Return a date and time, with up to nine decimals and an optional offset, as nanoseconds since 1970 (UTC)."""
    match = _DATETIME.fullmatch(value.strip()) if isinstance(value, str) else None
    expected = "a date and time like 2023-11-16 18:15:46.6805900"
    if match is None:
        raise place.error(column, value, expected)
    year, month, day, hour, minute, second, fraction, sign, offset_hours, offset_minutes = match.groups()
    try:
        days = date(int(year), int(month), int(day)).toordinal() - date(1970, 1, 1).toordinal()
    except ValueError:
        raise place.error(column, value, expected) from None
    if int(hour) > 23 or int(minute) > 59 or int(second) > 60:
        raise place.error(column, value, expected)
    seconds = days * 86_400 + int(hour) * 3_600 + int(minute) * 60 + int(second)
    if sign:
        offset = int(offset_hours) * 3_600 + int(offset_minutes) * 60
        seconds += offset if sign == "-" else -offset
    total = seconds * NS_PER_S + int((fraction or "0").ljust(9, "0"))
    if not 0 <= total <= MAX_NS:
        raise place.error(column, value, "a date between 1970 and 2261")
    return total
