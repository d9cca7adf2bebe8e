"""Events of vLLM's scheduler that the core must not misread, one by one, without a model."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

if TYPE_CHECKING:
    from conftest import HandClock

pytestmark = pytest.mark.filterwarnings("ignore")

HIDDEN = {"known_lengths": False, "use_max_tokens": False}
TYPES = [{"prompt": 30, "output": 10, "rate": 2.0}, {"prompt": 30, "output": 35, "rate": 1.0}]
PAUSING = {"policy": "nested-wait", "work_conserving": False, "watchdog_s": 0.05, "types": TYPES}


def engine(settings: dict[str, Any], **sizes: Any) -> Any:
    from in_process import Driver, Setup

    sizes = {"num_blocks": 65, "max_num_seqs": 16, "max_model_len": 256, "max_num_batched_tokens": 256} | sizes
    return Driver(Setup(scheduler="WaitScheduler", wait_core=settings, **sizes))


class Grammar:
    """A grammar that takes any token, once its future says that it is compiled."""

    def __init__(self) -> None:
        self.future: Future[Any] = Future()

    def add(self, driver: Any, name: str, prompt: list[int]) -> None:
        """Queue a request whose grammar is this one, not compiled yet."""
        from vllm.sampling_params import StructuredOutputsParams
        from vllm.v1.structured_output.request import StructuredOutputRequest

        driver.add(name, prompt, 8, ignore_eos=True, structured_outputs=StructuredOutputsParams(regex="a+"))
        wanted = StructuredOutputRequest(StructuredOutputsParams(regex="a+"))
        wanted.grammar = self.future
        driver.scheduler.requests[name].structured_output_request = wanted

    def accept_tokens(self, *_: object) -> bool:
        return True

    def is_terminated(self) -> bool:
        return False


def served(driver: Any, names: set[str], steps: int) -> set[str]:
    """Return which of `names` computed something in this many steps."""
    seen: set[str] = set()
    for _ in range(steps):
        seen |= names & driver.step().scheduled.num_scheduled_tokens.keys()
    return seen


@pytest.mark.parametrize("policy", ["adaptive", "vllm"])
def test_a_grammar_that_is_compiled_for_long_holds_no_other_request(policy: str, clock: HandClock) -> None:
    from vllm.v1.request import RequestStatus

    driver = engine({"policy": policy, "watchdog_s": 0.05})
    bridge = driver.scheduler.wait_core
    grammars = [Grammar() for _ in range(3)]
    for i, grammar in enumerate(grammars):
        grammar.add(driver, f"g{i}", [5 + i] * 120)  # more than a step has room for
        assert driver.scheduler.requests[f"g{i}"].status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    for name in ("a", "b"):
        driver.add(name, [50] * 100, 6, ignore_eos=True)
    assert served(driver, {"a", "b"}, 3) == {"a", "b"}
    driver.abort("g2")
    while driver.scheduler.get_num_unfinished_requests() > 2:
        driver.step()
    assert bridge.counts["refused"] == 0
    assert len(bridge.unready.kept) == 2
    clock.forward(0.1)
    driver.step()
    driver.step()
    assert bridge.counts["watchdog"] == 0, "no request could run"
    grammars[0].future.set_result(Grammar())
    grammars[1].future.set_exception(ValueError("no regex"))
    assert served(driver, {"g0", "g1"}, 2) == {"g0"}
    assert "g1" not in driver.scheduler.requests, "offered to vLLM, which has ended it"
    assert len(bridge.unready.kept) == 0
    assert bridge.active


def test_a_request_that_vllm_takes_the_moment_it_is_ready_is_known_to_run() -> None:
    driver = engine({"shadow": True})
    bridge = driver.scheduler.wait_core
    grammar = Grammar()
    grammar.add(driver, "g", [5] * 40)
    driver.step()
    ready, bridge.unready.ready = bridge.unready.ready, list
    grammar.future.set_result(Grammar())
    driver.step()
    bridge.unready.ready = ready
    driver.step()
    driver.step()
    assert bridge.active
    assert bridge.core.num_resident == 1
    assert bridge.core.num_waiting == 0


def test_a_pause_keeps_the_cache_and_computes_nothing() -> None:
    driver = engine(PAUSING | {"watchdog_s": 0})
    scheduler = driver.scheduler
    for i in range(12):
        driver.add(f"r{i}", [3 + i] * 30, 40, ignore_eos=True)
    paused: set[str] = set()
    for _ in range(200):
        before = {r.request_id: r.num_computed_tokens for r in scheduler.running}
        step = driver.step().scheduled.num_scheduled_tokens
        plan_paused = {r.request_id for r in scheduler.running if r.next_decode_eligible_step > scheduler.current_step}
        for name in plan_paused & before.keys():
            request = scheduler.requests[name]
            assert name not in step
            assert request.num_computed_tokens == before[name]
            assert len(scheduler.kv_cache_manager.get_block_ids(name)[0]) * 16 >= request.num_computed_tokens
        paused |= plan_paused & before.keys()
        if not scheduler.requests:
            break
    assert len(paused) > 3
    assert scheduler.wait_core.active


def test_a_pause_for_good_does_not_keep_a_draining_engine_from_draining(clock: HandClock) -> None:
    from vllm.v1.core.sched.interface import PauseState

    driver = engine(PAUSING)
    scheduler = driver.scheduler
    for i in range(12):
        driver.add(f"r{i}", [3 + i] * 30, 40, ignore_eos=True)
    for _ in range(8):
        driver.step()
    assert scheduler.running
    scheduler.set_pause_state(PauseState.PAUSED_NEW)
    for _ in range(2000):
        driver.step()
        clock.forward(0.01)
        if not scheduler.running:
            break
    assert not scheduler.running
    assert scheduler.wait_core.counts["watchdog"] >= 1


def test_a_name_used_again_at_once_is_not_forgotten() -> None:
    driver = engine({})
    bridge = driver.scheduler.wait_core
    from wait_core import CapacityError
    from wait_core.vllm import transfer

    with patch.object(transfer, "declare", side_effect=CapacityError("too long")):
        driver.add("a", [5] * 20, 6, ignore_eos=True)
        driver.abort("a")
        driver.add("a", [6] * 20, 6, ignore_eos=True)
    assert served(driver, {"a"}, 2) == {"a"}
    assert bridge.active


@pytest.mark.parametrize("policy", ["vllm", "adaptive"])
def test_a_batch_comes_back_from_a_reset_in_its_order(policy: str) -> None:
    driver = engine({"policy": policy}, max_num_batched_tokens=1024)
    names = [f"r{i}" for i in range(12)]
    for i, name in enumerate(names):
        driver.add(name, [3 + i] * 30, 40, ignore_eos=True)
    for _ in range(4):
        driver.step()
    assert [request.request_id for request in driver.scheduler.running] == names
    assert driver.scheduler.reset_prefix_cache(reset_running_requests=True)
    for _ in range(4):
        driver.step()
    assert [request.request_id for request in driver.scheduler.running] == names


def test_with_adapters_no_request_pauses() -> None:
    from vllm.config import LoRAConfig

    from wait_core.vllm.bridge import Bridge

    driver = engine(PAUSING)
    scheduler = driver.scheduler
    scheduler.lora_config = LoRAConfig(max_loras=1)
    scheduler.wait_core = Bridge(scheduler)
    for i in range(12):
        driver.add(f"r{i}", [3 + i] * 30, 40, ignore_eos=True)
    planned = 0
    for _ in range(200):
        running = {request.request_id for request in scheduler.running}
        step = driver.step().scheduled
        planned += scheduler.wait_core.paused
        ended = running - {request.request_id for request in scheduler.running}
        assert running - ended <= step.num_scheduled_tokens.keys() | ended
        if not scheduler.requests:
            break
    assert planned > 0, "the policy would"
    assert not scheduler.requests
    assert scheduler.wait_core.active
    assert scheduler.wait_core.counts["watchdog"] == 0


def test_the_last_residents_do_not_crawl(clock: HandClock) -> None:
    driver = engine(PAUSING | {"watchdog_s": 0.2})
    for i in range(12):
        driver.add(f"r{i}", [3 + i] * 30, 60, ignore_eos=True)
    steps = 0
    while driver.scheduler.requests and steps < 3000:
        driver.step()
        clock.forward(0.01)
        steps += 1
    assert not driver.scheduler.requests
    assert driver.scheduler.wait_core.counts["watchdog"] > 3
    assert steps < 500, "one token each 0.2 s would be longer"


def test_an_offer_refused_and_then_aborted_was_no_admission() -> None:
    from wait_core.vllm.telemetry import Telemetry

    driver = engine({})
    driver.add("a", [5] * 30, 40, ignore_eos=True)
    driver.step()
    core = driver.scheduler.wait_core.core
    telemetry = Telemetry()
    seen = telemetry.collect(core, core.settings, 0, {})["counters"].get("admitted", 0)
    queue = driver.scheduler.waiting
    for i in range(5):
        driver.add(f"b{i}", [6 + i] * 30, 40, ignore_eos=True)
        with patch.object(queue, "open", lambda _: type(queue).open(queue, [])):
            driver.step()
        seen += telemetry.collect(core, core.settings, 0, {})["counters"].get("admitted", 0)
        driver.abort(f"b{i}")
        driver.step()
        seen += telemetry.collect(core, core.settings, 0, {})["counters"].get("admitted", 0)
    assert core.stats["admitted"] == 1
    assert seen <= 2
