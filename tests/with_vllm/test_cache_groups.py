"""vLLM's groups of the KV cache as the core's setting, and the adapter on each kind of cache."""

from __future__ import annotations

import random
import re
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")

FULL = {"kind": "full", "block_size": 16}
WINDOWS = {"kind": "sliding_window", "window": 100, "block_size": 16, "count": 2}
CHUNKS = {"kind": "chunked_local", "chunk": 64, "block_size": 16, "count": 3}
STATES = {"kind": "state", "blocks": 2, "count": 3}
ALIGNED = STATES | {"aligned": True, "block_size": 16}
LAYOUTS = {
    "windows": (FULL, WINDOWS),
    "windows first": (WINDOWS, FULL),
    "windows only": (WINDOWS | {"count": 1},),
    "chunks": (FULL, CHUNKS),
    "states": (FULL, STATES),
    "aligned states": (FULL, ALIGNED),
}


def settings(**setup: Any) -> dict[str, Any]:
    """Return the core's settings of a scheduler with such groups."""
    from in_process import Setup, make_scheduler

    from wait_core.vllm import kv_groups

    return kv_groups.settings(make_scheduler(Setup(**{"scheduler": "Scheduler", "prefix_caching": False, **setup})))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_groups_are_passed_as_they_are_full_ones_first(layout: tuple[dict[str, Any], ...]) -> None:
    given = settings(kv_groups=layout)["kv_groups"]
    assert given == sorted(({"count": 1} | group for group in layout), key=lambda group: group["kind"] != "full")


def test_one_full_group_needs_no_list() -> None:
    assert settings(num_blocks=81, block_size=32) == {
        "kv_blocks": 80,
        "block_size": 32,
        "num_speculative_tokens": 0,
        "num_lookahead_tokens": 0,
        "watermark": 0.0,
    }


def test_a_window_is_left_later_where_a_step_is_planned_ahead() -> None:
    from in_process import Setup, make_scheduler

    from wait_core.vllm import kv_groups

    ahead = make_scheduler(Setup(scheduler="AsyncScheduler", kv_groups=(WINDOWS,)))
    assert kv_groups.translate(ahead)[0]["window"] == 101


def test_blocks_of_another_size_keep_it() -> None:
    given = settings(kv_groups=({"kind": "full", "block_size": 32}, WINDOWS))
    assert given["block_size"] == 32, "that of the first group: not the 32 that both sizes divide"
    assert [group["block_size"] for group in given["kv_groups"]] == [32, 16]
    given = settings(kv_groups=(FULL, ALIGNED | {"block_size": 64}))
    assert given["block_size"] == 16


def test_drafts_take_slots() -> None:
    assert settings(draft_tokens=3)["num_speculative_tokens"] == 3


@pytest.mark.parametrize("share", [0.0, 0.1, 0.05, 0.5])
def test_a_watermark_is_a_share_of_all_blocks(share: float) -> None:
    for blocks in (80, 119, 120, 121, 1001):
        given = settings(num_blocks=blocks, watermark=share)
        assert int(given["watermark"] * given["kv_blocks"]) == int(share * blocks), blocks


@pytest.mark.parametrize(
    ("kind", "changes", "message", "remedies"),
    [
        ("RSWASpec", {}, "RSWASpec", []),
        ("SinkFullAttentionSpec", {}, "SinkFullAttentionSpec", []),
        (
            "ChunkedLocalAttentionSpec",
            {"attention_chunk_size": 40},
            "chunks of 40 tokens that end inside a block of 16",
            ["--block-size that divides 40", "--disable-hybrid-kv-cache-manager"],
        ),
        (
            "MambaSpec",
            {"mamba_cache_mode": "all", "num_speculative_blocks": 0},
            "Mamba cache mode 'all'",
            ["--mamba-cache-mode align", "--no-enable-prefix-caching"],
        ),
        (
            "SlidingWindowMLASpec",
            {"bounded_replay": True},
            "SlidingWindowMLASpec with bounded replay",
            ["--no-swa-bounded-replay"],
        ),
    ],
)
def test_groups_that_cannot_be_counted_are_refused_with_what_to_do(
    kind: str, changes: dict[str, Any], message: str, remedies: list[str]
) -> None:
    from in_process import Setup, make_scheduler
    from vllm.v1 import kv_cache_interface

    from wait_core.vllm import support
    from wait_core.vllm.config import ConfigError

    scheduler = make_scheduler(Setup())
    spec = object.__new__(getattr(kv_cache_interface, kind))
    for name, value in changes.items():
        object.__setattr__(spec, name, value)
    full = scheduler.kv_cache_manager.coordinator.single_type_managers[0]
    other = SimpleNamespace(kv_cache_spec=spec, block_size=16)
    for managers in ((full, other), (other,)):
        scheduler.kv_cache_manager.coordinator.single_type_managers = managers
        with pytest.raises(ConfigError, match=message) as refused:
            support.engine(scheduler)
        _, _, advice = str(refused.value).partition(f"{message}: ")
        assert advice.endswith("start vLLM without --scheduler-cls")
        assert re.findall(r"--[\w-]+", advice)[:-1] == [remedy.split()[0] for remedy in remedies]
        assert all(remedy in advice for remedy in remedies)


@pytest.mark.parametrize("caching", [False, True], ids=["", "cached"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("policy", ["vllm", "adaptive"])
def test_requests_are_served_when_memory_is_short(
    policy: str, layout: tuple[dict[str, Any], ...], caching: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scarce memory, a step ahead: all are served, the core knows what is free, and preempts about as stock or less."""
    from in_process import Driver, Setup, random_prompt

    from wait_core.vllm import clock

    ticks = count(10**9, 10**6)
    monkeypatch.setattr(clock, "now_ns", lambda: next(ticks))  # the same times in every run
    if STATES in layout and caching:
        pytest.skip("vLLM keeps such states from the prefix cache")
    preempted = {}
    for scheduler in ("AsyncScheduler", "WaitScheduler"):
        mine = scheduler == "WaitScheduler"
        few = 1 + (60 if len(layout) == 1 else 170)
        driver = Driver(
            Setup(
                scheduler=scheduler,
                wait_core={"policy": policy, "watchdog_s": 0.0} if mine else {},
                kv_groups=layout,
                prefix_caching=caching,
                num_blocks=few,
                max_model_len=1024,
                max_num_seqs=24,
                max_num_batched_tokens=256,
            )
        )
        draw = random.Random(0)
        shared = random_prompt(draw, 60)
        todo = [
            (f"{i}", shared + random_prompt(draw, draw.randint(1, 150)), draw.randint(1, 150), i) for i in range(60)
        ]
        preempted[scheduler] = steps = 0
        while todo or driver.scheduler.has_requests():
            while todo and steps >= 4 * todo[0][3]:
                name, prompt, most, _ = todo.pop(0)
                driver.add(name, prompt, most)
            preempted[scheduler] += len(driver.step().scheduled.preempted_req_ids or ())
            steps += 1
            assert steps < 5_000
        if mine:
            driver.step()
            bridge = driver.scheduler.wait_core
            assert bridge.active
            assert bridge.core.used_blocks == 0
            assert bridge.counts["watchdog"] == bridge.counts["foreign"] == 0
            assert len(bridge.core) == 0
    assert preempted["AsyncScheduler"] > 0
    print(policy, preempted)
    assert preempted["WaitScheduler"] <= 1.3 * preempted["AsyncScheduler"] + 1
