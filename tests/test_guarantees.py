"""docs/guarantees.md: the tests that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "guarantees.md"
PROMISES = {"Memory", "Progress", "Order", "Determinism", "Clock", "Errors", "No allocation", "Exact counts"}


def rows() -> list[list[str]]:
    """Return the cells of the table, without its head."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[1:]]


def test_each_promise_has_a_condition_and_tests_that_exist() -> None:
    paths = (path for folder in ("rust", "tests") for path in (ROOT / folder).rglob("*"))
    tests = "\n".join(path.read_text(encoding="utf-8") for path in paths if path.suffix in {".rs", ".py"})
    for promise, condition, named in rows():
        names = re.findall(r"`([^`]+)`", named)
        assert condition, promise
        assert names, promise
        for name in names:
            assert f"fn {name}(" in tests or f"def {name}(" in tests, (promise, name)


def test_nothing_that_hosts_rely_on_is_left_out() -> None:
    promised = {match[1].rstrip(".") for row in rows() if (match := re.match(r"\*\*(.+?)\*\*", row[0]))}
    assert len(promised) == len(rows())
    assert promised >= PROMISES
