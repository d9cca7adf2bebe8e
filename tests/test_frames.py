"""`Report.to_polars` and `Report.to_arrow`: the requests of a run as a table."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wait_core import Report, WaitCoreError, simulate

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results.md"
NEVER = np.iinfo(np.uint64).max


@pytest.fixture(scope="module")
def report() -> Report:
    """Return a run in which requests are preempted, and refused because they never fit."""
    return simulate("vllm", dataset_name="chat", request_rate=30, num_prompts=300, kv_blocks=250, max_tokens=200)


def test_the_run_has_every_kind_of_request(report: Report) -> None:
    counts = report.summary()
    assert counts["preemptions"] > 0
    assert counts["failed"] > 0
    assert counts["completed"] > 0


def described() -> list[str]:
    section = RESULTS.read_text(encoding="utf-8").split("## One row a request")[1]
    return [
        name
        for line in section.splitlines()
        if line[:3] == "| `"
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    ]


def check(columns: dict[str, list[Any]], report: Report) -> None:
    run = report.run
    assert list(columns) == described()
    assert columns["arrival_ns"] == run.arrival_ns.tolist()
    for name in ("admitted_ns", "first_token_ns", "finished_ns"):
        assert columns[name] == [None if at == NEVER else at for at in getattr(run, name).tolist()]
    assert [value for value in columns["ttft_s"] if value is not None] == pytest.approx(report.ttft_s)
    assert [value for value in columns["e2el_s"] if value is not None] == pytest.approx(report.e2el_s)
    means = [1e3 * float(np.mean([v for v in columns[f"{name}_s"] if v is not None])) for name in ("ttft", "tpot")]
    summary = report.summary()
    assert means == pytest.approx([summary["mean_ttft_ms"], summary["mean_tpot_ms"]])
    assert sum(columns["preemptions"]) == summary["preemptions"]
    assert [value is None for value in columns["tpot_s"]] == [at is None for at in columns["finished_ns"]]


def test_polars_has_one_row_a_request(report: Report) -> None:
    polars = pytest.importorskip("polars", reason="needs the extra polars")
    table = report.to_polars()
    assert isinstance(table, polars.DataFrame)
    check(table.to_dict(as_series=False), report)


def test_one_output_token_has_no_time_per_token() -> None:
    pytest.importorskip("polars", reason="needs the extra polars")
    table = simulate("vllm", dataset_name="p64d1", request_rate=5, num_prompts=20).to_polars()
    assert (table["tpot_s"].null_count(), table["e2el_s"].null_count()) == (20, 0)


def test_arrow_has_the_same_and_says_what_ran(report: Report) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra arrow")
    table = report.to_arrow()
    assert isinstance(table, pyarrow.Table)
    check(table.to_pydict(), report)
    about = json.loads(table.schema.metadata[b"wait_core"])
    assert (about["policy"], about["settings"]["kv_blocks"]) == ("vllm", 250)


@pytest.mark.parametrize(("library", "extra"), [("polars", "polars"), ("pyarrow", "arrow")])
def test_without_the_library_the_extra_is_named(
    library: str, extra: str, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(WaitCoreError, match=rf"needs {library}: pip install '\.\[{extra}\]'"):
        getattr(report, f"to_{extra}")()
