"""Which sub-command runs, and how it ends: the exit status, and at most one line of error."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from wait_core import WaitCoreError, __version__
from wait_core.cli import output
from wait_core.cli.arguments import check_outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "demo": "long outputs in overload on a simulated A100: where FCFS breaks",
    "plan": "is this traffic stable, with which thresholds, on how many GPUs?",
    "simulate": "one policy on one workload",
    "compare": "several policies on the same requests",
    "sweep": "many simulations: rates x policies x memory x seeds, resumable, on all cores",
    "trace": "what a trace contains: what was read, assumed and dropped, lengths, rates, shared prefixes",
    "settings": "every setting: type, range, unit, default, meaning, which policies use it",
    "hardware": "which GPUs and models are known, and their figures",
    "calibrate": "fit the iteration-time law of a GPU to a step log of vLLM",
    "doctor": "what is installed, does it fit, is the server's scheduler active?",
    "replay": "run a decision log through the core again: same decisions?",
}
"""The sub-commands, each in the module of its name, and the purpose of each."""

EXIT = """exit status:
  0    done
  1    the answer is no: replay found other decisions, no request could run, doctor found a fault
  2    an option, a file or a setting is refused; one line on standard error says which
  130  interrupted (Ctrl-C); no result was written
  141  the reader closed the pipe (| head)
"""


class Parser(argparse.ArgumentParser):
    """One line of error, as for everything else that is refused."""

    def __init__(self, **options: Any) -> None:
        plain = argparse.RawDescriptionHelpFormatter
        super().__init__(**{"allow_abbrev": False, "epilog": EXIT, "formatter_class": plain, **options})

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write help and version; argparse would ignore that they cannot be written."""
        (sys.stderr if file is None else file).write(message)

    def error(self, message: str) -> NoReturn:
        """Refuse the options."""
        raise WaitCoreError(f"{message.removeprefix('argument ')} ({self.prog} --help lists the options)")


def run(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    output.prepare()
    try:
        try:
            return _command(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return 141
    except (WaitCoreError, OSError, MemoryError) as error:
        print("wait-core:", _said(error), file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        return 2


def _drop_output() -> None:
    """Let what is still in the buffer go nowhere: the interpreter would try to write it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser_of(argv: Sequence[str]) -> Parser:
    """Return the parser of the command, with the options of the sub-command that `argv` begins with."""
    parser = Parser(
        prog="wait-core", description="Scheduling for LLM inference: predict, compare, plan, without a GPU."
    )
    parser.add_argument("--version", action="version", version=f"wait-core {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for name, purpose in COMMANDS.items():
        sub = commands.add_parser(
            name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}{'' if purpose.endswith('?') else '.'}"
        )
        if name in argv[:1]:
            # The others are not loaded: some import much of the package.
            importlib.import_module(f"wait_core.cli.{name}").add(sub)
    return parser


def _command(argv: Sequence[str]) -> int:
    arguments = parser_of(argv).parse_args(argv)
    arguments.argv = list(argv)  # a report says how to reproduce it
    check_outputs(arguments)
    return int(arguments.run(arguments))


def _said(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, OSError) and error.strerror:
        # Only what was open already has no name.
        return f"{'the output' if error.filename is None else os.fsdecode(error.filename)}: {error.strerror}"
    # PyO3 names the argument in a note.
    return " ".join("; ".join([str(error), *getattr(error, "__notes__", [])]).split())
