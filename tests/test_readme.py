"""The README's commands are those that CI runs."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def commands(section: str) -> list[str]:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    body = readme.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [line for block in re.findall(r"```sh\n(.*?)```", body, re.DOTALL) for line in block.splitlines()]


def test_ci_runs_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    first, second = commands("Try it")
    assert "wait-core demo" in first
    assert "pytest" in second
    for command in (first, second):
        # The script stops where a command fails.
        assert f"{command} || exit" in script


def test_the_readme_opens_with_five_lines() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# wait-core"
    assert lines[1] == ""
    assert all(lines[2:7])
    assert lines[7] == ""
