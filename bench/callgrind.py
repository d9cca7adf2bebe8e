"""Runs a program under callgrind, and reads the counts it writes: by function, by source file, and in total."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

NAME = re.compile(r"\((\d+)\)(?: (.*))?")


@dataclass
class Profile:
    """Instructions by function (callees included) and by source file (inlined code counts where it is written)."""

    functions: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """All instructions."""
        return self.files.total()


def profile(command: list[str]) -> Profile:
    """Run a command to its end and count its instructions.

    Raises
    ------
    RuntimeError
        If it fails.

    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        counted = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", *command]
        result = subprocess.run(counted, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise RuntimeError(f"{' '.join(counted)} failed:\n{result.stderr}")
        return parse(out.read_text(encoding="utf-8"))


def parse(text: str) -> Profile:
    """Read callgrind's format (https://valgrind.org/docs/manual/cl-format.html), one event a line, no jumps."""
    counts = Profile()
    names: dict[tuple[str, str], str] = {}

    def name(table: str, value: str) -> str:
        """Return a name; it is written out the first time, and its number alone after that."""
        match = NAME.fullmatch(value)
        if match is None:
            raise RuntimeError(f"not a name of callgrind's: {value}")
        number, written = match.groups()
        return names.setdefault((table, number), written or "")

    function = file = ""
    of_callee = False
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key == "fn":
            function = name("function", value)
        elif key in {"fl", "fi", "fe"}:
            file = name("file", value)
        elif key == "cfn":
            name("function", value)
        elif key in {"cfi", "cfl"}:
            name("file", value)
        elif key == "calls":
            of_callee = True
        elif line[:1] in set("0123456789+-*"):
            instructions = int(line.split()[1])
            counts.functions[function] += instructions
            if not of_callee:
                counts.files[file] += instructions
            of_callee = False
    return counts
