"""Printing: on any encoding and any width of terminal."""

from __future__ import annotations

import codecs
import io
import os
import shutil
import sys
import textwrap
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PLAIN = {"…": "...", "→": "->", "≥": ">=", "≤": "<=", "×": "x", "·": "*", "−": "-", "λ": "lambda", "η": "eta",
         "δ": "delta", "θ": "theta",
         "Δ": "Delta", "Σ": "sum", "µ": "u", "“": '"', "”": '"', "’": "'", "α": "alpha"}  # fmt: skip
"""How characters are written where the terminal's encoding lacks them."""

WIDEST = 100
"""Most columns of running text."""


def prepare() -> None:
    """Let every character be printed on standard output and error, whatever their encoding, even if they are closed."""
    codecs.register_error("wait_core", _in_plain)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell, as by `>&-`
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  open until the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="wait_core")


def _in_plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)  # noqa: S101  registered for writing
    text = error.object[error.start : error.end]
    made = "".join(PLAIN.get(sign) or unicodedata.normalize("NFKD", sign) for sign in text)
    return made.encode("ascii", "replace").decode(), error.end


def columns() -> int:
    """Return the width of the terminal; COLUMNS takes precedence, and piped output has a hundred columns."""
    return max(20, shutil.get_terminal_size((WIDEST, 24)).columns)


def definitions(entries: Iterable[tuple[str, str, str]]) -> str:
    """Return entries of (name, facts, text), wrapped to the terminal."""
    width = min(columns(), WIDEST)
    lines = []
    for name, facts, text in entries:
        lines.append(name)
        for paragraph in (facts, text):
            lines += textwrap.wrap(paragraph, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def print_notes(dropped: Mapping[str, int], notes: Sequence[str]) -> None:
    """Print, beside the results, what was left out of a trace and what was assumed about it."""
    from wait_core.report.tables import left_out  # noqa: PLC0415  slow to import, for what prints no notes

    for note in [*left_out(dropped), *notes]:
        print(f"note: {note}", file=sys.stderr)


def tabulated(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table; on a terminal that is too narrow for it, one block of lines a row, wrapped to it."""
    from wait_core.report.tables import cells, table  # noqa: PLC0415  slow to import, for what prints no table

    text = table(header, rows)
    # Piped output is read by programs or from a file: its layout does not depend on a terminal.
    if max(map(len, text.splitlines())) <= shutil.get_terminal_size((sys.maxsize, 24)).columns:
        return text
    name = max(map(len, header[1:]), default=0)
    lines = []
    for row in rows:
        first, *others = cells(row)
        lines += on_terminal(f"{header[0]} {first}".strip(), 2)
        for label, cell in zip(header[1:], others, strict=True):
            lines += on_terminal(f"  {label:{name}}  {cell}", name + 4)
    return "\n".join(lines)


def on_terminal(line: str, indent: int) -> list[str]:
    """Return a line in pieces that fit the terminal, those after the first indented by at most half of it."""
    width = max(20, shutil.get_terminal_size((sys.maxsize, 24)).columns)
    if len(line) <= width:
        return [line.rstrip()]
    space = " " * min(indent, width // 2)
    return textwrap.wrap(line, width, subsequent_indent=space, replace_whitespace=False) or [""]
