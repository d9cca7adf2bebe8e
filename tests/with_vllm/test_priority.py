"""vLLM's priority policy under the adapter: its order where memory does not bind, its tokens where it does."""

from __future__ import annotations

import random
from statistics import mean
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Run

pytestmark = pytest.mark.filterwarnings("ignore")

OURS = "wait_core.vllm.WaitScheduler"
HIDDEN = {"known_lengths": False, "use_max_tokens": False}
BY_PRIORITY: dict[str, Any] = {"async_scheduling": True, "engine": {"scheduling_policy": "priority"}, "priorities": 3}
VLLM = {"policy": "vllm"}
LEVELS = [0, 0, 0, 3, -5, 10**12, -(10**14)]  # some like times since 1970


def side_by_side(ours: dict[str, Any], *, steps: int, seed: int, **sizes: Any) -> tuple[Any, Any, int, int]:
    """Serve the same arrivals; return both drivers, how many steps differed, and how often stock preempted."""
    from in_process import Driver, Setup, random_prompt

    setup: dict[str, Any] = {"policy": "priority", "max_num_seqs": 6, "max_model_len": 256, **sizes}
    stock, mine = Driver(Setup(**setup)), Driver(Setup(scheduler="WaitScheduler", wait_core=ours, **setup))
    # Without times there is no law, and the token budget stays vLLM's.
    mine.scheduler.wait_core.times.ended = lambda _: None
    draw = random.Random(seed)
    added = different = preempted = 0
    for _ in range(steps):
        for _ in range(draw.choice([0, 0, 0, 1, 2])):
            prompt, length, level = random_prompt(draw, draw.randint(1, 120)), draw.randint(3, 60), draw.choice(LEVELS)
            for driver in (stock, mine):
                driver.add(f"r{added}", prompt, length, level, ignore_eos=True)
            added += 1
        theirs, our = stock.step(), mine.step()
        preempted += len(theirs.scheduled.preempted_req_ids)
        different += theirs.scheduled.num_scheduled_tokens != our.scheduled.num_scheduled_tokens
    return stock, mine, different, preempted


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("settings", [{}, HIDDEN, {"shadow": True}, VLLM], ids=["known", "hidden", "shadow", "vllm"])
def test_the_order_is_vllms_where_memory_does_not_bind(settings: dict[str, Any], seed: int) -> None:
    stock, mine, different, _ = side_by_side(settings, steps=400, seed=seed, num_blocks=2048)
    assert different == 0
    line = [request.request_id for request in mine.scheduler.waiting]
    assert line == [request.request_id for request in stock.scheduler.waiting]
    assert len(line) > 100, "seats must be scarce"
    report = mine.scheduler.wait_core.report()
    assert report["active"]
    assert report["corrected"] == 0


@pytest.mark.parametrize("seed", range(2))
def test_shadow_mode_leaves_vllms_order_where_memory_binds(seed: int) -> None:
    _, mine, different, preempted = side_by_side({"shadow": True}, steps=400, seed=seed, num_blocks=20, max_num_seqs=16)
    assert different == 0
    assert preempted > 10
    assert mine.scheduler.wait_core.active


@pytest.mark.parametrize("seed", range(3))
def test_policy_vllm_is_vllm_where_memory_binds(seed: int) -> None:
    stock, mine, different, preempted = side_by_side(VLLM, steps=400, seed=seed, num_blocks=20, max_num_seqs=16)
    assert preempted > 10
    assert different == 0
    line = [request.request_id for request in mine.scheduler.waiting]
    assert line == [request.request_id for request in stock.scheduler.waiting]
    assert mine.scheduler.wait_core.active


@pytest.mark.parametrize("settings", [{}, HIDDEN], ids=["known", "hidden"])
def test_the_same_tokens_and_the_important_first(run: Run, settings: dict[str, Any]) -> None:
    """Memory binds: vLLM preempts the least important, and the core learns which from vLLM."""
    stock = run(**BY_PRIORITY)
    mine = run(**BY_PRIORITY, scheduler_cls=OURS, wait_core=settings)
    assert mine["adapter"]["active"]
    assert mine["tokens"] == stock["tokens"]
    assert mine["free_blocks_at_end"] == mine["usable_blocks"]
    assert stock["preemptions"] > 20
    assert mine["preemptions"] <= stock["preemptions"]
    print(f"preemptions {stock['preemptions']} stock, {mine['preemptions']} ours")
    places: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for place, name in enumerate(mine["tokens"]):
        places[mine["priorities"][name]].append(place)
    # All arrive at once: a level is begun when none of the more important waits.
    assert max(places[0]) < mean(places[1]) < max(places[1]) < mean(places[2])


def test_an_error_of_ours_leaves_vllms_order(run: Run) -> None:
    stock = run(**BY_PRIORITY)
    fault = {"call": "plan", "after": 100, "kind": "panic"}
    mine = run(**BY_PRIORITY, scheduler_cls=OURS, fault=fault)
    assert not mine["adapter"]["active"]
    assert mine["tokens"] == stock["tokens"]


@pytest.mark.parametrize("policy", ["wait", "nested-wait", "clairvoyant", "sarathi", "prefill-first"])
def test_policies_that_would_ignore_priorities_are_refused(policy: str) -> None:
    from in_process import Setup, make_scheduler

    from wait_core.vllm.config import ConfigError

    with pytest.raises(ConfigError, match="would ignore --scheduling-policy priority"):
        make_scheduler(Setup(scheduler="WaitScheduler", wait_core={"policy": policy}, policy="priority"))


def test_they_are_refused_while_serving_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from in_process import Driver, Setup

    monkeypatch.setattr("wait_core.vllm.bridge.LOOK_NS", 0)
    path = tmp_path / "settings.json"
    path.write_text("{}")
    driver = Driver(Setup(scheduler="WaitScheduler", wait_core={"config_file": str(path)}, policy="priority"))
    bridge = driver.scheduler.wait_core
    assert bridge.core.settings["ageing"] is None
    path.write_text('{"policy": "sarathi"}')
    driver.step()
    assert bridge.settings.policy == "adaptive"
    assert bridge.counts["reconfigured"] == 0
    path.write_text('{"ageing": 12.5}')  # a request that waits long enough is served, however unimportant
    driver.step()
    assert bridge.core.settings["ageing"] == 12.5
    assert bridge.active


@pytest.mark.parametrize("settings", [{}, VLLM], ids=["adaptive", "vllm"])
def test_where_vllm_goes_by_arrival_priorities_change_nothing(settings: dict[str, Any]) -> None:
    stock, mine, different, _ = side_by_side(settings, steps=200, seed=3, num_blocks=2048, policy="fcfs")
    assert different == 0
    assert len(mine.scheduler.waiting) == len(stock.scheduler.waiting) > 20
