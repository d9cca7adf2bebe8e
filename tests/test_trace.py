"""The trace itself: scaling, rates, consistency, and Mooncake's format as its own inverse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_traces import PATIENT

from wait_core import WaitCoreError
from wait_core.workload import Trace, load, write_mooncake


def arrivals(trace: Trace) -> list[int]:
    assert trace.arrival_ns is not None
    return [int(time) for time in trace.arrival_ns]


def test_scaled_is_exact_and_keeps_the_pattern() -> None:
    ones = np.ones(5, np.uint32)
    trace = Trace(
        prompt_tokens=ones, output_tokens=ones, arrival_ns=np.array([0, 10**17 + 1, 10**17 + 1, 3 * 10**17, 4 * 10**17])
    )
    assert trace.rate == pytest.approx(1e-8, rel=1e-15)
    # 4 gaps at 2e-8/s last 2e8 s: half of 4e17 ns; an odd nanosecond rounds up, ties stay ties.
    assert arrivals(trace.scaled(2e-8)) == [0, 5 * 10**16 + 1, 5 * 10**16 + 1, 15 * 10**16, 2 * 10**17]
    assert arrivals(trace.scaled(1e-8)) == arrivals(trace)


def test_requests_at_one_instant_cannot_be_scaled() -> None:
    ones = np.ones(2, np.uint32)
    trace = Trace(prompt_tokens=ones, output_tokens=ones, arrival_ns=np.zeros(2, np.int64))
    assert trace.rate is None
    with pytest.raises(WaitCoreError, match="arrive at once"):
        trace.scaled(1.0)


def test_rates_count_whole_windows() -> None:
    ones = np.ones(6, np.uint32)
    times = np.array([0, 1, 5, 10, 11, 25], np.int64) * 10**9
    starts, rates = Trace(prompt_tokens=ones, output_tokens=ones, arrival_ns=times).rates(10.0)
    assert starts.tolist() == [0.0, 10.0]
    assert rates.tolist() == [0.3, 0.2]


def test_arrays_are_read_only_and_the_callers_stay_writable() -> None:
    prompt, output = np.ones(2, np.uint32), np.ones(2, np.uint32)
    trace = Trace(prompt_tokens=prompt, output_tokens=output)
    with pytest.raises(ValueError, match="read-only"):
        trace.prompt_tokens[0] = 2
    prompt[0] = 3


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"output_tokens": np.ones(3, np.uint32)}, "output_tokens"),
        ({"output_tokens": np.ones(2, np.int64)}, "output_tokens"),
        ({"output_tokens": np.zeros(2, np.uint32)}, "at least 1"),
        ({"arrival_ns": np.array([0, -1])}, "arrival_ns"),
        ({"arrival_ns": np.array([5, 6])}, "arrival_ns"),
        ({"class_index": np.ones(2, np.uint32), "class_names": ("a",)}, "class_index"),
        ({"hash_ids": np.ones(2, np.uint64)}, "hash_offsets"),
        ({"hash_ids": np.ones(2, np.uint64), "hash_offsets": np.array([0, 2, 3])}, "hash_offsets"),
    ],
)
def test_inconsistent_columns_are_refused(change: dict[str, object], match: str) -> None:
    ones = np.ones(2, np.uint32)
    columns: dict[str, object] = {"prompt_tokens": ones, "output_tokens": ones}
    with pytest.raises(WaitCoreError, match=match):
        Trace(**(columns | change))  # type: ignore[arg-type]


@PATIENT
@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 2**53),
            st.integers(1, 2**32 - 1),
            st.integers(1, 2**32 - 1),
            st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
            st.sampled_from(["text", 'a "quoted", one']),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_mooncake_round_trip_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, int, list[int], str]]
) -> None:
    rows.sort(key=lambda row: row[0])
    times, prompts, outputs, hashes, classes = zip(*rows, strict=True)
    names = tuple(dict.fromkeys(classes))
    trace = Trace(
        prompt_tokens=np.array(prompts, np.uint32),
        output_tokens=np.array(outputs, np.uint32),
        arrival_ns=np.array(times, np.int64) - times[0],
        class_index=np.array([names.index(name) for name in classes], np.uint32),
        class_names=names,
        hash_ids=np.array([value for ids in hashes for value in ids], np.uint64),
        hash_offsets=np.concatenate([[0], np.cumsum([len(ids) for ids in hashes])]).astype(np.int64),
    )
    path = tmp_path_factory.mktemp("mooncake") / "out.jsonl"
    write_mooncake(trace, path)
    again = load(path)
    for column in ("prompt_tokens", "output_tokens", "arrival_ns", "class_index", "hash_ids", "hash_offsets"):
        np.testing.assert_array_equal(getattr(again, column), getattr(trace, column))
    assert again.class_names == trace.class_names
