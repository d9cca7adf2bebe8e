"""The watchdog: opens the gates when requests wait or pause and no token is scheduled for too long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.logger import init_logger
from vllm.v1.core.sched.interface import PauseState

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm.v1.core.sched.scheduler import Scheduler

    from wait_core.vllm.gated_queue import GatedQueue
    from wait_core.vllm.unready import Unready

logger = init_logger(f"vllm.{__name__}")  # vLLM configures the loggers under its own name only


class Watchdog:
    """`is_open` says whether vLLM is to schedule by itself, until tokens flow again, `quiet` that none do.

    Where they flow only while it is open, as for the last residents of a policy that waits for arrivals, it opens
    sooner each time, so that they do not crawl; it is as patient as ever once tokens flow without it.
    """

    def __init__(self, scheduler: Scheduler, queue: GatedQueue, unready: Unready) -> None:
        self._scheduler = scheduler
        self._queue = queue
        self._unready = unready
        self.is_open = False
        self.quiet = True
        self._quiet_since_ns: int | None = None
        self._patience = 1.0
        self._has_warned = False

    def progressed(self) -> None:
        """Note that tokens were scheduled: the gates close, and no look is due until a step has none."""
        self._quiet_since_ns = None
        self._patience = 0.5 * self._patience if self.is_open else 1.0
        self.is_open = self.quiet = False

    def look(self, now_ns: int, limit_s: float, why: Callable[[list[str]], str]) -> bool:
        """Return whether the gates open just now: some requests could run and none has for `limit_s`, 0 for ever.

        `why` explains those named. An engine that is idle or paused has none, and that time is not counted.
        """
        pause = self._scheduler.pause_state
        stuck = len(self._scheduler.running) if pause != PauseState.PAUSED_ALL else 0
        stuck += len(self._queue) - len(self._unready.kept) if pause == PauseState.UNPAUSED else 0
        if self._quiet_since_ns is None or not stuck:
            self._quiet_since_ns = now_ns if stuck else None
            self.is_open = False
            return False
        if self.is_open or not limit_s or now_ns - self._quiet_since_ns <= limit_s * 1e9 * self._patience:
            return False
        self.is_open = True
        # Once as a warning: a core that stalls again and again must not flood the log; the count tells.
        (logger.debug if self._has_warned else logger.warning)(
            "wait-core: %d requests wait or pause and no token has been scheduled for %.1f s; the gates open until "
            "tokens flow. First of those admitted, and of those queued: %s",
            stuck,
            limit_s,
            why([request.request_id for request in [*self._scheduler.running[:1], *list(self._queue)[:1]]]),
        )
        self._has_warned = True
        return True
