"""docs/tutorial: its code prints what the pages show; with_vllm/test_first_server.py has the server."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from wait_core.cli import main

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL = ROOT / "docs" / "tutorial"


def blocks(page: str) -> list[tuple[str, str]]:
    """Return language and text of the blocks of code of a page."""
    return re.findall(r"```(\w+)\n(.*?)```", (TUTORIAL / page).read_text(encoding="utf-8"), re.DOTALL)


def commands(page: str) -> list[str]:
    text = "".join(block for language, block in blocks(page) if language == "sh")
    return text.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize(("page", "shown"), [("first-plan.md", 3), ("first-embedding.md", 2)])
def test_a_page_shows_what_its_code_prints(page: str, shown: int, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    printed = ""
    seen = 0
    for language, block in blocks(page):
        if language == "python":
            exec(compile(block, page, "exec"), names)  # noqa: S102  it is what a reader would do
            printed = capsys.readouterr().out
        elif language == "text":
            # Cells of a table are filled up with spaces, which a page does not keep.
            assert block in "".join(f"{line.rstrip()}\n" for line in printed.splitlines())
            seen += 1
        else:
            for line in block.splitlines():
                if line.startswith("wait-core "):
                    assert main(shlex.split(line)[1:]) == 0
                    printed = capsys.readouterr().out
    assert seen == shown


def test_ci_runs_what_the_tutorial_installs() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for page in ("first-plan.md", "first-server.md"):
        for line in commands(page):
            if not line.startswith(("wait-core ", "vllm ", "curl ")):
                assert line in script, page
