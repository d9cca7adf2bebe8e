"""The summary in the documentation, between two marks that the command looks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

BEGIN, END = "<!-- summary: written by bench/paper.py --docs -->", "<!-- end of summary -->"


def write(path: Path, summary: Sequence[Mapping[str, str]], preamble: str) -> None:
    """Replace what stands between the marks of `path`; rows of experiments that were not run stay as they are."""
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{path}: expected one {BEGIN!r} and one {END!r}")
    before, rest = text.split(BEGIN)
    old, after = rest.split(END)
    rows: dict[str, list[str]] = {}
    for line in old.splitlines():
        if line.startswith("| ") and not line.startswith("| experiment |"):
            rows.setdefault(line.split(" | ")[0].removeprefix("| "), []).append(line)
    rows |= {row["experiment"]: [] for row in summary}
    for row in summary:
        cells = (row[key].replace("|", "/") or "—" for key in ("experiment", "quantity", "paper", "ours"))
        rows[row["experiment"]].append(f"| {' | '.join(cells)} |")
    lines = [preamble, "", "| experiment | quantity | paper | ours |", "|---|---|---|---|"]
    lines += [line for group in rows.values() for line in group]
    path.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after, encoding="utf-8")
