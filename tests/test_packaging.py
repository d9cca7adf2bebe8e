"""The package: what it needs without extras, what its metadata say, and how large it is."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from wait_core import _core, files

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import absolute_links  # noqa: E402
import check_wheel  # noqa: E402

BLOCKED = """
import sys
for module in ("matplotlib", "scipy", "compression", "backports", "polars", "pandas", "pyarrow"):
    sys.modules[module] = None
from wait_core.cli import main
sys.exit(main(sys.argv[1:]))
"""


def bare(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command where no extra is installed."""
    command = [sys.executable, "-c", BLOCKED, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False, env=environment)


def test_the_extension_is_stripped_and_small() -> None:
    size = Path(str(_core.__file__)).stat().st_size
    assert size <= check_wheel.MOST_BYTES, f"{size:,} bytes: not built as pyproject.toml says?"


def test_the_check_of_wheels_finds_what_it_looks_for() -> None:
    assert check_wheel.problems_of_extension(b"\x00/rustc/59807616/library/std/src/io.rs\x00/cargo/registry/x.rs") == []
    for folder in (b"/root/.cargo/registry/x.rs", b"/home/runner/work/wait-core/x.rs", b"/Users/runner/.cargo/x"):
        (problem,) = check_wheel.problems_of_extension(b"a message" + folder + b"\x00")
        assert folder.decode() in problem
    assert "more than" in check_wheel.problems_of_extension(bytes(check_wheel.MOST_BYTES + 1))[0]
    poor = "Requires-Dist: numpy\nRequires-Dist: scipy>=1\nRequires-Dist: tqdm; extra == 'x'\n\n[a](docs/a.md)"
    found = check_wheel.problems_of_metadata(poor, released=True)
    for said in ("['numpy', 'scipy']", "Python 3.14", "Author", "Keywords", "Repository", "](docs/a.md)"):
        assert any(said in problem for problem in found), said


def test_the_metadata_of_the_installed_package_are_complete() -> None:
    text = importlib.metadata.distribution("wait-core").read_text("METADATA")
    assert text is not None
    assert check_wheel.problems_of_metadata(text, released=False) == []
    extras = set(importlib.metadata.metadata("wait-core").get_all("Provides-Extra") or ())
    assert extras == {
        "all", "arrow", "calibrate", "docs", "hardware", "plot", "polars", "ray", "report", "test", "vllm", "zstd",
    }  # fmt: skip


def test_a_release_names_its_repository_and_has_no_relative_links() -> None:
    repository = "https://github.com/owner/wait-core"
    readme = absolute_links.absolute((ROOT / "README.md").read_text(encoding="utf-8"), repository, "v9.9.9")
    assert f"]({repository}/blob/v9.9.9/docs/policies.md)" in readme
    assert check_wheel.RELATIVE_LINK.findall(readme) == []
    text = "![a](b.png) [c](#d) [e](https://f.org/g) [h](docs/i.md#j)"
    assert absolute_links.absolute(text, "R", "T") == (
        "![a](R/raw/T/b.png) [c](#d) [e](https://f.org/g) [h](R/blob/T/docs/i.md#j)"
    )
    pyproject = absolute_links.with_urls((ROOT / "pyproject.toml").read_text(encoding="utf-8"), repository, "v9.9.9")
    assert tomllib.loads(pyproject)["project"]["urls"]["Repository"] == repository


def test_the_release_is_locked_checked_and_needs_no_token() -> None:
    """The workflow cannot run here, but its essential parts can be checked."""
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    builds = re.findall(r"args: (--release.*)", workflow)
    assert len(builds) == 2
    assert all("--locked" in build for build in builds)
    assert workflow.count("scripts/check_wheel.py --released") == 2
    assert workflow.count("scripts/absolute_links.py") == 3
    assert set(re.findall(r"target: (\w+)", workflow)) == {"x86_64", "aarch64"}
    assert "uv publish --trusted-publishing always" in workflow
    assert "id-token: write" in workflow
    assert "secrets." not in workflow


def test_builds_of_the_source_are_locked_and_stripped() -> None:
    maturin = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["maturin"]
    assert maturin["locked"]
    assert maturin["strip"]


def test_the_demo_does_its_job_without_extras(tmp_path: Path) -> None:
    done = bare("demo", "--num-prompts", "300", cwd=tmp_path, PYTHONIOENCODING="utf-8")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = {line.split()[0]: line for line in lines if line.startswith(("vllm ", "wait ", "adaptive "))}
    assert set(rows) == {"vllm", "wait", "adaptive"}
    for row in rows.values():
        bars = re.fullmatch(r"\w+ +\|([ ▁▂▃▄▅▆▇█]+)\|", row)
        assert bars is not None, row
        assert "▁" in bars[1] or "▂" in bars[1], "it rises"
        assert "▇" in bars[1] or "█" in bars[1], "and fills the cache"
    assert lines[-1] == "for a picture as well: pip install '.[plot]' in the repository of wait-core"
    assert list(tmp_path.iterdir()) == []


def test_the_demo_prints_on_terminals_without_blocks(tmp_path: Path) -> None:
    done = bare("demo", "--num-prompts", "100", cwd=tmp_path, PYTHONIOENCODING="cp1252", COLUMNS="40")
    assert done.returncode == 0, done.stderr
    bars = [line for line in done.stdout.splitlines() if line.endswith("|")]
    assert len(bars) == 3
    assert all(len(line) <= 40 and line.isascii() for line in bars)


@pytest.mark.parametrize(
    "command",
    [
        ["simulate", "--policy", "adaptive", "--dataset-name", "p64d32", "--request-rate", "20", "--num-prompts", "50"],
        ["compare", "--dataset-name", "p64d32", "--request-rate", "20", "--num-prompts", "50"],
        ["plan", "--type", "64:32:5", "--num-prompts", "200", "--runs", "2"],
    ],
    ids=lambda command: command[0],
)
def test_the_other_commands_need_no_extra(command: list[str], tmp_path: Path) -> None:
    done = bare(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_picture_that_cannot_be_drawn_is_refused_before_the_work(tmp_path: Path) -> None:
    done = bare("demo", "--output", "a.png", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "wait-core: a picture needs matplotlib: pip install '.[plot]' in the repository of wait-core\n"
    )
    again = subprocess.run(
        [sys.executable, "-m", "wait_core.cli", "demo", "--output", "a.svg"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == "wait-core: a.svg: pictures are PNG files, and their names end in .png\n"
    assert list(tmp_path.iterdir()) == []


def test_the_security_page_states_the_bounds_that_hold() -> None:
    text = " ".join((ROOT / "SECURITY.md").read_text(encoding="utf-8").split())
    assert f"Lines end at {files.MAX_LINE >> 20} MiB, documents at {files.MAX_DOCUMENT >> 20} MiB" in text
    assert f"packed files at {files.MAX_EXPANSION:,} times their size" in text
    needed = importlib.metadata.requires("wait-core") or []
    base = [re.split(r"[^\w-]", line)[0] for line in needed if "extra ==" not in line]
    assert f"Without extras it needs {', '.join(base[:-1])} and {base[-1]}." in text
