"""Every block of code on the pages runs, prints what the page says, or says why not: see documents.py."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import PAGES, ROOT, Block, all_blocks, blocks
from test_golden import steps

from wait_core.cli import main
from wait_core.cli.app import parser_of

CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
BLOCKS = all_blocks()
SLOW = {"planning.md", "hardware.md"}
RUN_HERE = [
    pytest.param(page, marks=[pytest.mark.slow] if page.name in SLOW else [])
    for page in PAGES
    if any(block.run_by is None and block.not_run is None for block in blocks(page))
]


def name(value: Any) -> str:
    if isinstance(value, Block):
        return f"{name(value.page)}:{value.line}"
    return Path(value).relative_to(ROOT).as_posix()


@pytest.fixture
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the files that the pages name: a trace, and a step log."""
    monkeypatch.chdir(tmp_path)
    drawn = np.random.default_rng(0)
    rows = [
        f"2023-11-16 18:{second // 60:02}:{second % 60:02}.0,{drawn.integers(20, 900)},{drawn.integers(2, 90)}"
        for second in range(240)
    ]
    for file in ("azure.csv", "trace.csv"):
        Path(file).write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows, ""]))
    steps(Path("steps.jsonl"))


def run(block: Block, names: dict[str, Any]) -> str:
    """Run a block and return what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        if block.language == "python":
            code = "\n" * (block.line - 1) + block.text  # so that an error has the line of the page
            exec(compile(code, str(block.page), "exec"), names)  # noqa: S102  it is what a reader would do
        for command in block.commands:
            assert command.startswith("wait-core "), f"{name(block)}: nothing runs this, mark it: {command}"
            argv = shlex.split(command)[1:]
            if argv[0] != "doctor":  # of a server: tests/test_doctor.py
                assert main(argv) == 0, command
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


@pytest.mark.usefixtures("_files")
@pytest.mark.parametrize("page", RUN_HERE, ids=name)
def test_a_page_runs_and_prints_what_it_shows(page: Path) -> None:
    names: dict[str, Any] = {}
    printed = ""
    for block in blocks(page):
        if block.run_by is not None or block.not_run is not None:
            continue
        if block.language == "text":
            assert block.text in printed, name(block)
        else:
            printed = run(block, names)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.run_by is not None], ids=name)
def test_what_another_file_runs_is_in_it(block: Block) -> None:
    if block.run_by == ".ci/run":
        for command in block.commands:
            assert command in CI
    else:
        assert block.page.name in (ROOT / str(block.run_by)).read_text(encoding="utf-8")


def test_ci_runs_the_first_commands_of_the_readme_and_stops_where_one_fails() -> None:
    first, second = (block.commands[0] for block in blocks(ROOT / "README.md") if block.run_by == ".ci/run")
    assert "wait-core demo" in first
    assert "pytest" in second
    for command in (first, second):
        assert f"{command} || exit" in CI.splitlines()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pages_install_from_the_repository(page: Path) -> None:
    """No index has the package yet, so its name alone installs nothing, or something else."""
    assert not re.findall(r"pip install [^\n`&;#]*\bwait-core\b", page.read_text(encoding="utf-8"))


def test_every_block_is_known() -> None:
    assert len(BLOCKS) > 30
    for block in BLOCKS:
        assert block.language in {"python", "sh", "text"}, name(block)
        assert block.not_run is None or len(block.not_run) > 5, name(block)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count("```") == 2 * len(blocks(page)), f"{page}: a fence that is not one"
        marks = re.findall(r"^<!-- (?:run|not run).*$", text, re.MULTILINE)
        assert len(marks) == sum(b.run_by is not None or b.not_run is not None for b in blocks(page)), page
        # Code by indentation could not say what it is.
        assert not re.findall(r"^\n {4}(?:\$|wait-core|python|pip|vllm|cargo) .*", text, re.MULTILINE), page


@pytest.mark.parametrize("block", [b for b in BLOCKS if "wait-core " in b.text and b.language == "sh"], ids=name)
def test_a_command_that_a_page_shows_is_one(block: Block) -> None:
    """Its options exist and take these values, whether it is run or not."""
    for command in block.commands:
        if command.startswith("wait-core "):
            argv = shlex.split(command)[1:]
            assert parser_of(argv).parse_args(argv).run is not None


def scripts() -> list[tuple[str, str]]:
    """Return every call of a script of the repository that a page shows, in a block or in a sentence."""
    found = []
    for page in PAGES:
        calls = re.findall(
            r"python ((?:bench|scripts)/\w+\.py(?: [^`|#]*?)?)(?=[`|\n#])", page.read_text(encoding="utf-8")
        )
        found += [(call.strip(), name(page)) for call in calls if "NAME" not in call]
    return sorted(set(found))


@pytest.mark.parametrize(("call", "page"), scripts())
def test_a_script_that_a_page_names_has_its_options(call: str, page: str) -> None:
    script = call.split(maxsplit=1)[0]
    shared = ROOT / "bench" / "contract.py"
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / script, shared))
    for option in re.findall(r"(?<!\S)--[\w-]+", call):
        written = {f'"{option}"', f"{option[2:].replace('-', '_')}="}
        assert any(each in text for each in written), f"{page}: {script} has no {option}"
