"""Tables of benchmarks on the pages are those of the data files that the benchmarks write: see bench/pages.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

sys.path.insert(0, str(ROOT / "bench"))

import pages  # noqa: E402
from pages import plain, read  # noqa: E402

PAGES = pages.pages()
FILES = {table.name for page in PAGES for table in pages.tables(page)}
WITHOUT_TABLE = {"paper-results"}
"""Files whose tables are made by tests of their own."""


def same(cell: str, value: str) -> bool:
    """Whether a cell is this value, or the same number rounded."""
    if cell == value:
        return True
    if "+-" in value:
        return all(map(same, cell.split("+-"), value.split("+-")))
    try:
        number, exact = float(cell.replace(",", "")), float(value)
    except ValueError:
        return False
    digits = len(cell.partition(".")[2])
    return abs(number - exact) <= 0.5000001 * 10.0**-digits


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_table_that_names_its_data_shows_it(page: Path) -> None:
    tables = pages.tables(page)
    text = page.read_text(encoding="utf-8")
    assert len(tables) == text.count("<!-- data/"), "a comment stands above each table"
    for table in tables:
        rows = read(table.name)
        if table.view is not None:
            assert table.made_of(rows) in text, table.view
            continue
        chosen = table.chosen(rows)
        assert len(chosen) == len(table.lines), table.name
        for row, line in zip(chosen, table.lines, strict=True):
            for column, cell in zip(map(plain, table.header), map(plain, line), strict=True):
                assert same(cell, row[column]), f"{table.name}: {column} of {line} is {row[column]}"


def test_every_data_file_is_shown() -> None:
    assert {path.stem for path in pages.DATA.glob("*.csv")} == FILES | WITHOUT_TABLE


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("1337", "1,337"),
        ("2.0", "2.0"),
        ("-0.25", "-0.25"),
        ("1884.032", "1,884"),
        ("4.49495", "4.49"),
        ("0.630021", "0.630"),
        ("99.9711", "100"),
        ("1.0204+-0.0017", "1.020+-0.002"),
        ("chat", "chat"),
        ("", ""),
    ],
)
def test_a_cell_is_written_as_a_page_shows_it(text: str, cell: str) -> None:
    assert pages.shown(text) == cell
    assert same(cell, text)


def test_pages_are_filled_with_the_rows_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    monkeypatch.setattr(pages, "DATA", tmp_path)
    (tmp_path / "speed.csv").write_text("policy,load,ms\nvllm,0.9,1234.56\nwait,0.9,2\nwait,1.2,3\n")
    mark = "<!-- data/speed.csv where policy = wait and load = 0.9; 1.2 -->\n\n"
    page = tmp_path / "page.md"
    page.write_text(f"# Speed\n\n{mark}| load | `ms` |\n|---|---|\n| 0.9 | 7 |\n\nText.\n")
    pages.fill("other")
    assert "| 0.9 | 7 |" in page.read_text()
    pages.fill("speed")
    table = "| load | `ms` |\n| --- | --- |\n| 0.9 | 2 |\n| 1.2 | 3 |\n"
    assert page.read_text() == f"# Speed\n\n{mark}{table}\nText.\n"


def test_a_cell_is_the_value_or_its_rounding() -> None:
    assert same("2,562", "2562.31")
    assert same("0.95", "0.9479")
    assert not same("0.95", "0.9561")
    assert same("1.020+-0.002", "1.0204+-0.0017")
    assert not same("1.020+-0.002", "1.0206+-0.0017")
    assert not same("vllm", "wait")


def test_a_table_of_the_adapter_has_a_line_for_each_case() -> None:
    import vllm_overhead_tables

    case = {"case": "with churn", "running": "1024", "waiting": "16"}
    figures = {"stock": ("1250.5", "1.0"), "stock again": ("1251.0", "0.998"), "vllm": ("1300.25", "1.04")}
    rows = [case | {"scheduler": name, "sum us": us, "sum / stock": ratio} for name, (us, ratio) in figures.items()] + [
        {"case": "quiet", "running": "16", "waiting": "0", "scheduler": "vllm", "sum us": "9.5", "sum / stock": "1.5"}
    ]
    assert vllm_overhead_tables.times(rows).splitlines() == [
        "| case | running | waiting | stock | stock again | `vllm` |",
        "| --- | --- | --- | --- | --- | --- |",
        "| with churn | 1,024 | 16 | 1,250.5 | 1,251.0 | 1,300 |",
        "| quiet | 16 | 0 |  |  | 9.5 |",
    ]
    assert vllm_overhead_tables.ratios(rows).splitlines()[2:] == [
        "| with churn | 1,024 | 16 | 0.998 | 1.04 |",
        "| quiet | 16 | 0 |  | 1.5 |",
    ]
