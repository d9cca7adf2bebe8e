"""The cells of ``bench/vllm_ab.py --settings shared``: a small round of each on real engines, and the judging."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"turns": {"users": 4, "turns": 2, "think_s": 0.0}, "chat": {"count": 12}}


@pytest.fixture
def ab() -> Iterator[Any]:
    """The benchmark as a module: its folder is no package."""
    sys.path.insert(0, str(ROOT / "bench"))
    import vllm_ab

    yield vllm_ab
    sys.path.remove(str(ROOT / "bench"))


@pytest.fixture
def runs(ab: Any, tmp_path: Path) -> Any:
    """No runs, to be kept in a folder of the test."""
    runs = ab.Runs(ab.SHARED, quick=False)
    runs.file, runs.made = tmp_path / "results" / "runs.jsonl", {}
    return runs


@pytest.mark.parametrize(("name", "requests"), [("multi-turn", 8), ("small memory", 12), ("overload", 12)])
def test_a_round_by_turns(ab: Any, runs: Any, monkeypatch: pytest.MonkeyPatch, name: str, requests: int) -> None:
    cell = runs.settings["cells"][name]
    monkeypatch.setitem(cell, "sizes", SIZES[cell["clients"]])
    before = dict(os.environ)
    runs.complete({name: 1}, [ab.STOCK, ab.OURS], pinned=False)
    assert dict(os.environ) == before, "what the engines need is set in their own processes"
    arms = ab.arms_of(cell, [ab.STOCK, ab.OURS])
    assert (ab.STATED in arms) == (name == "overload")
    answers = [runs.made[name, arm, 1] for arm in arms]
    assert [answer["completed"] for answer in answers] == [requests] * len(arms)
    assert len({answer["total_output_tokens"] for answer in answers}) == 1, "the same outputs"
    for answer in answers:
        assert 0 < answer["mean_ttft_ms"] < answer["mean_e2el_ms"] < 1e3 * answer["duration"]
        if name == "overload":
            assert 0 < answer["in_time"] <= 1
            assert answer["load"] > 0
    assert len(runs.file.read_text().splitlines()) == len(arms)
    runs.complete({name: 1}, [ab.STOCK, ab.OURS], pinned=False)
    assert len(runs.file.read_text().splitlines()) == len(arms), "kept, not repeated"


def test_the_goals_are_judged(ab: Any, runs: Any) -> None:
    rates = {ab.STOCK: 90.0, "watermark 0.05": 100.0, "watermark 0.10": 95.0, ab.OURS: 99.0, ab.STATED: 97.0}
    shares = {ab.STOCK: 0.4, "watermark 0.05": 0.4, "watermark 0.10": 0.4, ab.OURS: 0.5, ab.STATED: 0.7}
    for number in (1, 2):
        for arm, rate in rates.items():
            runs.made["overload", arm, number] = {"output_throughput": number * rate, "in_time": shares[arm]}
    bench = SimpleNamespace(claims=[])
    bench.claim = lambda name, value, _, goal="": bench.claims.append((name, round(value, 3), goal))
    ab.judge(bench, runs, "overload", 2)
    assert bench.claims == [
        ("overload: output_throughput / watermark 0.05", 0.99, ">= 0.98"),
        ("overload: output_throughput / watermark 0.05, target stated", 0.97, ">= 0.98"),
        ("overload: in_time / stock", 1.25, ""),
        ("overload: in_time / stock, target stated", 1.75, ">= 1.5"),
    ]
