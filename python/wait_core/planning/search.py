"""The least number that suffices."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def least(meets: Callable[[int], bool], low: int, most: int) -> int | None:
    """Return the least number from `low` to `most` that `meets`, which once true stays true; None if none does.

    It is looked for near `low` first: the steps from there double.
    """
    before, at, step = low - 1, low, 1
    while not meets(at):
        if at >= most:
            return None
        before, at, step = at, min(at + step, most), 2 * step
    while at - before > 1:
        middle = (before + at) // 2
        before, at = (before, middle) if meets(middle) else (middle, at)
    return at
