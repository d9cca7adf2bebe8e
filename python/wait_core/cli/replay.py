"""`wait-core replay`: run a decision log through the core again and compare the decisions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wait_core._core import Scheduler, WaitCoreError, __version__
from wait_core.decision_log import FORMAT, VERSION, decision

if TYPE_CHECKING:
    import argparse
    import os
    from collections.abc import Iterator


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What came of it.

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
        What else there is to know of the log.

    """

    iterations: int
    requests: int
    line: int | None
    logged: dict[str, Any]
    decided: dict[str, Any]
    notes: tuple[str, ...]


def replay(path: str | os.PathLike[str]) -> Replay:
    """Run a decision log through the core, up to the first plan that differs.

    Raises
    ------
    WaitCoreError
        If the file is no decision log, or one of another version; the message names file and line.
    OSError
        If it cannot be opened.

    """
    file = Path(path)
    core: Scheduler | None = None
    iterations = requests = 0
    notes: list[str] = []
    for line, event in events(file, notes):
        if "format" in event:
            core = _core(event, file, line, notes)
            continue
        if core is None:
            raise WaitCoreError(f"{file}:{line}: the header is missing: no {FORMAT}")
        try:
            if "plan" in event:
                iterations += 1
                decided = {"plan": event["plan"]} | decision(core.plan(event["plan"]))
                if decided != event:
                    return Replay(
                        iterations=iterations,
                        requests=requests,
                        line=line,
                        logged=event,
                        decided=decided,
                        notes=tuple(notes),
                    )
            else:
                requests += _apply(core, event)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise WaitCoreError(f"{file}:{line}: {error!s}") from error
    return Replay(iterations=iterations, requests=requests, line=None, logged={}, decided={}, notes=tuple(notes))


def events(path: Path, notes: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, event); a last line that was cut off, and the notice of an early end, go to `notes`."""
    with path.open(encoding="utf-8") as lines:
        for number, text in enumerate(lines, start=1):
            try:
                event = json.loads(text)
            except ValueError as error:
                if not text.endswith("\n"):
                    notes.append(f"line {number} is cut off")
                    return
                raise WaitCoreError(f"{path}:{number}: not JSON ({error})") from None
            if not isinstance(event, dict):
                raise WaitCoreError(f"{path}:{number}: {event!r} is not an object")
            if "stop" in event:
                notes.append(f"the log ends early: {event['stop']}")
            else:
                yield number, event


def _core(header: dict[str, Any], file: Path, line: int, notes: list[str]) -> Scheduler:
    if header["format"] != FORMAT or header.get("version") != VERSION:
        raise WaitCoreError(f"{file}:{line}: {header['format']!r} version {header.get('version')!r} is not supported")
    if header.get("wait_core") != __version__:
        notes.append(f"decided by wait-core {header.get('wait_core')}, replayed by {__version__}")
    try:
        return Scheduler(**header["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise WaitCoreError(f"{file}:{line}: settings: {error}") from error


def _apply(core: Scheduler, event: dict[str, Any]) -> int:
    """Repeat a call that decides nothing; returns the number of requests added."""
    if "add" in event:
        properties = {name: value for name, value in event.items() if name not in {"add", "refused"}}
        try:
            core.add(event["add"], **properties)
        except WaitCoreError:
            if not event.get("refused"):
                raise
            return 0
        if event.get("refused"):
            raise ValueError(f"request {event['add']} was refused when logged and is not now")
        return 1
    if "complete" in event:
        told = dict(event["complete"])
        pairs: dict[str, Any] = {
            name: [(number, n) for number, n in told.pop(name, [])] for name in ("progress", "shared")
        }
        core.complete(free_blocks=told.pop("free", None), **pairs, **told)
    elif "abort" in event:
        core.abort(event["abort"])
    elif "restore" in event:
        core.restore(event["restore"])
    elif "end" not in event:
        raise ValueError(f"event {sorted(event)} is of no known kind")
    return 0


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("replay", help="run a decision log through the core again: same decisions?")
    parser.add_argument("log", type=Path, metavar="FILE", help="decision log (JSONL)")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    result = replay(arguments.log)
    for note in result.notes:
        print(f"note: {note}")
    if result.line is None:
        print(f"{result.iterations} iterations, {result.requests} requests: all decisions are the same")
        return 0
    print(f"iteration {result.iterations} ({arguments.log}:{result.line}) differs:")
    print(f"  logged  {json.dumps(result.logged)}")
    print(f"  decided {json.dumps(result.decided)}")
    return 1
