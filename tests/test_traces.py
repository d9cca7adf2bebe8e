"""Reading traces: exact times, formats by content, errors that name the place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wait_core import WaitCoreError
from wait_core.workload import Trace, TraceError, load, traces, write_mooncake

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Other work may share the machine."""
ROOT = Path(__file__).resolve().parent.parent
# Recorded traces are not shipped; point this at a folder that holds them.
TRACES = Path(os.environ.get("WAIT_CORE_TRACES", ROOT.parent / "shared" / "traces"))

FILES = {
    "mooncake": (
        '{"timestamp": 27482, "input_length": 700, "output_length": 52, "hash_ids": [46, 47]}\n'
        '{"timestamp": 30535.25, "input_length": 512, "output_length": 26, "hash_ids": [46]}\n'
    ),
    "burstgpt": (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n"
        "45,ChatGPT,1087,0,1087,Conversation log\n"
        "118.5,GPT-4,417,276,693,API log\n"
    ),
    "azure": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n"
    ),
    "vidur": "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n4.314579,396,109\n",
    "words": "question_length,answer_length\n24,10\n6,0\n0,5\n20,297\n",
    "vllm": '{"prompt": "three little words", "output_tokens": 7}\n\n{"prompt": "two words"}\n',
    "sharegpt": (
        '[\n {"id": "a", "conversations": [{"from": "human", "value": "a b c"}, {"from": "gpt", "value": "d e"}]},\n'
        ' {"id": "b", "conversations": [{"from": "human", "value": "alone"}]},\n'
        ' {"id": "c", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y z w"},'
        ' {"from": "human", "value": "ignored"}]}\n]\n'
    ),
    "wait-core-log": (
        '{"format":"wait-core-log","version":1,"wait_core":"0.1.0","settings":{"kv_blocks":90}}\n'
        '{"add":0,"prompt_tokens":374,"priority":0,"now_ns":7000}\n'
        '{"add":1,"prompt_tokens":396,"max_tokens":200,"priority":0,"now_ns":7500}\n'
        '{"plan":7600,"admitted":[0,1],"prefill":[[0,374],[1,396]],"decodes":0,"budget":2048,"held":0}\n'
        '{"end":1,"tokens":109}\n{"end":0,"tokens":44}\n'
    ),
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def writer(text: str) -> Path:
        path = tmp_path / "trace.txt"
        path.write_text(text, encoding="utf-8", newline="")
        return path

    return writer


def lengths(trace: Trace) -> list[tuple[int, int]]:
    return list(zip(trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), strict=True))


def arrivals(trace: Trace) -> list[int]:
    assert trace.arrival_ns is not None
    return [int(time) for time in trace.arrival_ns]


@pytest.mark.parametrize("name", traces.FORMATS)
def test_every_format_is_detected_by_content_and_reads_the_same_by_name(
    name: str, write: Callable[[str], Path]
) -> None:
    path = write(FILES[name])
    assert traces.detect(path) == name
    assert load(path).summary() == load(path, name).summary()
    assert load(path).format == name


def test_files_with_byte_order_mark_and_windows_line_ends_read_the_same(write: Callable[[str], Path]) -> None:
    plain = load(write(FILES["azure"]))
    marked = load(write("\ufeff" + FILES["azure"].replace("\n", "\r\n")))
    assert marked.summary() == plain.summary()
    assert lengths(marked) == lengths(plain) == [(374, 44), (396, 109)]


def test_mooncake_times_are_milliseconds_and_hash_ids_are_kept(write: Callable[[str], Path]) -> None:
    trace = load(write(FILES["mooncake"]))
    assert lengths(trace) == [(700, 52), (512, 26)]
    assert arrivals(trace) == [0, 3_053_250_000]
    assert trace.hashes(0).tolist() == [46, 47]
    assert trace.hashes(1).tolist() == [46]
    assert trace.hash_block_tokens == 512


def test_qwen_bailian_times_are_seconds_and_blocks_are_16(write: Callable[[str], Path]) -> None:
    row = (
        '{{"chat_id": {}, "timestamp": {}, "input_length": 33, "output_length": 2, "type": "{}", '
        '"hash_ids": [1, 2, 3]}}\n'
    )
    trace = load(write(row.format(1, "61.114", "text") + row.format(2, "62.0000000015", "search")))
    assert arrivals(trace) == [0, 886_000_002]  # half to even at the nanosecond
    assert trace.hash_block_tokens == 16
    assert trace.class_names == ("text", "search")


def test_burstgpt_failures_are_dropped_and_counted(write: Callable[[str], Path]) -> None:
    trace = load(write(FILES["burstgpt"]))
    assert lengths(trace) == [(472, 18), (417, 276)]
    assert arrivals(trace) == [0, 113_500_000_000]
    assert trace.dropped == {"failed (response of 0 tokens)": 1}
    assert trace.class_names == ("ChatGPT, Conversation log", "GPT-4, API log")
    assert trace.class_index is not None
    assert trace.class_index.tolist() == [0, 1]


def test_burstgpt_3_with_session_columns(write: Callable[[str], Path]) -> None:
    text = (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "0.5,17,2.5,ChatGPT,10,20,30,API log\n"
    )
    assert lengths(load(write(text))) == [(10, 20)]


def test_azure_seven_decimals_are_exact(write: Callable[[str], Path]) -> None:
    assert arrivals(load(write(FILES["azure"]))) == [0, 4_314_579_000]
    last_digit = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,1,1\n2023-11-16 18:15:46.6805901,1,1\n"
    )
    assert arrivals(load(write(last_digit))) == [0, 100]


def test_azure_2024_offsets_and_whole_seconds(write: Callable[[str], Path]) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00+00:00,2162,5\n"
        "2024-05-10 02:00:00.009930+02:00,2399,6\n2024-05-10T00:00:01Z,1,1\n"
    )
    assert arrivals(load(write(text))) == [0, 9_930_000, 1_000_000_000]


def test_vidur_times_are_exact_where_a_float_is_not(write: Callable[[str], Path]) -> None:
    text = "arrived_at,num_prefill_tokens,num_decode_tokens\n0,1,1\n9007199.254740993,374.0,44\n"
    trace = load(write(text))
    assert arrivals(trace) == [0, 9_007_199_254_740_993]
    assert round(float("9007199.254740993") * 1e9) != 9_007_199_254_740_993
    assert lengths(trace)[1] == (374, 44)


def test_vidur_without_arrivals_has_lengths_only(write: Callable[[str], Path]) -> None:
    trace = load(write("num_prefill_tokens,num_decode_tokens\n5,6\n7,8\n"))
    assert trace.arrival_ns is None
    assert trace.rate is None
    assert trace.duration_s is None
    with pytest.raises(WaitCoreError, match="no arrival times"):
        trace.scaled(1.0)
    with pytest.raises(WaitCoreError, match="no arrival times"):
        trace.rates()


def test_word_counts_say_that_they_are_words(write: Callable[[str], Path]) -> None:
    trace = load(write(FILES["words"]))
    assert trace.unit == "words"
    assert lengths(trace) == [(24, 10), (20, 297)]
    assert trace.dropped == {"output length 0": 1, "prompt length 0": 1}


def test_text_is_counted_in_words_and_says_so_unless_a_tokenizer_is_given(write: Callable[[str], Path]) -> None:
    path = write(FILES["vllm"])
    words = load(path)
    assert words.unit == "words"
    assert any("no tokenizer" in note for note in words.notes)
    assert any("1 rows state no output_tokens: 256" in note for note in words.notes)
    assert lengths(words) == [(3, 7), (2, 256)]
    letters = load(path, count_tokens=len, default_output=9)
    assert letters.unit == "tokens"
    assert lengths(letters) == [(18, 7), (9, 9)]


def test_sharegpt_takes_the_first_turn_and_its_reply(write: Callable[[str], Path]) -> None:
    trace = load(write(FILES["sharegpt"]))
    assert lengths(trace) == [(3, 2), (1, 3)]
    assert trace.dropped == {"fewer than two turns": 1}
    assert lengths(load(write(FILES["sharegpt"]), count_tokens=len)) == [(5, 3), (1, 5)]


def test_rows_out_of_order_are_sorted_with_their_hashes(write: Callable[[str], Path]) -> None:
    rows = [(30, 7, [1, 2]), (10, 8, [3]), (30, 9, []), (20, 6, [4, 5, 6])]
    text = "".join(
        f'{{"timestamp": {t}, "input_length": {n}, "output_length": 1, "hash_ids": {h}}}\n' for t, n, h in rows
    )
    trace = load(write(text))
    assert [prompt for prompt, _ in lengths(trace)] == [8, 6, 7, 9]
    assert arrivals(trace) == [0, 10_000_000, 20_000_000, 20_000_000]
    assert [trace.hashes(i).tolist() for i in range(4)] == [[3], [4, 5, 6], [1, 2], []]
    assert any("sorted" in note for note in trace.notes)


@pytest.mark.parametrize(
    ("name", "edit", "place"),
    [
        ("vidur", ("4.314579", "nan"), (3, "arrived_at")),
        ("vidur", ("4.314579", "-1"), (3, "arrived_at")),
        ("vidur", ("4.314579", "1e30"), (3, "arrived_at")),
        ("vidur", ("396", "39x"), (3, "num_prefill_tokens")),
        ("vidur", ("396", "39.5"), (3, "num_prefill_tokens")),
        ("vidur", ("396", ""), (3, "num_prefill_tokens")),
        ("vidur", ("396", "4294967296"), (3, "num_prefill_tokens")),
        ("vidur", ("396,109", "396"), (3, "num_decode_tokens")),
        ("vidur", ("396,109", "396,1,2"), (3, None)),
        ("vidur", ("0.0,374", '"0.0,374'), (3, None)),
        ("azure", ("2023-11-16 18:15:50", "2023-02-30 18:15:50"), (3, "TIMESTAMP")),
        ("azure", ("2023-11-16 18:15:50", "2023-11-16 25:15:50"), (3, "TIMESTAMP")),
        ("azure", ("2023-11-16 18:15:50", "yesterday"), (3, "TIMESTAMP")),
        ("azure", (".9951690", ".9951690123"), (3, "TIMESTAMP")),
        ("burstgpt", ("417", "-417"), (4, "Request tokens")),
        ("mooncake", ("512", "true"), (2, "input_length")),
        ("mooncake", ("512", '"many"'), (2, "input_length")),
        ("mooncake", ("30535.25", "null"), (2, "timestamp")),
        ("mooncake", ("30535.25", "NaN"), (2, None)),
        ("mooncake", ('"output_length": 26, ', ""), (2, "output_length")),
        ("mooncake", ("[46]", "[-1]"), (2, "hash_ids")),
        ("mooncake", ("[46]", "7"), (2, "hash_ids")),
        ("mooncake", ("[46]}", "[46]"), (2, None)),
        ("vllm", ('"two words"', "17"), (3, "prompt")),
        ("vllm", ("7}", "0.5}"), (1, "output_tokens")),
        ("sharegpt", ('"alone"', "oops"), (3, None)),
        ("sharegpt", ('"value": "y z w"', '"text": "y"'), (4, "value")),
        ("sharegpt", ('[{"from": "human", "value": "alone"}]', "3"), (3, "conversations")),
        ("sharegpt", ("]}\n]\n", "]}\n"), (5, None)),
    ],
)  # fmt: skip
def test_malformed_rows_name_file_line_column_and_value(
    name: str, edit: tuple[str, str], place: tuple[int, str | None], write: Callable[[str], Path]
) -> None:
    (old, new), (line, column) = edit, place
    assert FILES[name].count(old) == 1
    path = write(FILES[name].replace(old, new))
    with pytest.raises(TraceError) as caught:
        load(path, name)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    if column is not None:
        assert repr(column) in str(caught.value)
        assert caught.value.value is None or str(caught.value.value)[:20] in str(caught.value)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "empty"),
        ("\n \n", "empty"),
        ("a,b\n1,2\n", "no known format"),
        ('{"a": 1}\n', "no known format"),
        ("{oops\n", "not JSON"),
        ("[]", "at least one request"),
        ("question_length,answer_length\n1,0\n", "at least one request.*output length 0"),
    ],
)
def test_files_without_a_trace_are_refused(text: str, match: str, write: Callable[[str], Path]) -> None:
    path = write(text)
    with pytest.raises(TraceError, match=match) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes(b"num_prefill_tokens,num_decode_tokens\n1,\xe9\n")
    with pytest.raises(TraceError, match="UTF-8"):
        load(path)


@PATIENT
@given(
    name=st.sampled_from(traces.FORMATS),
    where=st.integers(0, 400),
    length=st.integers(0, 12),
    insert=st.binary(max_size=12) | st.sampled_from([b"[" * 5_000, b'"', b"\x00", b"9" * 5_000, b"1_0", b"\xd9\xa3"]),
)
def test_damaged_files_give_a_trace_or_a_trace_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, where: int, length: int, insert: bytes
) -> None:
    content = FILES[name].encode()
    path = tmp_path_factory.mktemp("damaged") / "file"
    path.write_bytes(content[:where] + insert + content[where + length :])
    for given_name in ("auto", name):
        try:
            read = len(load(path, given_name))
        except TraceError as error:
            said = str(error)
        else:
            said = f"{path}: {read} requests" if read else "nothing"
        assert said.startswith(f"{path}:")


def test_a_csv_of_another_format_names_the_missing_column(write: Callable[[str], Path]) -> None:
    with pytest.raises(TraceError, match="'ContextTokens': is missing") as caught:
        load(write(FILES["vidur"]), "azure")
    assert caught.value.line == 1


def test_arguments_out_of_range_are_named(write: Callable[[str], Path]) -> None:
    path = write(FILES["vidur"])
    with pytest.raises(WaitCoreError, match="format: 'parquet'"):
        load(path, "parquet")
    with pytest.raises(WaitCoreError, match="limit: 0"):
        load(path, limit=0)
    with pytest.raises(WaitCoreError, match="default_output: 0"):
        load(path, default_output=0)
    with pytest.raises(FileNotFoundError):
        load(path.with_name("absent"))
    with pytest.raises(WaitCoreError, match="n: 0"):
        load(path).head(0)
    with pytest.raises(IndexError, match="index: 2"):
        load(path).hashes(2)
    for rate in (0, -1.0, float("nan"), float("inf"), True, 1e-300):
        with pytest.raises(WaitCoreError, match="rate: "):
            load(path).scaled(rate)
    for window in (0.0, -1.0, float("nan"), 5.0, 1e-9):
        with pytest.raises(WaitCoreError, match="window_s: "):
            load(path).rates(window)


@pytest.mark.parametrize("name", traces.FORMATS)
def test_limit_reads_the_first_requests(name: str, write: Callable[[str], Path]) -> None:
    path = write(FILES[name])
    assert lengths(load(path, limit=1)) == lengths(load(path))[:1]
    assert len(load(path, limit=99)) == len(load(path)) == 2


def test_head_keeps_columns_together(write: Callable[[str], Path]) -> None:
    head = load(write(FILES["mooncake"])).head(1)
    assert lengths(head) == [(700, 52)]
    assert head.hashes(0).tolist() == [46, 47]
    assert head.hash_ids is not None
    assert len(head.hash_ids) == 2
    assert len(head.head(9)) == 1


def test_mooncake_needs_arrivals_and_tokens(write: Callable[[str], Path], tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    with pytest.raises(WaitCoreError, match="no arrival times"):
        write_mooncake(load(write(FILES["words"])), target)
    ones = np.ones(1, np.uint32)
    with pytest.raises(WaitCoreError, match="words"):
        write_mooncake(
            Trace(prompt_tokens=ones, output_tokens=ones, arrival_ns=np.zeros(1, np.int64), unit="words"), target
        )
    assert not target.exists()


@pytest.mark.parametrize(
    ("file", "requests", "rate", "prompt", "output"),
    [
        ("azure_conv_2023.csv", 19_366, 5.530, 1_155, 211),
        ("azure_code_2023.csv", 8_819, 2.566, 2_048, 27.9),
    ],
)
def test_recorded_azure_traces(file: str, requests: int, rate: float, prompt: float, output: float) -> None:
    path = TRACES / file
    if not path.exists():
        pytest.skip(f"{path} is not here: recorded traces are not shipped (set WAIT_CORE_TRACES)")
    trace = load(path)
    figures = trace.summary()
    assert trace.format == "vidur"
    assert len(trace) == requests
    assert figures["rate"] == pytest.approx(rate, abs=1e-3)
    assert figures["prompt_mean"] == pytest.approx(prompt, rel=1e-3)
    assert figures["output_mean"] == pytest.approx(output, rel=1e-3)
    assert trace.dropped == {}
    assert trace.scaled(2.0).rate == pytest.approx(2.0, rel=1e-12)
