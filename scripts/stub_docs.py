"""Copy the docstrings of the compiled core into its stub, so that an editor shows what `help` does.

    python scripts/stub_docs.py            # write python/wait_core/_core.pyi
    python scripts/stub_docs.py --check    # end with 1 where it is out of date

The doc comments in rust/py are the one place where they are written. The list of settings in `Scheduler`'s is left to
`wait_core.settings.types`.
"""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

from wait_core import _core

STUB = Path(__file__).resolve().parent.parent / "python" / "wait_core" / "_core.pyi"
SETTINGS = "\n\nParameters\n----------\n"


def documented(source: str) -> str:
    """Return the stub with the docstrings of today."""
    lines = source.splitlines()
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    owners = {id(child): node.name for node in nodes if isinstance(node, ast.ClassDef) for child in node.body}
    # From the end, as each docstring moves what follows it; a method before the class that begins with it.
    for node in sorted(nodes, key=lambda node: (_begin(node), isinstance(node, ast.FunctionDef)), reverse=True):
        doc = docstring(node.name, owners.get(id(node)))
        if doc is None:
            continue
        first, indent = node.body[0], " " * (node.col_offset + 4)
        text = [f'{indent}"""{doc[0]}', *(f"{indent}{line}".rstrip() for line in doc[1:])]
        text = [f'{text[0]}"""'] if len(text) == 1 else [*text, f'{indent}"""']
        begin = end = _begin(node) - 1
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):  # "..." or the docstring of before
            end = first.end_lineno or end
            if lines[begin].endswith(": ..."):  # on the line of the signature
                lines[begin] = lines[begin].removesuffix(" ...")
                begin = end = begin + 1
        lines[begin:end] = text
    made = "\n".join(lines) + "\n"
    return subprocess.run(["ruff", "format", "--stdin-filename", "_core.pyi", "-"],  # noqa: S607
                          input=made, capture_output=True, text=True, check=True).stdout  # fmt: skip


def _begin(node: ast.FunctionDef | ast.ClassDef) -> int:
    """Return the line on which the body begins, or what decorates its first method."""
    first = node.body[0]
    if isinstance(first, ast.FunctionDef) and first.decorator_list:
        return first.decorator_list[0].lineno
    return first.lineno


def docstring(name: str, owner: str | None) -> list[str] | None:
    """Return the lines of a docstring of the core; None for special methods and where there is none."""
    if name.startswith("__"):
        return None
    of: Any = _core if owner is None else getattr(_core, owner)
    doc = inspect.getdoc(inspect.getattr_static(of, name))
    return None if not doc else doc.split(SETTINGS)[0].strip().replace("\\", "\\\\").splitlines()


def main(arguments: list[str]) -> int:
    """Write or check it."""
    source = STUB.read_text(encoding="utf-8")
    made = documented(source)
    if made != source and "--check" not in arguments:
        STUB.write_text(made, encoding="utf-8")
    return int(made != source and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
