"""The decision log: every call of a core and its answer, one JSON object a line, mostly integers.

The first line is the header: ``{"format": "wait-core-log", "version": 1, "wait_core": ..., "settings": {...}}``, and
again wherever a core with other settings takes over. Then, in the order of the calls:

- ``{"add": id, "prompt_tokens": n, "max_tokens": n, "output_tokens": n, "now_ns": n, ...}``, under the names that
  `Scheduler.add` takes, with ``"refused": 1`` where the core refused it; what was not given is absent;
- ``{"plan": ns, "admitted": [...], "resumed": [...], "prefill": [[id, tokens], ...], "paused": [...],
  "preempted": [...], "refused": [[id, reason, ns], ...], "decodes": n, "budget": n, "held": n, "wake": ns}``; empty
  lists are absent;
- ``{"complete": {"finished": [...], "preempted": [...], "refused": [...], "progress": [[id, kv], ...],
  "receiving": [[id, kv], ...], "received": [...], "hits": [[id, computed, shared], ...], "free": n, "step_ns": n,
  "iteration": n}}``;
- ``{"abort": id}``;
- ``{"set_capacity": blocks}``, ``{"set_paused": true or false}``, ``{"drain": true}``,
  ``{"reset_prefix_cache": true or false}``: whether anything was forgotten;
- ``{"restore": {...}}``: what another core had learned, as `Scheduler.learned` returns it;
- ``{"end": id, "tokens": n}``: what the host saw in the end, for reading the log as a trace;
- ``{"stop": reason}``: nothing was logged from here on.

Times are nanoseconds on the host's monotonic clock.
"""

from __future__ import annotations

import json
import logging
import operator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wait_core._core import WaitCoreError, __version__

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from wait_core._core import Plan, Scheduler

FORMAT = "wait-core-log"
VERSION = 1
FLUSH_NS = 1_000_000_000

logger = logging.getLogger(__name__)


class Log(Protocol):
    """The destination of events."""

    def write(self, event: dict[str, Any]) -> object:
        """Append one event."""

    def flush(self) -> None:
        """Write out what is buffered."""

    def flush_now_and_then(self, now_ns: int) -> None:
        """Write out what is buffered if that was not done for a second."""


class DecisionLog:
    """A file of decisions that ends at a size.

    Errors of the file system end the log, never the caller: they are logged once.

    Parameters
    ----------
    path : path
        File to write. One that exists is kept: a number is put before the suffix.
    max_bytes : int
        Size at which the log ends.

    Raises
    ------
    OSError
        If the file cannot be made.

    """

    def __init__(self, path: str | os.PathLike[str], *, max_bytes: int) -> None:
        self.path = _unused(Path(path))
        self._room = max_bytes
        self._file = self.path.open("x", encoding="utf-8", newline="\n")
        self._flushed_ns = 0

    @property
    def is_open(self) -> bool:
        """Whether it still takes events."""
        return not self._file.closed

    def write(self, event: dict[str, Any]) -> None:
        """Append one event."""
        if self._file.closed:
            return
        try:
            line = json.dumps(event, separators=(",", ":"), default=_plain) + "\n"
            self._room -= len(line)
            if self._room >= 0:
                self._file.write(line)
                return
            self._file.write('{"stop":"size"}\n')
            self._file.close()
            logger.warning("wait-core: the decision log %s has reached its size and ends", self.path)
        except (OSError, ValueError, TypeError) as error:
            self._end(error)

    def flush(self) -> None:
        """Write out what is buffered."""
        if not self._file.closed:
            try:
                self._file.flush()
            except OSError as error:
                self._end(error)

    def flush_now_and_then(self, now_ns: int) -> None:
        """Write out what is buffered if that was not done for a second."""
        if now_ns - self._flushed_ns > FLUSH_NS:
            self._flushed_ns = now_ns
            self.flush()

    def close(self) -> None:
        """Write out what is buffered and end the log."""
        try:
            self._file.close()
        except OSError as error:
            self._end(error)

    def _end(self, error: Exception) -> None:
        logger.error("wait-core: the decision log %s ends: %s", self.path, error)
        try:
            self._file.close()
        except OSError:
            # Closing writes out what is buffered, which may fail again; the file is closed all the same.
            logger.debug("closing %s failed too", self.path)


class KeptLog:
    """Events kept in memory, in place of a log."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def write(self, event: dict[str, Any]) -> None:
        """Keep `event`."""
        self.events.append(event)

    def flush(self) -> None:
        """Nothing is buffered."""

    def flush_now_and_then(self, now_ns: int) -> None:
        """Nothing is buffered."""


class LoggedCore:
    """A core whose calls are logged; what is not logged passes through."""

    def __init__(self, core: Scheduler, log: Log, **versions: str) -> None:
        self._core = core
        self._log = log
        log.write(
            {"format": FORMAT, "version": VERSION, "wait_core": __version__, **versions, "settings": core.settings}
        )

    def log_to(self, log: Log) -> None:
        """Log to `log` from now on."""
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def add(self, request_id: int, prompt_tokens: int, max_tokens: int | None = None, **properties: Any) -> None:
        """See `Scheduler.add`."""
        event = {"add": request_id, "prompt_tokens": prompt_tokens, "max_tokens": max_tokens, **properties}
        event = {name: value for name, value in event.items() if value is not None}
        try:
            self._core.add(request_id, prompt_tokens, max_tokens, **properties)
        except WaitCoreError:
            self._log.write(event | {"refused": 1})
            raise
        self._log.write(event)

    def plan(
        self,
        now_ns: int = 0,
        *,
        free_blocks: int | None = None,
        step_ns: int | None = None,
        iteration: int | None = None,
    ) -> Plan:
        """See `Scheduler.plan`; what is reported with it is an event of its own."""
        if free_blocks is not None or step_ns is not None:
            self.complete(free_blocks=free_blocks, step_ns=step_ns, iteration=iteration)
        plan = self._core.plan(now_ns)
        self._log.write({"plan": now_ns} | decision(plan))
        self._log.flush_now_and_then(now_ns)
        return plan

    def complete(
        self,
        *,
        finished: Sequence[int] = (),
        preempted: Sequence[int] = (),
        refused: Sequence[int] = (),
        progress: Sequence[tuple[int, int]] = (),
        receiving: Sequence[tuple[int, int]] = (),
        received: Sequence[int] = (),
        hits: Sequence[tuple[int, int, int]] = (),
        free_blocks: int | None = None,
        step_ns: int | None = None,
        iteration: int | None = None,
    ) -> None:
        """See `Scheduler.complete`."""
        report: dict[str, Any] = {"finished": finished, "preempted": preempted, "refused": refused}
        report |= {"progress": progress, "receiving": receiving, "received": received, "hits": hits}
        self._core.complete(**report, free_blocks=free_blocks, step_ns=step_ns, iteration=iteration)
        given: dict[str, Any] = {name: list(value) for name, value in report.items() if len(value)}
        if free_blocks is not None:
            given["free"] = free_blocks
        given |= {name: n for name, n in {"step_ns": step_ns, "iteration": iteration}.items() if n is not None}
        self._log.write({"complete": given})

    def abort(self, request_id: int) -> bool:
        """See `Scheduler.abort`."""
        known = self._core.abort(request_id)
        self._log.write({"abort": request_id})
        return known

    def restore(self, learned: Mapping[str, Any]) -> None:
        """See `Scheduler.restore`."""
        self._core.restore(learned)
        self._log.write({"restore": learned})

    def set_capacity(self, kv_blocks: int) -> None:
        """See `Scheduler.set_capacity`."""
        self._core.set_capacity(kv_blocks)
        self._log.write({"set_capacity": kv_blocks})

    def set_paused(self, paused: bool) -> None:
        """See `Scheduler.set_paused`."""
        self._core.set_paused(paused)
        self._log.write({"set_paused": paused})

    def reset_prefix_cache(self) -> bool:
        """See `Scheduler.reset_prefix_cache`."""
        done = self._core.reset_prefix_cache()
        self._log.write({"reset_prefix_cache": done})
        return done

    def drain(self) -> None:
        """See `Scheduler.drain`."""
        self._core.drain()
        self._log.write({"drain": True})

    def __len__(self) -> int:
        return len(self._core)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._core

    def ended(self, request_id: int, tokens: int) -> None:
        """Note how many output tokens a request had when it left, by the host's count."""
        self._log.write({"end": request_id, "tokens": tokens})
        if len(self._core) <= 1:
            self._log.flush()


def decision(plan: Plan) -> dict[str, Any]:
    """Return what `plan` decides, as the log writes it."""
    lists = {
        "admitted": plan.admitted,
        "resumed": plan.resumed,
        "preempted": plan.preempted,
        "prefill": [list(chunk) for chunk in plan.prefill],
        "paused": plan.paused,
        "refused": [list(refusal) for refusal in plan.refused],
    }
    decided: dict[str, Any] = {name: value for name, value in lists.items() if value}
    decided |= {"decodes": plan.num_decodes, "budget": plan.token_budget, "held": plan.held}
    if plan.wake_ns is not None:
        decided["wake"] = plan.wake_ns
    return decided


def _plain(value: Any) -> Any:
    """Return a number of numpy's, or an array of them, as JSON values: ids may be such."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return operator.index(value)


def _unused(path: Path) -> Path:
    candidate, number = path, 0
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}.{number}{path.suffix}")
    return candidate
