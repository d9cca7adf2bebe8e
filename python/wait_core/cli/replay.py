"""`wait-core replay`: whether the core still makes the decisions in a log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wait_core._core import WaitCoreError
from wait_core.cli.page import add_report, report_file, reproduce, say
from wait_core.files import shown
from wait_core.logs import replay
from wait_core.report.html import Replayed, page_of_replay, rendered

if TYPE_CHECKING:
    import argparse

LONGEST = 10_000
"""Most characters of a decision that are printed."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("log", type=Path, metavar="FILE", help="decision log (JSONL)")
    add_report(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    seen = Replayed()
    with report_file(arguments) as page:
        result = replay(arguments.log, seen.watch if page is not None else None)
        if page is not None and seen.at_ns:
            made = page_of_replay(arguments.log.name, result, seen, command=reproduce(arguments))
            page.write(rendered(made))
        elif page is not None:
            raise _empty(arguments.log)
    for note in result.notes:
        print(f"note: {note}")
    if result.iterations == 0:
        raise _empty(arguments.log)
    say(arguments)
    if result.line is None:
        print(f"{result.iterations} iterations, {result.requests} requests: all decisions are the same")
        return 0
    print(f"iteration {result.iterations} ({arguments.log}:{result.line}) differs:")
    print(f"  logged  {_line(result.logged)}")
    print(f"  decided {_line(result.decided)}")
    return 1


def _empty(log: Path) -> WaitCoreError:
    return WaitCoreError(f"{log}: it has no iteration, so there is nothing to compare")


def _line(event: dict[str, Any]) -> str:
    try:
        text = json.dumps(event)
    except RecursionError:  # of a log that was not written by a core
        return shown(event)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
