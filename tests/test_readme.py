"""The README's commands are those that CI runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from wait_core.cli.app import parser_of

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


def test_the_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(program, "README.md", "exec"), names)  # noqa: S102  it is what a reader would do
    throughput, preemptions = capsys.readouterr().out.split()
    assert float(throughput) > 0
    assert int(preemptions) >= 0
    assert names["plan"].admitted == [1]


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def written_commands() -> list[tuple[str, str]]:
    """Return every `wait-core` command line that a document shows in a block, and the document."""
    found = []
    for path in documents():
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        lines = [line.strip() for line in text.splitlines()]
        found += [(line.split(" #")[0], path.name) for line in lines if line.startswith("wait-core ")]
    return found


@pytest.mark.parametrize(("line", "document"), written_commands())
def test_a_command_that_a_document_shows_is_one(line: str, document: str) -> None:
    """Its options exist and take these values: nothing is run."""
    argv = shlex.split(line)[1:]
    assert parser_of(argv).parse_args(argv).run is not None, document


def test_documents_show_commands() -> None:
    assert {document for _, document in written_commands()} >= {"README.md", "planning.md", "hardware.md", "vllm.md"}
