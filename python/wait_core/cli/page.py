"""The report that a command writes beside its text: one page of HTML."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import IO, TYPE_CHECKING

from wait_core.files import replacing
from wait_core.report.html import check_page

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a self-contained page of HTML")


@contextlib.contextmanager
def report_file(arguments: argparse.Namespace) -> Iterator[IO[str] | None]:
    """Yield the file for the page, which is put in place when the block succeeds; None if none is requested.

    Entered before the work starts, so that a page that cannot be made or written is refused early.

    Raises
    ------
    WaitCoreError
        If it cannot be made.
    OSError
        If it cannot be written.

    """
    if arguments.report is None:
        yield None
        return
    check_page()
    with replacing(arguments.report) as file:
        yield file


def reproduce(arguments: argparse.Namespace) -> str:
    """Return the given command line, quoted for a shell."""
    return shlex.join(["wait-core", *arguments.argv])


def say(arguments: argparse.Namespace) -> None:
    """Print where the page is, unless a program reads the output."""
    if arguments.report is not None and not getattr(arguments, "json", False) and not getattr(arguments, "csv", False):
        print(f"report: {arguments.report}")
