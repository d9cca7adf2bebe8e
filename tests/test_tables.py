"""A table that stands on a page and in docs/data is the same in both."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.parametrize(("page", "table"), [("vllm-ab.md", "vllm-ab.csv")])
def test_the_page_shows_what_was_measured(page: str, table: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert f"(data/{table})" in text, "the page names its table"
    with (DOCS / "data" / table).open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    shown = "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))
    assert shown in text
