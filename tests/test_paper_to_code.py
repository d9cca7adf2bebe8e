"""docs/paper-to-code.md: what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "paper-to-code.md"
CORE = ROOT / "rust" / "core" / "src"
NAME = re.compile(r"`([^`]+)`")
SUB_COMMANDS = re.compile(r'^    "([a-z0-9-]+)": ', re.MULTILINE)


def rows() -> list[list[str]]:
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert all(len(row) == 7 for row in cells)
    return [row for row in cells if row[0] != "paper"]


def sources(*folders: str) -> str:
    files = (path for folder in folders for path in sorted((ROOT / folder).rglob("*")))
    return "\n".join(path.read_text(encoding="utf-8") for path in files if path.suffix in {".rs", ".py", ".json"})


def test_every_row_says_whether_it_is_exact() -> None:
    words = {"exact", "altered", "missing", "beyond"}
    assert {re.split(r"[ ,;:]", row[2])[0] for row in rows()} == words
    for row in rows():
        # What is altered says how, what the paper has has a label.
        assert row[2] != "altered", row[0]
        assert row[1] or row[2].startswith("beyond"), row[0]


def test_the_files_exist() -> None:
    for row in rows():
        for place in re.findall(r"[\w/.-]+\.(?:rs|py|json)\b", " ".join(row[3:6])):
            beside = [ROOT / place, ROOT / "rust" / "core" / "src" / place]
            assert any(path.is_file() for path in beside), (row[0], place)


def defines(source: str, name: str) -> bool:
    """Return whether `source` defines `name`: as a function, a type, a module, a field, a variant or an argument."""
    item = rf"\b(?:fn|struct|enum|trait|type|const|static|mod|def|class) {name}\b"
    part = rf"^\s*(?:pub(?:\(\w+\))? )?{name}(?::|,| \{{|\(| =)"
    return re.search(f"{item}|{part}|[\"'(, ]{name}[\"':=]", source, re.MULTILINE) is not None


def test_a_definition_is_distinguished_from_a_mention() -> None:
    assert defines("pub fn limit(&self) {", "limit")
    assert defines("    pub margin: f64,", "margin")
    assert not defines("// limit the rate", "limit")
    assert not defines("let x = limit + 1;", "limit")


def test_the_functions_and_tests_exist() -> None:
    """What a row names is defined in one of the files that it names, its tests wherever tests stand."""
    tests = sources("rust", "tests")
    for row in rows():
        places = [
            path for place in re.findall(r"[\w/.-]+\.(?:rs|py|json)\b", row[3])
            for path in (ROOT / place, CORE / place) if path.is_file()
        ]  # fmt: skip
        code = "\n".join(path.read_text(encoding="utf-8") for path in places) if places else ""
        named = re.sub(r'"[^"]*"', "", " ".join(NAME.findall(row[4])))  # without what a function is called with
        for name in re.findall(r"\w+", named):
            assert defines(code, name), (row[0], name, [str(path) for path in places])
        for name in NAME.findall(row[5]):
            assert f"fn {name}(" in tests or f"def {name}(" in tests, (row[0], name)


def test_the_figures_are_sub_commands() -> None:
    known = set(SUB_COMMANDS.findall((ROOT / "bench" / "paper.py").read_text(encoding="utf-8")))
    for row in rows():
        for name in filter(None, re.split(r"[,;] ", row[6])):
            assert name in known or "wait-core plan" in name or (ROOT / name).is_file(), (row[0], name)
