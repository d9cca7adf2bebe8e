"""What a replica reports of itself to routers elsewhere: a small dictionary that seldom changes.

Where every change is broadcast to all routers, figures are rounded, and repeated only when they differ or have grown
old. The time of a report is that of its figures, by the wall clock, which the machines of a fleet share.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

BUSY_NS = 1_000_000_000
"""Age at which a busy replica repeats its report although nothing has changed."""
IDLE_NS = 10_000_000_000
"""Likewise of an idle one: nothing happens there, so its last figures stay true until the next request."""
EXACT = 32
"""Counts up to here are reported exactly, larger ones to two significant digits."""


class Reporter:
    """Reports what one replica is and how busy it is.

    `replica` describes it by the arguments of `Router.add_replica`; `longest` is the most tokens that a request may
    hold, the model's context length.
    """

    def __init__(self, replica: Mapping[str, Any], *, longest: int | None = None) -> None:
        self._replica = dict(replica)
        self._longest = longest
        self._said: dict[str, Any] = {}

    def report(self, figures: Mapping[str, Any] | None, seen_ns: int, now_ns: int) -> dict[str, Any]:
        """Return the current report.

        `figures`: the newest of the engine, as received at `seen_ns`: ``load`` as `Scheduler.load` returns it, and
        ``iteration_time``, the law in force or None. Without figures only the description is reported, and routers
        judge the replica by what they have sent to it.
        """
        about: dict[str, Any] = {"replica": self._replica, "longest": self._longest}
        if figures is None:
            return about
        if (law := figures["iteration_time"]) is not None:
            about["replica"] = self._replica | {"iteration_time": _rounded(law, 3)}
        load = figures["load"]
        about["load"] = _rounded(load, 2)
        idle = not load["waiting"] and not load["residents"]
        about["at_ns"] = now_ns if idle else seen_ns
        before = self._said
        young = bool(before) and about["at_ns"] - before["at_ns"] < (IDLE_NS if idle else BUSY_NS)
        if not (young and all(before[name] == about[name] for name in ("replica", "load"))):
            self._said = about
        return self._said


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each, digits) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each, digits) for each in value]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return value
    if isinstance(value, int) and abs(value) <= EXACT:
        return value
    rounded = float(f"{value:.{digits - 1}e}")
    return int(rounded) if isinstance(value, int) else rounded
