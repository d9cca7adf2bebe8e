"""A `Router` kept in step with a host that reports its replicas, their loads, and the end of each request.

Absent: the host (`wait_core.fleet.ray` is one), the sending, and the clock.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from wait_core._core import Choice, Router, WaitCoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wait_core.fleet.prompts import Asked

logger = logging.getLogger(__name__)

UNKNOWN = {"kv_blocks": 1000}
"""The description assumed for a replica that has not described itself, while none of the others has."""


class Dispatcher:
    """Routes the requests of one deployment.

    Parameters
    ----------
    router : str
        Name of the router, one of `wait_core.fleet.ROUTERS`.
    longest_hold : float
        Time after which a request that the router holds at the door is left to the host, s; not one that is late for
        `ttft_target`, which the host would send before those in time.
    settings
        Those of `Router`: `seed`, `stale_after`, `affinity_load`, `longest_queue`, `ttft_target`.

    Raises
    ------
    WaitCoreError
        Where the name is unknown or a value out of its range.
    """

    def __init__(self, router: str = "forecast", *, longest_hold: float = 30.0, **settings: Any) -> None:
        if not longest_hold >= 0:
            raise WaitCoreError(f"longest_hold = {longest_hold}: must be at least 0 s")
        self.router = Router(router, **settings)
        self._longest_hold_ns = longest_hold * 1e9
        self._said: dict[str, Mapping[str, Any]] = {}
        self._described: dict[str, Mapping[str, Any]] = {}
        self._longest: int | None = None
        self._sent: dict[str, str] = {}
        self._held_ns: dict[str, int] = {}
        self._late: set[str] = set()
        self._complained: set[str] = set()

    @property
    def block_size(self) -> int:
        """Tokens of a block, as last reported by the replicas; 16 while none has."""
        return int(next((each.get("block_size", 16) for each in self._described.values()), 16))

    def update(self, replicas: Mapping[str, object], now_ns: int) -> None:
        """Take the current replicas, and what each reports of itself: a report of `reports.Reporter`, or nothing.

        What cannot be read is logged once per replica and ignored.
        """
        for name in set(self.router.replicas).difference(replicas):
            self.remove(name)
        for name, said in replicas.items():
            if name in self._said and self._said[name] == said:
                continue
            self._said[name] = said if isinstance(said, dict) else {}
            try:
                self._hear(name, self._said[name], now_ns)
            except (WaitCoreError, KeyError, TypeError, ValueError) as error:
                if name not in self._complained:
                    logger.warning("replica %s sent an unusable report: %s", name, error)
                    self._complained.add(name)
        typical = next(iter(self._described.values()), UNKNOWN)
        for name in set(replicas).difference(self._described):
            self.router.add_replica(name, **typical)

    def _hear(self, name: str, said: Mapping[str, Any], now_ns: int) -> None:
        if "replica" in said and said["replica"] != self._described.get(name):
            self.router.add_replica(name, **said["replica"])
            self._described[name] = said["replica"]
            self._longest = said.get("longest")
        if "load" in said:
            # With a clock ahead of ours, a report must not seem to cover requests sent after it.
            self.router.report(name, min(int(said["at_ns"]), now_ns), said["load"])

    def remove(self, replica: str) -> None:
        """Forget a replica that is gone; the host notifies the callers of its requests."""
        for request in self.router.remove_replica(replica):
            self._sent.pop(request, None)
        for known in (self._said, self._described):
            known.pop(replica, None)
        self._complained.discard(replica)

    def knows(self, request: str) -> bool:
        """Whether a request is held or was sent, and has not ended."""
        return request in self._sent or request in self._held_ns

    @property
    def late(self) -> int:
        """Requests that are held and late for the target."""
        return len(self._late)

    def choose(self, request: str, asked: Asked | None, now_ns: int, *, arrived_ns: int | None = None) -> Choice | None:
        """Choose a replica for a request, and count it as sent there; None leaves the choice to the host.

        That is so for a request without a prompt, and for one that has been held too long. A choice without a replica
        holds the request: route it again later. `arrived_ns`: when it arrived, by default when it was first asked for.
        """
        if asked is None:
            return None
        most = asked.max_tokens
        if self._longest is not None:
            room = max(1, self._longest - asked.prompt_tokens)
            most = room if most is None else min(most, room)
        choice = self.router.route(
            request,
            now_ns,
            prompt_tokens=asked.prompt_tokens,
            max_tokens=most,
            block_hashes=asked.block_hashes,
            arrived_ns=arrived_ns,
        )
        if choice.replica is None:
            return self._held(request, choice, now_ns)
        self._leaves_door(request)
        self._sent[request] = choice.replica
        return choice

    def _held(self, request: str, choice: Choice, now_ns: int) -> Choice | None:
        self._sent.pop(request, None)
        since_ns = self._held_ns.setdefault(request, now_ns)
        if choice.hold == "late":
            self._late.add(request)
            return choice
        self._late.discard(request)
        if now_ns - since_ns <= self._longest_hold_ns:
            return choice
        self.router.finished(request, now_ns)  # the host sends it, and the door waits for it no longer
        return None

    def _leaves_door(self, request: str) -> bool:
        self._late.discard(request)
        return self._held_ns.pop(request, None) is not None

    def moved(self, request: str, replica: str, now_ns: int) -> None:
        """Record which replica has taken a request: if not the chosen one, it counts only in later reports."""
        if self._sent.get(request, replica) != replica:
            self.ended(request, now_ns)

    def ended(self, request: str, now_ns: int, *, replica: str | None = None) -> None:
        """Record that a request has ended, in whatever way, unless it is now on another replica than `replica`."""
        if replica is not None and self._sent.get(request, replica) != replica:
            return
        held = self._leaves_door(request)
        if self._sent.pop(request, None) is not None or held:
            self.router.finished(request, now_ns)
