"""Plain-text tables and pictures for the terminal."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    Series = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]

_BARS = " ▁▂▃▄▅▆▇█"
_ASCII_BARS = " .:-=+*#@"
_WIDEST = 100


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Align columns: text to the left, numbers to the right, floats with sensible digits."""
    written = [cells(row) for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *written]) for i in range(len(header))]
    right = [all(_is_number(row[i]) for row in rows) for i in range(len(header))]
    lines = [list(header), ["-" * width for width in widths], *written]
    return "\n".join(
        "  ".join(
            text.rjust(width) if r else text.ljust(width) for text, width, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def cells(row: Sequence[object]) -> list[str]:
    """Return the values of a row as a table shows them."""
    return [_cell(value) for value in row]


def counted(number: int, noun: str) -> str:
    """Return "1 row", "2,000 rows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def left_out(dropped: Mapping[str, int]) -> list[str]:
    """Return one sentence for each reason for which rows of a trace were left out."""
    return [f"{counted(rows, 'row')} left out: {reason}" for reason, rows in dropped.items()]


def bars(series: Mapping[str, Series], most: float) -> str:
    """Draw values over time, a line each, from 0 to `most`: their largest in each stretch of the time.

    Parameters
    ----------
    series : dict of str to (time, value)
        By name: times, shape (n,), never decreasing, and the value from each to the next.
    most : float
        The value of a full bar; what is above it is drawn as that.

    """
    marks = _BARS if _can_print(_BARS) else _ASCII_BARS
    name_width = max(map(len, series))
    width = max(10, min(shutil.get_terminal_size().columns, _WIDEST) - name_width - 3)
    end = max(float(times[-1]) for times, _ in series.values())
    lines = []
    for name, (times, values) in series.items():
        edges = np.linspace(0.0, end, width + 1)
        # A stretch begins with the value from before it, and ends where that series does.
        first = np.maximum(np.searchsorted(times, edges[:-1], side="right") - 1, 0)
        last = np.maximum(np.searchsorted(times, edges[1:], side="left"), first + 1)
        height = np.array([values[a:b].max() for a, b in zip(first, last, strict=True)])
        height[edges[:-1] > times[-1]] = 0.0
        levels = np.ceil(np.clip(height / most, 0.0, 1.0) * (len(marks) - 1)).astype(int)
        lines.append(f"{name:{name_width}} |{''.join(marks[level] for level in levels)}|")
    return "\n".join(lines)


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _is_number(value: object) -> bool:
    return not isinstance(value, str) or value[:1].isdigit()
