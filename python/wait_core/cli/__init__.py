"""The `wait-core` command: one file a sub-command, its options and the wording of its results.

Deliberately absent: whatever a program would call too; that stands in the package that it is about.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from wait_core import __version__
from wait_core._core import WaitCoreError
from wait_core.cli import calibrate, compare, demo, hardware, plan, replay, simulate

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status (2 for refused input, 130 when interrupted)."""
    parser = argparse.ArgumentParser(
        prog="wait-core", description="Scheduling for LLM inference: predict, compare, plan, without a GPU."
    )
    parser.add_argument("--version", action="version", version=f"wait-core {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (demo, plan, simulate, compare, hardware, calibrate, replay):
        command.add(commands)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (WaitCoreError, OSError) as error:
        # PyO3 says in a note which argument it was.
        print("wait-core:", "; ".join([str(error), *getattr(error, "__notes__", [])]), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("wait-core: interrupted, nothing was written", file=sys.stderr)
        return 130
