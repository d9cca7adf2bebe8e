"""What the adapter reports of prompts whose first blocks are in the prefix cache: only held blocks save
memory."""

from __future__ import annotations

import random
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")

PREFIX = list(range(3, 67))  # four blocks of 16


def loaded() -> Any:
    """Return a driver in which "a" runs and nothing else fits."""
    from in_process import Driver, Setup

    driver = Driver(Setup(scheduler="WaitScheduler", num_blocks=11, max_model_len=160))
    driver.add("a", PREFIX + [70] * 70, 12, ignore_eos=True)
    driver.step()
    return driver


def known(driver: Any) -> list[int]:
    """Return the shared prefix, tokens, of those in the queue, as the core knows it."""
    return [shared for _, _, shared in driver.scheduler.wait_core.core.first_in_queue(99)]


def computed(driver: Any) -> list[int]:
    """Return what need not be computed, tokens, of those in the queue, as the core knows it."""
    return [tokens for _, tokens, _ in driver.scheduler.wait_core.core.first_in_queue(99)]


def test_the_core_learns_what_is_held_for_the_head_of_the_queue() -> None:
    from wait_core.vllm import prefixes

    driver = loaded()
    for i in range(prefixes.LOOKED_AT + 2):
        driver.add(f"w{i}", PREFIX + [90 + i] * 90, 12, ignore_eos=True)
    driver.step()
    assert known(driver) == [64] * prefixes.LOOKED_AT + [0, 0]


def test_the_head_of_the_queue_is_looked_at_also_while_no_block_is_free() -> None:
    from in_process import Driver, Setup

    driver = Driver(Setup(scheduler="WaitScheduler", num_blocks=11, max_model_len=160))
    driver.add("a", PREFIX + [70] * 86, 8, ignore_eos=True)
    driver.step()
    assert driver.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == 0
    driver.add("b", PREFIX + [90] * 90, 6, ignore_eos=True)
    driver.step()
    assert known(driver) == [64]


def test_what_no_request_holds_any_more_is_not_saved() -> None:
    driver = loaded()
    driver.add("b", PREFIX + [90] * 90, 12, ignore_eos=True)
    for _ in range(3):
        driver.step()
    assert known(driver) == [64]
    # A second, longer hit: what "c" asks for is all of "a" but its last block.
    driver.add("c", PREFIX + [70] * 80, 12, ignore_eos=True)
    for _ in range(2):
        driver.step()
    assert known(driver) == [64, 128]
    driver.abort("a")
    bridge = driver.scheduler.wait_core
    bridge.prefixes.tell(bridge.core, bridge._requests, 8)
    assert known(driver) == [0, 0], "cached, but free"
    assert computed(driver) == [64, 128], "it need not be computed, and takes blocks"


def test_the_cache_is_asked_again_only_when_something_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    from wait_core.vllm.prefixes import Prefixes

    asked = []
    tell = Prefixes.tell

    def counted(*args: Any) -> bool:
        asked.append(1)
        return tell(*args)

    monkeypatch.setattr(Prefixes, "tell", counted)
    driver = loaded()
    driver.add("b", PREFIX + [90] * 90, 12, ignore_eos=True)
    for _ in range(3):
        driver.step()
    before = len(asked)
    for _ in range(4):
        driver.step()
    assert len(asked) == before, "steady decode"
    driver.add("c", PREFIX + [91] * 91, 12, ignore_eos=True)
    driver.step()
    assert len(asked) == before + 1
    assert known(driver) == [64, 64]


def test_a_request_that_must_not_read_the_cache_saves_nothing() -> None:
    driver = loaded()
    driver.add("b", PREFIX + [90] * 90, 12, ignore_eos=True)
    driver.scheduler.requests["b"].skip_reading_prefix_cache = True
    for _ in range(3):
        driver.step()
    assert known(driver) == [0]


def test_without_a_prefix_cache_nothing_is_asked() -> None:
    from in_process import Driver, Setup

    assert not Driver(Setup(scheduler="WaitScheduler", prefix_caching=False)).scheduler.wait_core.prefixes.used


def test_the_core_learns_what_was_evicted() -> None:
    from in_process import Driver, Setup

    driver = Driver(Setup(scheduler="WaitScheduler", num_blocks=14, max_model_len=200))
    reports = []
    core = driver.scheduler.wait_core.core
    tell = driver.scheduler.wait_core.prefixes.tell

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            return getattr(core, name)

        def complete(self, **report: Any) -> None:
            reports.extend(report["hits"])
            core.complete(**report)

    driver.scheduler.wait_core.prefixes.tell = lambda _, *rest: tell(Recorder(), *rest)

    def serve(name: str, prompt: list[int]) -> list[tuple[int, ...]]:
        reports.clear()
        driver.add(name, prompt, 4, ignore_eos=True)
        while driver.scheduler.has_unfinished_requests():
            driver.step()
        driver.step()
        return [hit[1:] for hit in reports]

    chat = PREFIX + [70] * 33
    assert serve("first", chat) == []
    assert serve("all of it is cached", chat) == [(96, 0, 0)]
    assert serve("it takes the whole cache", [90] * 180) == []
    assert serve("it returns", chat) == [(16, 0, 80)], "one block was left"
    assert serve("only the beginning was computed", PREFIX + [71] * 33) == [(64, 0, 0)]


@pytest.mark.parametrize("seed", range(3))
def test_the_look_up_in_one_pass_finds_what_vllms_own_does(seed: int) -> None:
    from in_process import Driver, Setup, random_prompt

    driver = Driver(Setup(scheduler="WaitScheduler", num_blocks=40, max_num_seqs=6, max_model_len=256))
    manager = driver.scheduler.kv_cache_manager
    coordinator = manager.coordinator
    ours, stock = vars(coordinator)["find_longest_cache_hit"], type(coordinator).find_longest_cache_hit
    draw = random.Random(seed)
    beginnings = [random_prompt(draw, 90) for _ in range(2)]
    lengths, twice = set(), 0
    for i in range(300):
        if draw.random() < 0.4:
            # Of a prompt of whole blocks that are all cached, the last is computed again: there are two copies then.
            prompt = draw.choice(beginnings)[: draw.choice((80, draw.randint(1, 90)))]
            prompt += random_prompt(draw, draw.choice((0, draw.randint(1, 60))))
            driver.add(f"r{i}", prompt, draw.randint(1, 40))
        if i % 100 == 99:
            driver.scheduler.reset_prefix_cache(reset_running_requests=True)
        driver.step()
        for beginning in beginnings:
            driver.add(f"looks{i}", beginning, 1)
            request = driver.scheduler.requests[f"looks{i}"]
            driver.abort(f"looks{i}")
            for most in (0, 15, 16, draw.randrange(91), 89, 90, 999):
                found = ours(request.block_hashes, most)
                theirs = stock(coordinator, request.block_hashes, most)
                assert found[1:] == theirs[1:]
                assert [id(block) for block in found[0][0]] == [id(block) for block in theirs[0][0]]
                lengths.add(found[1])
        hashes = [block.block_hash for block in manager.block_pool.blocks if block.block_hash is not None]
        twice += len(hashes) > len(set(hashes))
    assert lengths == set(range(0, 96, 16)), "hits of every length"
    assert twice, "and of blocks that were computed twice"


def test_other_caches_and_other_versions_keep_vllms_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from in_process import Setup, make_scheduler

    from wait_core.vllm import look_up

    def is_ours(**setup: Any) -> bool:
        coordinator = make_scheduler(Setup(scheduler="WaitScheduler", **setup)).kv_cache_manager.coordinator
        return "find_longest_cache_hit" in vars(coordinator)

    assert is_ours()
    assert not is_ours(prefix_caching=False)
    assert not is_ours(kv_groups=({"kind": "sliding_window", "window": 64},))
    assert not is_ours(kv_groups=({"kind": "full"}, {"kind": "sliding_window", "window": 64}))
    monkeypatch.setattr(look_up, "RESTATED", look_up.RESTATED[1:])
    assert not is_ours()


SEVERAL = ({"kind": "full"}, {"kind": "sliding_window", "window": 64, "count": 2})


@pytest.mark.parametrize("groups", [(), SEVERAL], ids=["", "windows"])
@pytest.mark.parametrize("samples", [8, 40])
def test_samples_of_a_prompt_enter_in_the_steps_in_which_stock_admits_them(
    samples: int, groups: tuple[dict[str, Any], ...]
) -> None:
    """The first computes the prompt, and the others find it in the cache in that step: nearly all tokens are saved."""
    from in_process import Driver, Setup, random_prompt

    sizes: dict[str, Any] = {"num_blocks": 1_500, "max_num_batched_tokens": 512, "kv_groups": groups}
    ours: dict[str, Any] = {"scheduler": "WaitScheduler", "wait_core": {"policy": "vllm"}}
    stock, mine = Driver(Setup(**sizes)), Driver(Setup(**sizes, **ours))
    draw, todo, steps = random.Random(0), 6, 0
    while todo or stock.scheduler.has_requests():
        if todo and steps % 7 == 0:
            todo -= 1
            prompt = random_prompt(draw, draw.randint(200, 900))
            for i in range(samples):
                stock.add(f"{todo}.{i}", prompt, 40)
                mine.add(f"{todo}.{i}", prompt, 40)
        theirs, same = (driver.step().scheduled for driver in (stock, mine))
        assert same.num_scheduled_tokens == theirs.num_scheduled_tokens, steps
        steps += 1
    mine.step()
    bridge = mine.scheduler.wait_core
    assert bridge.active
    assert bridge.core.used_blocks == 0
