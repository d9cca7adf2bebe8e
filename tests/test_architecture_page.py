"""docs/architecture.md: the files, the folders and the methods that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "rust" / "core" / "src"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_files_and_folders_exist() -> None:
    named = re.findall(r"`([\w/]+\.(?:rs|py)|\w+/|(?:rust|python)/[\w/]+)`", PAGE)
    assert len(named) > 30
    for name in named:
        assert (ROOT / name).exists() or (CORE / name).exists() or (CORE / f"{name.rstrip('/')}.rs").exists(), name


def test_the_types_and_methods_exist() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in CORE.rglob("*.rs"))
    methods = re.findall(r"`(\w+)::(\w+)`", PAGE)
    assert len(methods) > 12
    for kind, method in methods:
        assert re.search(rf"\b(struct|enum) {kind}\b", source), kind
        assert re.search(rf"\bfn {method}\b", source), (kind, method)


def test_every_folder_of_the_core_is_on_it() -> None:
    folders = {path.name for path in CORE.iterdir() if path.is_dir()}
    assert set(re.findall(r"^\| `(\w+)/`", PAGE, re.MULTILINE)) == folders
