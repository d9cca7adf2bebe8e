"""Steps in which the residents decode a token each, and nothing else: the short way through the adapter."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import HandClock
    from in_process import Driver

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES: dict[str, Any] = {"num_blocks": 33, "max_num_seqs": 6, "max_model_len": 256, "max_num_batched_tokens": 128}
TYPES = [{"prompt": 40, "output": 30, "rate": 1.0}]
KINDS: dict[str, dict[str, Any]] = {
    "adaptive": {},
    "vllm": {"wait_core": {"policy": "vllm"}},
    "no step ahead": {"ahead": 0},
    "windows": {"kv_groups": ({"kind": "full"}, {"kind": "sliding_window", "window": 64}), "num_blocks": 80},
    "drafts": {"draft_tokens": 2},
    "nested-wait": {"wait_core": {"policy": "nested-wait", "work_conserving": False, "types": TYPES}},
    "target": {"wait_core": {"ttft_target": 0.2}},
    "waits bounded": {"wait_core": {"max_wait_s": 0.5}},
    "priority": {"policy": "priority"},
    "shadow": {"wait_core": {"shadow": True}},
    "refusing": {"wait_core": {"ttft_target": 0.3, "late": "refuse"}},
}


def engine(**more: Any) -> Driver:
    from in_process import Driver, Setup

    return Driver(Setup(scheduler="WaitScheduler", **(SIZES | more)))


class Calls:
    """A core that notes by what it is called."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.names: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.names.append(name)
        return getattr(self.core, name)


def decoding(requests: int = 6, **more: Any) -> tuple[Driver, Any]:
    """Return a driver of requests that decode, and its bridge."""
    driver = engine(**more)
    for i in range(requests):
        driver.add(f"r{i}", [5 + i] * 20, 100, ignore_eos=True)
    for _ in range(10):
        driver.step()
    return driver, driver.scheduler.wait_core


def test_a_steady_step_is_one_call_of_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wait_core.vllm.bridge.LOOK_NS", 1 << 62)
    driver, bridge = decoding()
    driver.scheduler.make_stats()
    calls = bridge.core = Calls(bridge.core)
    for longer in ("_report", "_look_after", "_follow", "_compare"):
        monkeypatch.setattr(bridge, longer, None)  # a call of it would end the adapter
    for _ in range(8):
        assert len(driver.step().scheduled.num_scheduled_tokens) == 6
    assert calls.names == ["plan"] * 8
    # All seats are taken, so that nothing could be done for one that arrives.
    calls.names.clear()
    driver.add("late", [7] * 20, 10)
    driver.step()
    assert calls.names == ["add", "plan"]
    assert bridge.active


EVENTS: dict[str, Callable[[Driver], object]] = {
    "an abort": lambda driver: driver.abort("r1"),
    "an arrival with a seat free": lambda driver: driver.add("late", [7] * 20, 10),
    "a name used again": lambda driver: [driver.abort("r1"), driver.add("r1", [8] * 20, 30)],  # type: ignore[func-returns-value]
    "a reset of the prefix cache": lambda driver: driver.scheduler.reset_prefix_cache(reset_running_requests=True),
}


@pytest.mark.parametrize("event", list(EVENTS))
def test_what_happens_between_two_steps_ends_it(event: str) -> None:
    driver, bridge = decoding(5, ahead=0)
    assert bridge._steady
    EVENTS[event](driver)
    for _ in range(6):
        driver.step()
    running = {request.request_id for request in driver.scheduler.running}
    assert {name for name in running if bridge.core.stage(bridge._ids[name])} == running
    assert bridge.core.num_resident == len(running)
    assert bridge.counts["corrected"] == 0


def serve(driver: Driver, clock: HandClock, seed: int, *, short: bool) -> list[dict[str, int]]:
    """Serve requests that come, go, and share beginnings, and return what each step computed."""
    from in_process import random_prompt
    from vllm.v1.core.sched.interface import PauseState

    draw = random.Random(seed)
    scheduler = driver.scheduler
    bridge = scheduler.wait_core
    steps: list[dict[str, int]] = []
    added = 0
    compared: list[Any] = []
    compare = bridge._compare
    bridge._compare = lambda *step: compared.append(compare(*step))
    beginning = random_prompt(draw, 32)
    while len(steps) < 400 or scheduler.has_unfinished_requests():
        if len(steps) < 400:
            for _ in range(draw.random() < 0.07):
                prompt = beginning[: 16 * draw.randrange(3)] + random_prompt(draw, draw.randint(1, 60))
                driver.add(f"r{added}", prompt, draw.randint(2, 60), ignore_eos=draw.random() < 0.5)
                added += 1
            if scheduler.requests and draw.random() < 0.02:
                gone = draw.choice(sorted(scheduler.requests))
                driver.abort(gone)
                # And its name is used again before the next step, which vLLM does not bear with a step under way.
                if draw.random() < 0.5 and not driver.setup.ahead:
                    driver.add(gone, random_prompt(draw, 30), 20)
            if draw.random() < 0.005:
                scheduler.reset_prefix_cache(reset_running_requests=draw.random() < 0.7)
            if draw.random() < 0.02:
                scheduler.set_pause_state(draw.choice(list(PauseState)))
        else:
            scheduler.set_pause_state(PauseState.UNPAUSED)
        bridge._steady &= short
        steps.append(dict(driver.step().scheduled.num_scheduled_tokens))
        clock.forward(0.01)
        assert len(steps) < 5_000
    assert bridge.active
    never = not short or bridge.settings.shadow or bridge.control.engine["num_speculative_tokens"]
    assert (len(compared) < 0.95 * len(steps)) == (not never)
    return steps


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_short_way_decides_as_the_long_one(kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from conftest import HandClock

    from wait_core.vllm import clock

    found = []
    for short in (True, False):
        by_hand = HandClock()
        monkeypatch.setattr(clock, "now_ns", by_hand.now_ns)
        found.append(serve(engine(**KINDS[kind]), by_hand, seed, short=short))
    assert found[0] == found[1]
