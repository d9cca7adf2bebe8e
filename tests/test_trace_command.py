"""`wait-core trace` and prefix sharing."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from wait_core.cli import main
from wait_core.workload import Trace, load
from wait_core.workload.traces import prefix_sharing

if TYPE_CHECKING:
    from pathlib import Path

MOONCAKE = """{"timestamp": 0, "input_length": 1100, "output_length": 52, "hash_ids": [1, 2, 3]}
{"timestamp": 1000, "input_length": 1024, "output_length": 26, "hash_ids": [1, 2]}
{"timestamp": 3000, "input_length": 1500, "output_length": 2, "hash_ids": [1, 9, 3]}
{"timestamp": 3500, "input_length": 600, "output_length": 2, "hash_ids": [8, 2]}
{"timestamp": 3600, "input_length": 600, "output_length": 0, "hash_ids": [8, 2]}
"""


@pytest.fixture
def mooncake(tmp_path: Path) -> Path:
    path = tmp_path / "mooncake.jsonl"
    path.write_text(MOONCAKE, encoding="utf-8")
    return path


def test_prefix_sharing_by_hand(mooncake: Path) -> None:
    sharing = prefix_sharing(load(mooncake))
    assert sharing is not None
    assert (sharing.blocks, sharing.distinct, sharing.block_tokens) == (10, 5, 512)
    # The second has both its blocks; of the third the first only, as what follows the new one is new; the fourth none.
    assert (sharing.requests, sharing.cached_tokens) == (2, 1024 + 512)
    assert sharing.cached_share == (1024 + 512) / (1100 + 1024 + 1500 + 600)


def test_prefix_sharing_against_a_set_of_blocks() -> None:
    draw = np.random.default_rng(7)
    lengths = draw.integers(1, 9, 300)
    ids = draw.integers(0, 40, int(lengths.sum())).astype(np.uint64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    trace = Trace(
        prompt_tokens=(lengths * 16).astype(np.uint32), output_tokens=np.ones(300, np.uint32), hash_ids=ids,
        hash_offsets=offsets, hash_block_tokens=16,
    )  # fmt: skip
    seen: set[int] = set()
    cached = 0
    for i in range(300):
        own = trace.hashes(i).tolist()
        cached += next((place for place, block in enumerate(own) if block not in seen), len(own))
        seen |= set(own)
    sharing = prefix_sharing(trace)
    assert sharing is not None
    assert sharing.cached_tokens == 16 * cached


def test_a_trace_without_blocks_shares_nothing_that_is_known() -> None:
    ones = np.ones(2, np.uint32)
    assert prefix_sharing(Trace(prompt_tokens=ones, output_tokens=ones)) is None


def test_what_was_read_assumed_and_dropped_is_said(mooncake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(mooncake)]) == 0
    out = capsys.readouterr().out
    for said in (
        "4 requests, read as mooncake, lengths in tokens",
        "1 row left out: output length 0",
        "0.8571 requests/s over 3.5 s",
        "prefix sharing: 36.4% of the prompt tokens",
    ):
        assert said in out, out
    assert main(["trace", str(mooncake), "--json", "--window", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rates"] == {"window_s": 1.0, "start_s": [0, 1, 2], "rate": [1, 1, 0], "peak": 1, "least": 0}
    assert found["prompt_max"] == 1500
    assert found["sharing"]["cached_tokens"] == 1536
    assert main(["trace", str(mooncake), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert rows[2] == {"arrival": "3.0", "prompt": "1500", "output": "2"}


def test_words_without_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = tmp_path / "words.csv"
    words.write_text("question_length,answer_length\n24,10\n6,0\n20,30\n", encoding="utf-8")
    assert main(["trace", str(words)]) == 0
    out = capsys.readouterr().out
    assert "lengths in words" in out
    assert "assumed: lengths are words" in out
    assert "no arrival times" in out


def test_refusals(mooncake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        ([str(mooncake), "--window", "99"], "--window 99"),
        ([str(mooncake), "--dataset-name", "burstgpt"], "mooncake.jsonl"),
        (["/nowhere"], "/nowhere"),
        ([str(mooncake), "--window", "0"], "--window: '0'"),
    ):
        assert main(["trace", *arguments]) == 2
        assert said in capsys.readouterr().err
