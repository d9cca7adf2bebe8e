"""Csv by columns reads what csv by fields reads, and leaves to it whatever is not plain."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_traces import FILES, PATIENT, TRACES

from wait_core.workload.traces import Trace, TraceError, csv_formats, load
from wait_core.workload.traces.plain_csv import Piece

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEADERS = {
    "vidur": "arrived_at,num_prefill_tokens,num_decode_tokens",
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens",
    "burstgpt": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
    "words": "question_length,answer_length",
}
COUNTS = st.integers(0, 9999).map(str) | st.sampled_from(
    ["4294967295", "4294967296", "12.0", "007", " 5", "", "1e3", "+1", "-1", "1_0", "٣", "9" * 19, "5+00:00"]
)
SECONDS = st.decimals(0, 10**8, places=6).map(str) | st.sampled_from(
    ["0", "5.", ".5", "1.123456789", "1.1234567895", "999999999.9", "1234567890.5", "1e-3", "1.2.3", "x", "\x00"]
)
STAMPS = st.datetimes(min_value=datetime.fromisoformat("1971-01-01")).map(str) | st.sampled_from(
    [
        "2023-11-16 18:15:46.6805900",
        "2023-11-16T18:15:46",
        "2024-02-29 00:00:00+00:00",
        "2024-02-29 00:00:00.1+00:00",
        "2023-02-29 00:00:00",
        "2023-11-16 24:00:00",
        "2023-11-16 23:59:60",
        "2023-11-16 18:15:46.",
        "2023-11-16 18:15:46.1234567891",
        "2024-02-29 02:00:00+02:00",
        "2024-02-29 02:00:00Z",
        "1969-12-31 23:59:59",
        "2262-01-01 00:00:00",
    ]
)
NAMES = st.sampled_from(["ChatGPT", "GPT-4", " GPT-4 ", "", "a\x00", "ä"])
FIELDS = {
    "vidur": (SECONDS, COUNTS, COUNTS),
    "azure": (STAMPS, COUNTS, COUNTS),
    "burstgpt": (SECONDS, NAMES, COUNTS, COUNTS, COUNTS, NAMES),
    "words": (COUNTS, COUNTS),
}


def by_fields(path: Path, name: str) -> Trace:
    with mock.patch.object(Piece, "of", return_value=None):
        return load(path, name)


def outcome(read: object) -> object:
    """Return what a reading gave, or how it was refused."""
    try:
        trace = read()  # type: ignore[operator]
    except TraceError as error:
        return str(error), error.line, error.column
    columns = (trace.prompt_tokens, trace.output_tokens, trace.arrival_ns, trace.class_index)
    return [None if c is None else c.tolist() for c in columns], trace.class_names, trace.dropped, trace.notes


def test_what_was_dropped_is_named_in_one_order(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("\n".join([HEADERS["vidur"], "0.0,0,1", "0.0,0,0"]), encoding="utf-8")
    refused = outcome(lambda: load(path, "vidur"))
    assert "{'output length 0': 1, 'prompt length 0': 1}" in str(refused)
    assert refused == outcome(lambda: by_fields(path, "vidur"))


@pytest.mark.parametrize("name", HEADERS)
@PATIENT
@given(data=st.data())
def test_both_ways_give_the_same(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(*FIELDS[name]), min_size=1, max_size=6))
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    text = end.join([HEADERS[name], *(",".join(row) for row in rows)]) + data.draw(st.sampled_from(["", end]))
    path = tmp_path_factory.mktemp("pieces") / "trace.csv"
    path.write_bytes(text.encode())
    assert outcome(lambda: load(path, name)) == outcome(lambda: by_fields(path, name))


@PATIENT
@given(
    rows=st.lists(st.tuples(SECONDS, st.sampled_from(["7", '"7"', '" 7\n"', "8\r"]), COUNTS), min_size=1, max_size=30),
    size=st.integers(1, 40),
)
@example(rows=[("0", "1", "1"), ("1", '" 7\n"', "1"), ("2", "1", "x")], size=1)
def test_pieces_may_end_anywhere(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], size: int
) -> None:
    path = tmp_path_factory.mktemp("pieces") / "trace.csv"
    path.write_bytes("\n".join([HEADERS["vidur"], *(",".join(row) for row in rows)]).encode())
    whole = outcome(lambda: load(path, "vidur"))
    with mock.patch.object(csv_formats, "_PIECE", size):
        assert outcome(lambda: load(path, "vidur")) == whole


def test_plain_files_are_read_by_columns() -> None:
    """What recorded traces look like is plain: this is what the speed rests on."""
    for name in HEADERS:
        header, rows = FILES[name].split("\n", 1)
        piece = Piece.of(rows.encode(), header.count(",") + 1)
        assert piece is not None
        form = next(form for form in csv_formats.CSV_FORMATS if form.name == name)
        column = header.split(",").index
        assert piece.numbers(column(form.prompt), 0) is not None
        if form.arrival is not None:
            at = column(form.arrival)
            assert (piece.datetimes(at) if form.is_datetime else piece.numbers(at, 9)) is not None
        assert all(piece.texts(column(text)) is not None for text in form.classes)


def test_recorded_traces_read_the_same_both_ways() -> None:
    path = TRACES / "azure_code_2023.csv"
    if not path.exists():
        pytest.skip(f"{path} is not here: recorded traces are not shipped (set WAIT_CORE_TRACES)")
    assert outcome(lambda: load(path, "vidur")) == outcome(lambda: by_fields(path, "vidur"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vidur", "azure"])
def test_a_million_rows_take_seconds(tmp_path: Path, name: str) -> None:
    """A fraction of what they take by fields: both in one process, so that the machine does not matter."""
    path = tmp_path / "trace.csv"
    time_of: Callable[[int], str] = {
        "vidur": lambda i: f"{i * 0.1:.6f}",
        "azure": lambda i: f"2023-11-{1 + i // 40_000:02d} {i % 86_400 // 3_600:02d}:{i % 60:02d}:00.{i % 10**7:07d}",
    }[name]
    with path.open("w") as file:
        file.write(HEADERS[name] + "\n")
        file.writelines(f"{time_of(i)},{i % 5_000 + 1},{i % 700 + 1}\n" for i in range(1_000_000))
    start = time.process_time()
    trace = load(path, name)
    by_columns = time.process_time() - start
    assert len(trace) == 1_000_000
    start = time.process_time()
    slow = by_fields(path, name)
    assert time.process_time() - start > 4 * by_columns
    assert slow.arrival_ns is not None
    assert trace.arrival_ns is not None
    assert np.array_equal(slow.arrival_ns, trace.arrival_ns)
