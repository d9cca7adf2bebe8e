"""Kinds of values that options take. Values out of range are refused before any work, in the user's own words."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from wait_core._core import WaitCoreError

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_REQUESTS = 20_000_000
"""Requests of one simulation: a gigabyte of columns."""


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return the reader of an integer in a range."""
    expected = f"an integer of at least {least}" if most is None else f"an integer from {least} to {most:,}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise _refused(text, expected) from None
        if value < least or (most is not None and value > most):
            raise _refused(text, expected)
        return value

    return read


def whole_or(word: str, least: int, most: int) -> Callable[[str], int | str]:
    """Return the reader of an integer in a range, or of a word."""
    number = whole(least, most)

    def read(text: str) -> int | str:
        if text == word:
            return text
        try:
            return number(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{error}, or {word}") from None

    return read


def real(expected: str, accepts: Callable[[float], bool]) -> Callable[[str], float]:
    """Return the reader of a number that satisfies `expected`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise _refused(text, expected) from None
        if math.isnan(value) or not accepts(value):
            raise _refused(text, expected)
        return value

    return read


def _refused(text: str, expected: str) -> argparse.ArgumentTypeError:
    shown = text if len(text) <= 60 else f"{text[:60]}…"
    return argparse.ArgumentTypeError(f"{shown!r} is not {expected}")


seed = whole(0, 2**64 - 1)
count = whole(1, 2**32 - 1)
requests = whole(1, MOST_REQUESTS)
blocks = whole(1, 2**30)
positive = real("a number above 0", lambda value: 0 < value < math.inf)
bandwidth = real("a number above 0, or inf", lambda value: value > 0)
non_negative = real("a number of at least 0", lambda value: 0 <= value < math.inf)
rate = real(
    "a rate from 1e-6 to 1e9 requests/s (inf: all at once)", lambda value: 1e-6 <= value <= 1e9 or value == math.inf
)
finite_rate = real("a rate from 1e-6 to 1e9 requests/s", lambda value: 1e-6 <= value <= 1e9)
seconds = real("a time from 0 to 1e9 s", lambda value: 0 <= value <= 1e9)
milliseconds = real("a time above 0 in ms", lambda value: 0 < value < math.inf)
probability = real("a probability strictly between 0 and 1", lambda value: 0 < value < 1)
share = real("a share above 0, at most 1", lambda value: 0 < value <= 1)
jitter = real("a relative deviation from 0 to 1", lambda value: 0 <= value <= 1)


def request_type(text: str) -> tuple[int, int, float]:
    """Read PROMPT:OUTPUT:RATE."""
    expected = "PROMPT:OUTPUT:RATE, as 512:20:10.5: tokens, tokens, requests/s"
    try:
        prompt, output, rate_text = text.split(":")
        made = int(prompt), int(output), float(rate_text)
    except ValueError:
        raise _refused(text, expected) from None
    if min(made[:2]) < 1 or max(made[:2]) >= 2**30 or not (made[2] == 0 or 1e-6 <= made[2] <= 1e9):
        raise _refused(text, expected)
    return made


class Goodput(argparse.Action):
    """`--goodput ttft:2000 tpot:100`, as in `vllm bench serve`: the two objectives in ms."""

    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        _option: str | None = None,
    ) -> None:
        """Set `slo_ttft` and `slo_tpot`."""
        assert isinstance(values, list)  # noqa: S101  nargs is "+"
        for text in values:
            name, colon, number = text.partition(":")
            if not colon or name not in {"ttft", "tpot"}:
                raise argparse.ArgumentError(self, f"{text!r} is not ttft:MS or tpot:MS, as ttft:2000 tpot:100")
            if getattr(namespace, f"slo_{name}") is not None:
                raise argparse.ArgumentError(self, f"{text!r}: {name} is given twice")
            try:
                setattr(namespace, f"slo_{name}", milliseconds(number))
            except argparse.ArgumentTypeError as error:
                raise argparse.ArgumentError(self, f"{name}: {error}") from None


def add_objective(group: argparse._ArgumentGroup, purpose: str) -> None:
    """Add the options for a service-level objective."""
    group.add_argument("--slo-ttft", type=milliseconds, metavar="MS", help=f"objective for the TTFT, ms: {purpose}")
    group.add_argument("--slo-tpot", type=milliseconds, metavar="MS", help="the same for the time per output token, ms")
    group.add_argument(
        "--goodput", nargs="+", action=Goodput, metavar="ttft:MS", help="both, as in vllm bench: ttft:2000 tpot:100"
    )


OUTPUTS = ("output", "save_result", "report", "picture")
"""Options that name a file to write."""
INPUTS = ("dataset_path", "config", "log", "logs", "file")
"""Options and arguments that name files to read."""


def check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse a folder, and a file that is named twice, if it would be written: one output would replace the other.

    Raises
    ------
    WaitCoreError
        By symbolic links, hard links or relative paths it may have two names. Devices and pipes can be shared.

    """
    seen: dict[object, str] = {}
    for name in (*INPUTS, *OUTPUTS):
        given = getattr(arguments, name, None)
        for path in given if isinstance(given, list) else [] if given is None else [given]:
            option = "FILE" if name in {"log", "logs", "file"} else f"--{name.replace('_', '-')}"
            if name in OUTPUTS and Path(path).is_dir():
                raise WaitCoreError(f"{option} {path}: is a directory")
            exists = Path(path).exists()
            if exists and not Path(path).is_file():
                continue
            status = Path(path).stat() if exists else None
            file = os.path.realpath(path) if status is None else (status.st_dev, status.st_ino)
            if name in OUTPUTS and file in seen:
                raise WaitCoreError(f"{option} {path}: the same file as {seen[file]}")
            seen.setdefault(file, f"{option} {path}")
