"""`wait-core replay`: whether the core decides today as a log says that it did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wait_core._core import WaitCoreError
from wait_core.files import shown
from wait_core.logs import replay

if TYPE_CHECKING:
    import argparse

LONGEST = 10_000
"""Characters of a decision that are printed."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("log", type=Path, metavar="FILE", help="decision log (JSONL)")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    result = replay(arguments.log)
    for note in result.notes:
        print(f"note: {note}")
    if result.iterations == 0:
        raise WaitCoreError(f"{arguments.log}: no iteration is logged in it, so there is nothing to compare")
    if result.line is None:
        print(f"{result.iterations} iterations, {result.requests} requests: all decisions are the same")
        return 0
    print(f"iteration {result.iterations} ({arguments.log}:{result.line}) differs:")
    print(f"  logged  {_line(result.logged)}")
    print(f"  decided {_line(result.decided)}")
    return 1


def _line(event: dict[str, Any]) -> str:
    try:
        text = json.dumps(event)
    except RecursionError:  # of a log that no core has written
        return shown(event)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
