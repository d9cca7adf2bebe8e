"""`replay`: run a decision log through the core again and compare the decisions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wait_core._core import Scheduler, WaitCoreError, __version__
from wait_core.checked import checked
from wait_core.files import FileError, Place, lines, parsed, shown
from wait_core.logs.decision_log import FORMAT, VERSION, decision

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from wait_core._core import Plan


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The result of a replay.

    Attributes
    ----------
    iterations : int
        Plans compared, the one that differs included.
    requests : int
        Requests added, refused ones not counted.
    line : int or None
        Line of the first plan that differs; None if all are the same.
    logged, decided : dict
        The first plan that differs, as logged and as decided now.
    notes : tuple of str
        Remarks about the log.

    """

    iterations: int
    requests: int
    line: int | None
    logged: dict[str, Any]
    decided: dict[str, Any]
    notes: tuple[str, ...]


@checked
def replay(path: str | os.PathLike[str], watch: Callable[[int, Scheduler, Plan], object] | None = None) -> Replay:
    """Run a decision log through the core, up to the first plan that differs.

    Parameters
    ----------
    path : path
        The log.
    watch : callable, optional
        Called after each plan with its time in ns, the core and the plan.

    Raises
    ------
    FileError
        If the file is not a decision log, or one of another version; the message names file and line.
    OSError
        If it cannot be opened.

    """
    place = Place(Path(path))
    core: Scheduler | None = None
    iterations = requests = 0
    notes: list[str] = []
    for event in events(place, notes):
        if "format" in event:
            core = _core(event, place, notes)
            continue
        if core is None:
            raise place.problem(f"the header is missing: no {FORMAT}")
        try:
            if "plan" in event:
                iterations += 1
                plan = core.plan(event["plan"])
                decided = {"plan": event["plan"]} | decision(plan)
                if watch is not None:
                    watch(event["plan"], core, plan)
                if decided != event:
                    return Replay(
                        iterations=iterations,
                        requests=requests,
                        line=place.line,
                        logged=event,
                        decided=decided,
                        notes=tuple(notes),
                    )
            else:
                requests += _apply(core, event)
        except (KeyError, TypeError, ValueError) as error:
            raise place.problem(f"{shown(event)}: {error}") from error
    if core is None:
        raise FileError(place.path, f"not a decision log: no line says {FORMAT}")
    return Replay(iterations=iterations, requests=requests, line=None, logged={}, decided={}, notes=tuple(notes))


def events(place: Place, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the events, each at `place`; to `notes` go a last line that was cut off and the notice of an early end."""
    for text in lines(place):
        try:
            event = parsed(text, place)
        except FileError:
            if text.endswith("\n"):
                raise
            notes.append(f"line {place.line} is cut off")
            return
        if not isinstance(event, dict):
            raise place.error(None, event, "a JSON object")
        if "stop" in event:
            stop = event["stop"]
            notes.append(f"the log ends early: {stop[:60] if isinstance(stop, str) else shown(stop)}")
        else:
            yield event


def _core(header: dict[str, Any], place: Place, notes: list[str]) -> Scheduler:
    if header["format"] != FORMAT or header.get("version") != VERSION:
        found = f"{shown(header['format'])} version {shown(header.get('version'))}"
        raise place.problem(f"{found} is not supported")
    if header.get("wait_core") != __version__:
        notes.append(f"decided by wait-core {shown(header.get('wait_core'))}, replayed by {__version__}")
    settings = header.get("settings")
    if not isinstance(settings, dict):
        raise place.error("settings", settings, "a JSON object")
    try:
        return Scheduler(**settings)
    except (TypeError, ValueError) as error:
        raise place.problem(f"settings: {error}") from error


def _apply(core: Scheduler, event: dict[str, Any]) -> int:
    """Repeat a call that makes no decision; returns the number of requests added."""
    if "add" in event:
        properties = {name: value for name, value in event.items() if name not in {"add", "refused"}}
        try:
            core.add(event["add"], **properties)
        except WaitCoreError:
            if not event.get("refused"):
                raise
            return 0
        if event.get("refused"):
            raise ValueError(f"request {event['add']} was refused when logged and is accepted now")
        return 1
    if "complete" in event:
        given = dict(event["complete"])
        names = ("progress", "receiving", "hits")
        rows: dict[str, Any] = {name: [tuple(row) for row in given.pop(name, [])] for name in names}
        core.complete(free_blocks=given.pop("free", None), **rows, **given)
    elif "abort" in event:
        core.abort(event["abort"])
    elif "restore" in event:
        core.restore(event["restore"])
    elif "set_capacity" in event:
        core.set_capacity(event["set_capacity"])
    elif "set_paused" in event:
        core.set_paused(event["set_paused"])
    elif "reset_prefix_cache" in event:
        core.reset_prefix_cache()
    elif "drain" in event:
        core.drain()
    elif "end" not in event:
        raise ValueError("an event of no known kind")
    return 0
