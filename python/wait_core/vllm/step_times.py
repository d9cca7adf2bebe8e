"""How long the steps of the engine take: from when a step could begin to when its output is in.

A step could begin when the one before it had ended, if the engine went on at once, else when it was scheduled: so the
time between, vLLM's own work, belongs to it as it does in serving, and a pause without requests does not. Several steps
may be under way (asynchronous scheduling, pipeline parallelism); they end in the order in which they were scheduled.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

PAUSE_NS = 2_000_000
"""An engine that schedules this long after its last output had nothing to do in between."""


class StepTimes(Generic[T]):
    """Times each step, and gives it back with what was said of it when it was scheduled."""

    def __init__(self) -> None:
        self._pending: deque[tuple[int, T]] = deque()  # scheduled at ns, what was said
        self._ended_ns = 0  # the last output was in
        self._handled_ns = 0  # and taken in by the scheduler

    def scheduled(self, at_ns: int, what: T) -> None:
        """Note a step that was scheduled from `at_ns` on."""
        self._pending.append((at_ns, what))

    def ended(self, at_ns: int) -> tuple[T, int] | None:
        """Return what was said of the oldest step, whose output is in, and its time in ns; None if there is none."""
        if not self._pending:
            return None
        scheduled_ns, what = self._pending.popleft()
        went_on = scheduled_ns - self._handled_ns < PAUSE_NS
        begun_ns = self._ended_ns if self._ended_ns and went_on else scheduled_ns
        self._ended_ns = at_ns
        return what, max(at_ns - begun_ns, 1)

    def handled(self, at_ns: int) -> None:
        """Note that the scheduler has taken in the output of the last step."""
        self._handled_ns = at_ns
