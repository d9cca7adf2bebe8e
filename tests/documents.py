"""The blocks of code on the pages: README.md, CONTRIBUTING.md, docs.

A block runs where the tests run, unless a comment on the line before it says otherwise:

    <!-- run by FILE -->        each line is in .ci/run, or FILE is the test of this page
    <!-- not run: REASON -->    a test lacks what it needs; its commands must still exist
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(
    r"^(?:<!-- (?:run by (?P<file>\S+)|not run: (?P<reason>[^\n]+)) -->\n)?"
    r"```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of code.

    Attributes
    ----------
    page : Path
        Where it stands.
    line : int
        The first line of its code, from 1.
    language : str
        python, sh or text: what the block before it prints.
    text : str
        What is in it.
    run_by, not_run : str or None
        The file that runs it, or why none does; None for what the tests run here.

    """

    page: Path
    line: int
    language: str
    text: str
    run_by: str | None
    not_run: str | None

    @property
    def commands(self) -> list[str]:
        """The commands of a block of sh, continued lines in one, comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines() if self.language == "sh" else []
        return [re.split(r"\s+#\s", line)[0].strip() for line in lines if not line.startswith("#")]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in their order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page=page,
            line=text.count("\n", 0, match.start("text")) + 1,
            language=match["language"],
            text=match["text"],
            run_by=match["file"],
            not_run=match["reason"],
        )
        for match in FENCE.finditer(text)
    ]


def all_blocks() -> list[Block]:
    """Return the blocks of all pages."""
    return [block for page in PAGES for block in blocks(page)]
