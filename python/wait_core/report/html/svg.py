"""Charts as inline SVG: lines, steps, bars. Series differ by dashes, markers and labels as well as by colour."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from wait_core.report.plot_style import styles

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from wait_core.report.arrays import Floats

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 74, 16, 14, 46
DASHES = ("", "8 3", "2 3", "9 3 2 3", "5 2", "1 2", "12 4")
MARKS = ("circle", "square", "triangle", "cross", "diamond", "bar", "ring")
MOST_POINTS = 240
STRIP = 14
"""Height of the strip for marks above a chart."""
_ROW = 20
_LETTER = 7
"""Most that the letters of a name are wide on average."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line: `x` and `y` of shape (n,), NaN where nothing is known; `steps` holds each y to the next x."""

    name: str
    x: Floats
    y: Floats
    steps: bool = False


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis: what it shows with its unit, the range it must at least show, and whether it is logarithmic."""

    label: str
    least: float | None = None
    most: float | None = None
    log: bool = False


class _Scale:
    """Maps values to positions, with the values at which ticks stand."""

    def __init__(self, axis: Axis, values: Iterable[Floats], begin: float, end: float) -> None:
        all_of = np.concatenate([np.asarray(each, np.float64).ravel() for each in values] or [np.empty(0)])
        known = all_of[np.isfinite(all_of) & ((all_of > 0) | (not axis.log))]
        low = float(known.min()) if len(known) else 1.0
        high = float(known.max()) if len(known) else 1.0
        self.low = low if axis.least is None else min(low, axis.least)
        self.high = high if axis.most is None else max(high, axis.most)
        self.log = axis.log
        if self.high <= self.low:
            self.high = self.low * 2 if self.low > 0 else self.low + 1
        self._begin, self._end = begin, end

    def at(self, value: Floats) -> Floats:
        """Return the position of each value."""
        given = np.asarray(value, np.float64)
        if self.log:
            part = np.log(np.maximum(given, self.low) / self.low) / math.log(self.high / self.low)
        else:
            part = (given - self.low) / (self.high - self.low)
        return self._begin + part * (self._end - self._begin)

    def ticks(self) -> list[float]:
        """Return round values in the range, four to nine."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [part * 10.0**power for power in powers for part in (1, 2, 5)]
            inside = [value for value in found if self.low <= value <= self.high]
            return [value for value in inside if f"{value:.0e}"[0] == "1"] if len(inside) > 9 else inside
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next(part for part in (1, 2, 5, 10) if (self.high - self.low) / (part * step) <= 8)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def chart(
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    *,
    title: str,
    limit: tuple[str, float] | None = None,
    marks: Sequence[float] = (),
    area: bool = False,
    height: int = HEIGHT,
) -> str:
    """Return a chart.

    Parameters
    ----------
    lines : sequence of Line
        What is drawn, each with a dash, a marker and a colour of its own; a known policy has that of every figure.
    x, y : Axis
        The axes.
    title : str
        What it shows, for screen readers.
    limit : (str, float), optional
        A level of y that is drawn across, with its name.
    marks : sequence of float
        Values of x at which a tick stands above the chart.
    area : bool
        Fill below the lines.
    height : int
        Of the whole, in the units of the viewBox.

    """
    names = [line.name for line in lines]
    named = _ROW * _rows(names)
    height += max(0, named - _ROW)  # further rows of the legend take nothing from the chart
    legend = named + (STRIP if len(marks) else 0)
    across = _Scale(x, [line.x for line in lines], LEFT, WIDTH - RIGHT)
    levels = [line.y for line in lines] + ([[limit[1]]] if limit else [])
    up = _Scale(y, levels, height - BOTTOM, TOP + legend)
    parts = [_grid(across, up, x, y, height=height, top=TOP + legend)]
    looks = styles(names)
    for index, line in enumerate(lines):
        colour = looks[line.name][0]
        points = _thinned(across.at(line.x), up.at(line.y), steps=line.steps)
        dash = DASHES[index % len(DASHES)]
        for run in points:
            if area:
                bottom = f"{run[-1][0]:.1f},{height - BOTTOM} {run[0][0]:.1f},{height - BOTTOM}"
                parts.append(f'<polygon points="{_path(run)} {bottom}" fill="{colour}" fill-opacity="0.25"/>')
            parts.append(
                f'<polyline points="{_path(run)}" fill="none" stroke="{colour}" stroke-width="1.8"'
                f' stroke-dasharray="{dash}"/>'
            )
        if len(lines) > 1:
            known = [point for run in points for point in run]
            few = known[:: max(1, len(known) // 6)] if len(known) > 12 else known
            parts += [_mark(MARKS[index % len(MARKS)], *point, colour) for point in few]
            parts.append(_legend(index, names, colour, dash))
    if limit is not None:
        level = float(up.at(limit[1]))
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{level:.1f}" y2="{level:.1f}" class="limit"/>'
            f'<text x="{WIDTH - RIGHT}" y="{level - 4:.1f}" text-anchor="end" class="small">{escape(limit[0])}</text>'
        )
    places = sorted({round(float(across.at(value)), 1) for value in marks})
    under = TOP + legend - STRIP
    parts += [f'<line x1="{at}" x2="{at}" y1="{under}" y2="{under + 9}" class="mark"/>' for at in places]
    return _svg(title, height, parts)


def bars(values: dict[str, dict[str, float]], *, title: str, unit: str) -> str:
    """Return horizontal bars: for each label one a name, the number written beside it.

    Parameters
    ----------
    values : dict of str to (dict of str to float)
        By label, by name.
    title : str
        What it shows, for screen readers.
    unit : str
        Of the values.

    """
    names = list(dict.fromkeys(name for row in values.values() for name in row))
    looks = styles(names)
    most = max((value for row in values.values() for value in row.values()), default=0.0) or 1.0
    left, row_height = 190, 17
    top = float(TOP + _ROW * _rows(names))
    parts = [_legend(index, names, looks[name][0], None) for index, name in enumerate(names)] if len(names) > 1 else []
    for label, row in values.items():
        middle = top + row_height * len(row) / 2 + 4
        parts.append(f'<text x="{left - 8}" y="{middle:.1f}" text-anchor="end">{escape(label)}</text>')
        for name, value in row.items():
            width = max(0.0, value / most * (WIDTH - left - 100))
            fill = _hatched(names.index(name), looks[name][0])
            parts.append(
                f'<rect x="{left}" y="{top + 2:.1f}" width="{width:.1f}" height="{row_height - 4}" {fill}/>'
                f'<text x="{left + width + 6:.1f}" y="{top + row_height - 4:.1f}" class="small">{number(value)}'
                f"{escape(f' {unit}' if unit else '')}</text>"
            )
            top += row_height
        top += 8
    return _svg(title, int(top) + 6, parts)


def number(value: float) -> str:
    """Return a number as the page shows it."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _thinned(x: Floats, y: Floats, *, steps: bool) -> list[list[tuple[float, float]]]:
    """Return the stretches of a line without gaps, each of at most `MOST_POINTS`; of steps the highest in each part."""
    runs: list[list[tuple[float, float]]] = [[]]
    if len(x) > MOST_POINTS:
        starts = np.unique(np.searchsorted(x, np.linspace(x[0], x[-1], MOST_POINTS)))
        y = np.minimum.reduceat(y, starts) if steps else y[starts]  # the least place is the highest value
        x = x[starts]
    for at, level in zip(x.tolist(), y.tolist(), strict=True):
        if math.isfinite(level):
            if steps and runs[-1]:
                runs[-1].append((at, runs[-1][-1][1]))
            runs[-1].append((at, level))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _path(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _grid(across: _Scale, up: _Scale, x: Axis, y: Axis, *, height: int, top: int) -> str:
    parts = []
    for value in up.ticks():
        place = float(up.at(value))
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}" class="grid"/>'
            f'<text x="{LEFT - 7}" y="{place + 4:.1f}" text-anchor="end">{number(value)}</text>'
        )
    for value in across.ticks():
        place = float(across.at(value))
        parts.append(
            f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{height - BOTTOM}" y2="{height - BOTTOM + 4}" class="axis"/>'
            f'<text x="{place:.1f}" y="{height - BOTTOM + 17}" text-anchor="middle">{number(value)}</text>'
        )
    bottom, middle = height - BOTTOM, (height - BOTTOM + top) / 2
    parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}" class="axis"/>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{height - 8}" text-anchor="middle">{escape(x.label)}</text>'
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(y.label)}</text>'
    )
    return "".join(parts)


def _columns(names: Sequence[str]) -> int:
    """Return the number of columns of a legend: one for each name, or as many as the longest name allows."""
    room = (WIDTH - LEFT - RIGHT) // (44 + _LETTER * max(map(len, names), default=0))
    return max(1, min(len(names), room))


def _rows(names: Sequence[str]) -> int:
    return math.ceil(len(names) / _columns(names)) if len(names) > 1 else 0


def _legend(index: int, names: Sequence[str], colour: str, dash: str | None) -> str:
    row, column = divmod(index, _columns(names))
    at = LEFT + column * (WIDTH - LEFT - RIGHT) / _columns(names)
    top = TOP + _ROW * row
    if dash is not None:
        sample = (
            f'<line x1="{at:.1f}" x2="{at + 30:.1f}" y1="{top - 2}" y2="{top - 2}" stroke="{colour}"'
            f' stroke-width="1.8" stroke-dasharray="{dash}"/>'
            f"{_mark(MARKS[index % len(MARKS)], at + 15, top - 2, colour)}"
        )
    else:
        sample = f'<rect x="{at:.1f}" y="{top - 9}" width="24" height="12" {_hatched(index, colour)}/>'
    return f'{sample}<text x="{at + 36:.1f}" y="{top + 2}">{escape(names[index])}</text>'


def _hatched(index: int, colour: str) -> str:
    """Return the fill of the bars of one name, distinguished by opacity and edge as well as by colour."""
    opacity = (0.9, 0.45, 0.15, 0.65, 0.3)[index % 5]
    return f'fill="{colour}" fill-opacity="{opacity}" stroke="{colour}" stroke-dasharray="{DASHES[index % 3]}"'


def _mark(kind: str, x: float, y: float, colour: str) -> str:
    shapes = {
        "circle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2"',
        "square": f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"',
        "triangle": f'<polygon points="{x:.1f},{y - 4:.1f} {x + 4:.1f},{y + 3:.1f} {x - 4:.1f},{y + 3:.1f}"',
        "cross": f'<path d="M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6"',
        "diamond": f'<polygon points="{x:.1f},{y - 4:.1f} {x + 4:.1f},{y:.1f} {x:.1f},{y + 4:.1f} {x - 4:.1f},{y:.1f}"',
        "bar": f'<path d="M{x:.1f} {y - 4:.1f}v8"',
        "ring": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill-opacity="0"',
    }
    return f'{shapes[kind]} fill="{colour}" stroke="{colour}"/>'


def _svg(title: str, height: int, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f"{''.join(parts)}</svg>"
    )
