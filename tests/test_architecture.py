"""Allowed imports: core <- sim <- py <- python/wait_core <- {cli, vllm}; and no file over 400 lines."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "wait_core"
# Every folder of the package; a new one is declared here, so that no guard below can pass on a folder that has moved.
# Each may import itself, the top, and those that stand before it.
ORDER = ("settings", "logs", "fleet", "hardware", "workload", "simulation", "planning", "report", "cli")
PACKAGE_FOLDERS = {"", *ORDER, "vllm"}
# What each crate may name, in Cargo.toml and in its source.
CRATES = {"core": set(), "sim": {"wait-core"}, "py": {"wait-core", "wait-sim", "pyo3", "numpy"}}
GUARDED = {"wait-core", "wait-sim", "pyo3", "numpy"}
MOST_LINES = 400


def rust_files(crate: str) -> list[Path]:
    return sorted((ROOT / "rust" / crate).rglob("*.rs"))


def python_files() -> list[Path]:
    return sorted(path for pattern in ("*.py", "*.pyi") for path in PACKAGE.rglob(pattern))


def folder(path: Path) -> str:
    """Return the first folder of the package on the way to `path`, empty for the top."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def imported(source: str, package: str) -> set[str]:
    """Return the full names of all modules that `source`, a module in `package`, imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"__import__", "importlib.import_module"}:
            found |= {str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant)}
    return found


def names(modules: set[str], module: str) -> bool:
    """Return whether `modules` has `module` or a part of it."""
    return any(name == module or name.startswith(f"{module}.") for name in modules)


def violations(source: str, place: str, package: str = "wait_core") -> list[str]:
    """Return the rules that `source`, standing in folder or file `place` of the package, breaks."""
    modules = imported(source, package)
    broken = []
    if place != "vllm" and names(modules, "vllm"):
        broken.append("imports vllm")
    if place != "vllm" and names(modules, "wait_core.vllm"):
        broken.append("imports wait_core.vllm")
    if place != "hardware/package.py" and names(modules, "aiconfigurator_core"):
        broken.append("imports aiconfigurator_core")
    if place not in {"cli", "__main__.py"} and names(modules, "wait_core.cli"):
        broken.append("imports wait_core.cli")
    if place.partition("/")[0] in ORDER[:-1]:
        above = ORDER[ORDER.index(place.partition("/")[0]) + 1 : -1]
        broken += [f"imports wait_core.{folder}" for folder in above if names(modules, f"wait_core.{folder}")]
    return broken


def crates_named(source: str) -> set[str]:
    """Return which guarded crates Rust source names outside its comments."""
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.DOTALL)
    return {crate for crate in GUARDED if re.search(rf"\b{crate.replace('-', '_')}\b", code)}


def test_the_guards_look_at_files_of_every_folder() -> None:
    for crate in CRATES:
        assert any(path.name == "lib.rs" for path in rust_files(crate)), crate
    assert {path.parent.name for path in (ROOT / "rust").glob("*/Cargo.toml")} == set(CRATES)
    looked_at = {folder(path) for path in python_files()}
    assert looked_at == PACKAGE_FOLDERS, "declare new folders of the package in PACKAGE_FOLDERS"


def test_the_guards_see_what_they_forbid() -> None:
    for source in (
        "import vllm",
        "from vllm.v1 import core",
        "def f():\n    import vllm.v1.request",
        "__import__('vllm')",
    ):
        assert violations(source, "workload") == ["imports vllm"], source
        assert violations(source, "vllm") == []
    assert violations("from . import vllm", "") == ["imports wait_core.vllm"]
    assert violations("from ..cli import main", "vllm", "wait_core.vllm") == ["imports wait_core.cli"]
    assert violations("from wait_core import cli", "workload") == ["imports wait_core.cli"]
    assert violations("import vllmish", "workload") == []
    assert violations("from wait_core.planning import plan", "hardware") == ["imports wait_core.planning"]
    assert violations("from wait_core.planning import plan", "hardware/package.py") == ["imports wait_core.planning"]
    assert violations("from wait_core.hardware import engine", "planning") == []
    assert violations("from aiconfigurator_core.sdk import common", "hardware") == ["imports aiconfigurator_core"]
    assert violations("from aiconfigurator_core.sdk import common", "hardware/package.py") == []
    assert crates_named("use pyo3::prelude::*; // wait_sim") == {"pyo3"}
    assert crates_named("use wait_sim::Engine;") == {"wait-sim"}


@pytest.mark.parametrize("crate", CRATES)
def test_a_crate_names_only_what_stands_below_it(crate: str) -> None:
    manifest = tomllib.loads((ROOT / "rust" / crate / "Cargo.toml").read_text(encoding="utf-8"))
    tables = [manifest, *manifest.get("target", {}).values()]
    kinds = ("dependencies", "dev-dependencies", "build-dependencies")
    asked = {name for table in tables for kind in kinds for name in table.get(kind, {})}
    assert asked & GUARDED <= CRATES[crate]
    # A crate's own tests and benches name it.
    own = {f"wait-{crate}"}
    for path in rust_files(crate):
        named = crates_named(path.read_text(encoding="utf-8"))
        assert named - own <= CRATES[crate], path


CORE = ROOT / "rust" / "core" / "src"
LADDER = [
    "error", "lookup", "memory", "model", "routing", "fluid", "learn", "config", "state", "plan", "policy", "scheduler",
]  # fmt: skip
"""The folders and files of the core; each may use only those before it."""


def climbs(source: str, place: str) -> set[str]:
    """Return the parts of the core above `place` that Rust `source` there uses outside its tests."""
    code = re.sub(r"//[^\n]*", "", source.split("#[cfg(test)]\nmod tests {", maxsplit=1)[0])
    used = set(re.findall(r"\bcrate::(\w+)::", code)) & set(LADDER)
    return {name for name in used if LADDER.index(name) > LADDER.index(place)}


def test_each_folder_of_the_core_uses_only_those_below_it() -> None:
    parts = {path.stem if path.is_file() else path.name for path in CORE.iterdir()} - {"lib"}
    assert parts == set(LADDER), "declare new folders of the core in LADDER"
    broken = {}
    for path in CORE.rglob("*.rs"):
        place = path.relative_to(CORE).parts[0].removesuffix(".rs")
        if place != "lib" and path.name != "tests.rs" and (above := climbs(path.read_text(encoding="utf-8"), place)):
            broken[str(path.relative_to(CORE))] = above
    assert broken == {}
    assert climbs("use crate::policy::Policy; // crate::scheduler::Plan", "plan") == {"policy"}
    assert climbs("use crate::model::Request;", "plan") == set()


def test_each_folder_of_the_core_says_what_belongs_in_it() -> None:
    for folder in LADDER[1:]:
        if (CORE / folder).is_dir():
            root = CORE / folder / "mod.rs"
            first = (root if root.is_file() else CORE / f"{folder}.rs").read_text(encoding="utf-8").split("\n\n")[0]
            assert first.startswith("//! "), folder


@pytest.mark.parametrize("crate", ["core", "sim"])
def test_core_and_simulator_forbid_unsafe_code(crate: str) -> None:
    assert "#![forbid(unsafe_code)]" in (ROOT / "rust" / crate / "src" / "lib.rs").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_python_imports_point_down(path: Path) -> None:
    package = ".".join(["wait_core", *path.relative_to(PACKAGE).parts[:-1]])
    whole = str(path.relative_to(PACKAGE))
    place = whole if whole == "hardware/package.py" else folder(path) or path.name
    assert violations(path.read_text(encoding="utf-8"), place, package) == []


def lines_of(path: Path) -> int:
    """Return the lines of a file; of a stub without its docstrings, which scripts/stub_docs.py copies from the core."""
    source = path.read_text(encoding="utf-8")
    lines = len(source.splitlines())
    if path.suffix == ".pyi":
        documented = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.ClassDef))
        for first in (node.body[0] for node in documented if ast.get_docstring(node)):
            lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def test_no_file_is_longer_than_400_lines() -> None:
    # A compiled module has one stub, whose text is made from the Rust doc comments.
    files = [path for path in python_files() if path.name != "_core.pyi"]
    files += [path for crate in CRATES for path in rust_files(crate)]
    assert len(files) > len(CRATES)
    lengths = {path: lines_of(path) for path in files}
    assert {path: lines for path, lines in lengths.items() if lines > MOST_LINES} == {}
