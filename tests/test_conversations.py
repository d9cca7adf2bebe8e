"""Closed loops, common prefixes, drafts and pools, through `simulate` and the readers of traces."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from wait_core import WaitCoreError, simulate
from wait_core.simulation import Disaggregated, Transfer
from wait_core.workload import Follows, PrefixBlocks, Requests, dataset, load, replayed, sampled
from wait_core.workload.datasets import Conversations, Dataset

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LINEAR = {"law": "linear", "d0": 0.01, "d1": 1e-6}
NEVER = np.iinfo(np.uint64).max


@pytest.fixture
def chat() -> Requests:
    return sampled("multi-turn", request_rate=3.0, num_prompts=300, seed=4)


def test_the_turns_of_a_dataset_follow_one_another(chat: Requests) -> None:
    assert chat.follows is not None
    later = chat.follows.after >= 0
    before = chat.follows.after[later]
    assert np.array_equal(before, np.flatnonzero(later) - 1)
    assert np.all(chat.prompt[later] > chat.prompt[before] + chat.output[before])
    assert 3.5 < len(chat) / np.count_nonzero(~later) < 6.5
    assert chat.system_tokens == 500
    assert np.all(chat.prompt > 500)


def test_each_turn_is_sent_after_its_user_has_thought_and_the_cache_saves_what_was_said(chat: Requests) -> None:
    assert chat.follows is not None
    later = chat.follows.after >= 0
    before = chat.follows.after[later]
    cold, warm = (simulate("adaptive", requests=chat, prefix_caching=caching) for caching in (False, True))
    for report in (cold, warm):
        run = report.run
        assert np.array_equal(run.arrival_ns[later], run.finished_ns[before] + chat.follows.think_ns[later])
        assert report.summary()["completed"] == 300
    figures = warm.summary()
    assert figures["prefix_hit_rate"] == figures["cached_tokens"] / figures["prompt_tokens"]
    assert 0.5 < figures["prefix_hit_rate"] < 0.99
    assert cold.summary()["prefix_hit_rate"] == 0
    assert figures["prefill_tokens"] + figures["cached_tokens"] == cold.summary()["prefill_tokens"]
    assert figures["mean_ttft_ms"] < cold.summary()["mean_ttft_ms"]
    again = simulate("adaptive", requests=chat, prefix_caching=True)
    assert again.to_json() == warm.to_json()
    assert pickle.loads(pickle.dumps(warm)).to_json() == warm.to_json()  # noqa: S301 - our own


def test_max_tokens_ends_outputs_and_shortens_later_prompts(chat: Requests) -> None:
    report = simulate("vllm", requests=chat, max_tokens=100)
    run, cut = report.run, np.minimum(chat.output, 100)
    assert np.array_equal(run.output, cut)
    assert report.summary()["finished_by_length"] == np.count_nonzero(chat.output > 100) > 0
    assert report.summary()["total_output_tokens"] == cut.sum()
    assert chat.follows is not None
    second = np.flatnonzero(chat.follows.after == 0)[0]
    assert run.prompt[second] == chat.prompt[second] - (chat.output[0] - cut[0])
    assert np.all(run.finished_ns != NEVER)


def test_tokens_per_step_are_counted() -> None:
    requests = sampled("p100d11", request_rate=np.inf, num_prompts=4)
    figures = simulate("vllm", requests=requests, token_budget=400).summary()
    # 400 tokens of prompts, and 4 of each of ten decodes.
    assert figures["mean_tokens_per_step"] == pytest.approx(440 / 11)
    assert (figures["median_tokens_per_step"], figures["p99_tokens_per_step"]) == (4, 400)


def test_a_window_of_conversations_keeps_the_turns_in_it(chat: Requests) -> None:
    part = chat.window(0.5, 100)
    assert part.follows is not None
    first = 100
    assert chat.follows is not None
    expected = np.where(chat.follows.after[first:200] >= first, chat.follows.after[first:200] - first, -1)
    assert np.array_equal(part.follows.after, expected)
    assert simulate("vllm", requests=part).summary()["completed"] == 100
    with pytest.raises(WaitCoreError, match="cannot be merged"):
        Requests.of_tenants([chat, chat])


def test_sessions_are_conversations(chat: Requests) -> None:
    assert chat.follows is not None
    sessions = chat.sessions()
    assert sessions is not None
    for request, before in enumerate(chat.follows.after.tolist()):
        assert sessions[request] == (request if before < 0 else sessions[before])
    assert len(np.unique(sessions)) < 150
    assert sampled("chat", request_rate=1.0, num_prompts=3).sessions() is None


@pytest.mark.parametrize("router", ["prefix-affinity", "forecast"])
def test_session_affinity_keeps_what_several_routers_know_of_prefixes(router: str) -> None:
    requests = sampled("multi-turn", request_rate=20.0, num_prompts=1500, seed=4)
    fleet: dict[str, Any] = {"replicas": 4, "router": router, "prefix_caching": True}

    def hit_rate(**how: Any) -> float:
        return float(simulate(requests=requests, **fleet, **how).summary()["prefix_hit_rate"])

    one, in_turn, by_session = hit_rate(), hit_rate(routers=4), hit_rate(routers=4, session_affinity=True)
    assert in_turn < 0.9 * one
    assert by_session > 0.9 * one
    assert hit_rate(session_affinity=True) == one


def test_bad_followers_are_refused_by_name(chat: Requests) -> None:
    assert chat.follows is not None
    for after, message in (
        (np.full(300, -2), r"after\[0\] = -2"),
        (np.arange(300), r"follows\[0\].after = 0"),
        (np.full(10, -1), "think_ns: 300 times for 10 requests"),
    ):
        follows = Follows(after=after.astype(np.int64), think_ns=chat.follows.think_ns)
        with pytest.raises(WaitCoreError, match=message):
            simulate("vllm", requests=replace(chat, follows=follows))


def test_conversations_are_part_of_a_definition() -> None:
    definition = dataset("multi-turn")
    assert Dataset.from_dict(definition.to_dict()) == definition
    assert "conversations" not in dataset("chat").to_dict()
    data = definition.to_dict()
    data["conversations"]["turns"] = 0.5
    with pytest.raises(WaitCoreError, match=r"conversations.turns: 0.5"):
        Dataset.from_dict(data)
    with pytest.raises(WaitCoreError, match=r"conversations.system: -1"):
        Conversations(2.0, 1.0, 1.0, -1, 100)
    with pytest.raises(WaitCoreError, match=r"conversations: 'turn' is unknown; did you mean 'turns'"):
        Dataset.from_dict(data | {"conversations": {"turn": 1}})


ROW = (
    '{{"chat_id": {}, "parent_chat_id": {}, "timestamp": {}, "input_length": {}, "output_length": {}, "turn": {}, '
    '"hash_ids": {}}}\n'
)


@pytest.fixture
def bailian(tmp_path: Path) -> Callable[[], Path]:
    """Write two conversations of two turns, the rows of one of them out of order."""

    def write() -> Path:
        rows = [
            ROW.format(7, -1, 5.0, 40, 30, 1, [1, 2, 3]),
            ROW.format(9, 7, 90.0, 100, 8, 2, [1, 2, 13, 14, 15, 16, 17]),
            ROW.format(8, -1, 6.0, 40, 30, 1, [1, 2, 4]),
            ROW.format(4, 99, 95.0, 20, 8, 2, [1, 2]),
        ]
        path = tmp_path / "bailian.jsonl"
        path.write_text("".join(rows), encoding="utf-8")
        return path

    return write


def test_chats_of_a_trace_are_kept(bailian: Callable[[], Path]) -> None:
    trace = load(bailian())
    assert trace.parent is not None
    assert trace.turn is not None
    assert trace.parent.tolist() == [-1, -1, 0, -1]
    assert trace.turn.tolist() == [1, 1, 2, 2]
    assert trace.head(2).parent is not None
    sessions, later = replayed(trace).sessions(), replayed(trace).window(1.0, 3).sessions()
    assert sessions is not None
    assert later is not None
    assert (sessions.tolist(), later.tolist()) == ([0, 1, 0, 3], [0, 1, 2])
    with pytest.raises(WaitCoreError, match="parent: must be the index of an earlier request"):
        replace(trace, parent=np.array([0, -1, 0, -1]))


def test_an_answer_is_known_by_the_turn_that_follows(bailian: Callable[[], Path]) -> None:
    trace = load(bailian())
    blocks = PrefixBlocks.of(trace)
    assert blocks is not None
    chains = [blocks.ids[a:b].tolist() for a, b in zip(blocks.offsets[:-1], blocks.offsets[1:], strict=True)]
    # 70 tokens of the first turn: four whole names of 16.
    assert chains == [[1, 2, 13, 14], [1, 2, 4], [1, 2, 13, 14, 15, 16, 17], [1, 2]]
    part = blocks.part(1, 3)
    assert (part.ids.tolist(), part.offsets.tolist()) == ([1, 2, 4, 1, 2, 13, 14, 15, 16, 17], [0, 3, 10])
    figures = simulate(
        "vllm", requests=replayed(trace), prefix_caching=True, kv_blocks=7424, iteration_time=LINEAR
    ).summary()
    # Two blocks by the second request, four by the second turn of the first, and of 20 tokens all but the last block.
    assert figures["cached_tokens"] == 32 + 64 + 16


def test_a_mooncake_trace_shares_its_leading_blocks(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl"
    rows = [(0, 1100, [5, 6, 7]), (60_000, 1100, [5, 6, 8]), (120_000, 600, [9, 6])]
    line = '{{"timestamp": {}, "input_length": {}, "output_length": 4, "hash_ids": {}}}\n'
    path.write_text("".join(line.format(*row) for row in rows), encoding="utf-8")
    requests = replayed(path)
    warm = simulate("vllm", requests=requests, prefix_caching=True)
    assert warm.summary()["cached_tokens"] == 1024
    assert warm.summary()["notes"] == [
        "hash_ids name common prefixes, which are shared with the setting prefix_caching"
    ]
    assert simulate("vllm", requests=requests).summary()["cached_tokens"] == 0


def test_drafts_shorten_outputs() -> None:
    requests = sampled("p100d101", request_rate=1.0, num_prompts=200, seed=2)
    none = simulate("vllm", requests=requests, kv_blocks=7424, iteration_time=LINEAR)
    some = simulate("vllm", requests=requests, kv_blocks=7424, iteration_time=LINEAR, acceptance=[0.8, 0.5], seed=1)
    figures = some.summary()
    assert some.settings["num_speculative_tokens"] == 2
    assert figures["accepted_tokens"] / figures["draft_tokens"] == pytest.approx(0.65, rel=0.02)
    assert figures["decode_tokens"] == 200 * 100
    assert figures["mean_tpot_ms"] == pytest.approx(none.summary()["mean_tpot_ms"] / 2.3, rel=0.03)
    with pytest.raises(WaitCoreError, match="acceptance"):
        simulate("vllm", requests=requests, acceptance=[0.5, 0.8])


def test_prefill_and_decode_apart_and_decode_only() -> None:
    requests = sampled("p1000d20", request_rate=5.0, num_prompts=100, seed=2)
    transfer = Transfer(bytes_per_token=131_072, bandwidth=25e9, latency_s=0.001)
    fleet = Disaggregated(
        prefill=[{"policy": "vllm", "token_budget": 4096}], decode=1, transfer=transfer, prefill_router="round-robin"
    )
    report = simulate(requests=requests, replicas=fleet)
    alone = simulate("vllm", requests=replace(requests, output=np.ones_like(requests.output)), token_budget=4096)
    assert np.array_equal(report.run.first_token_ns, alone.run.finished_ns)
    moved_ns = round((0.001 + 1000 * 131_072 / 25e9) * 1e9)
    assert np.all(report.run.finished_ns >= report.run.first_token_ns + moved_ns + 19)
    figures = report.summary()
    assert (figures["completed"], figures["total_output_tokens"]) == (100, 2000)
    assert (figures["replicas"], figures["prefill_replicas"], figures["prefix_hit_rate"]) == (2, 1, 0.0)
    assert report.run.fleet is not None
    first, second = report.run.fleet["replicas"]
    assert (first["decode_tokens"], second["prefill_tokens"]) == (0, 100)
    assert report.settings["policy"] == "adaptive", "those of the replica that decodes"
    # The paper's decode-only setting: the KV is there, and its law counts KV alone.
    here = Transfer(bytes_per_token=0.0, bandwidth=np.inf)
    settings: dict[str, Any] = {
        "requests": requests,
        "iteration_time": LINEAR,
        "kv_blocks": 7424,
        "token_budget": 100_000,
    }
    only, whole = simulate("vllm", transfer=here, **settings), simulate("vllm", **settings)
    assert np.array_equal(only.run.finished_ns, whole.run.finished_ns)
    fleet = Disaggregated(prefill=0, decode=1, transfer=here)
    many = simulate("vllm", replicas=fleet, router="random", staleness_s=0.0, **settings)
    assert np.array_equal(only.run.finished_ns, many.run.finished_ns)
    assert many.prefill_replicas is None
    none = Transfer(bytes_per_token=1.0, bandwidth=0.0)
    for pools, message in (
        ({"prefill": 1, "decode": 1, "transfer": none}, "transfer.bandwidth = 0"),
        ({"prefill": 1, "decode": 0}, "decode = 0: must be between 1"),
        ({"prefill": -1, "decode": 1}, "prefill = -1: must be between 0"),
        ({"prefill": 1, "decode": 1, "prefill_router": "nearest"}, "router = 'nearest': one of random"),
        ({"prefill": 1, "decode": [{"prefix_caching": True}]}, "prefix_caching = true: must be off on decode replicas"),
    ):
        given: dict[str, Any] = {"transfer": transfer} | pools
        with pytest.raises(WaitCoreError, match=re.escape(message)):
            simulate(requests=requests, replicas=Disaggregated(**given))
    with pytest.raises(WaitCoreError, match="transfer: a Disaggregated fleet has its own"):
        simulate(requests=requests, replicas=fleet, transfer=here)
    # Clients that wait for answers: each turn finds the prompts of those before it on its prefill replica.
    chat = sampled("multi-turn", request_rate=3.0, num_prompts=60)
    fleet = Disaggregated(prefill=2, decode=2, transfer=transfer)
    for policy in ("adaptive", "wait"):
        report = simulate(policy, requests=chat, replicas=fleet, prefix_caching=True)
        assert report.run.counts["cached_tokens"] > 0
        follows = chat.follows
        assert follows is not None
        after = follows.after >= 0
        assert np.all(report.run.arrival_ns[after] >= report.run.finished_ns[follows.after[after]])


def test_transfers_are_of_the_model_that_goes_with_a_law() -> None:
    assert Transfer.of("a100", bandwidth=1e9).seconds(1000) == pytest.approx(0.524_288)
    assert Transfer.of("llama-3.1-8b-h100-sxm").bytes_per_token == 131_072
    assert Transfer.of("linear:0.01,1e-6", bytes_per_token=5.0, latency_s=0.25, bandwidth=10.0).seconds(1) == 0.75
    assert Transfer.of("linear:0.01,1e-6", bandwidth=np.inf).seconds(1000) == 0.0
    with pytest.raises(WaitCoreError, match="bytes_per_token is missing"):
        Transfer.of("linear:0.01,1e-6")


def test_prefixes_that_are_evicted_count_as_memory_that_is_short() -> None:
    """Longer decodes evict more prefixes: `adaptive` gains most of what the best static token budget does."""

    def latency(policy: str, token_budget: int, seed: int) -> float:
        chat = sampled("multi-turn", request_rate=3.0, num_prompts=2500, seed=seed)
        report = simulate(policy, requests=chat, prefix_caching=True, kv_blocks=7424, token_budget=token_budget)
        return float(report.summary()["mean_e2el_ms"])

    stock, static, ours = (
        np.array([latency(*which, seed) for seed in range(4)])
        for which in (("vllm", 2048), ("vllm", 384), ("adaptive", 2048))
    )
    assert np.mean(stock / static) > 1.02
    assert np.mean(ours / static) - 1.0 < 0.5 * (np.mean(stock / static) - 1.0)
