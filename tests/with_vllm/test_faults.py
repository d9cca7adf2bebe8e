"""A fault in any call of ours leaves vLLM scheduling by itself: each is injected, in this process, without a model."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from wait_core import QueueFullError

if TYPE_CHECKING:
    from conftest import HandClock
    from in_process import Driver

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES: dict[str, Any] = {"num_blocks": 17, "max_num_seqs": 8, "max_model_len": 256, "max_num_batched_tokens": 256}
# The core stops for 50 plans; the watchdog opens the gates again and again.
STALLED = {"policy": "adaptive", "watchdog_s": 1e-4, "max_wait_s": 1e6}
# Residents pause at boundaries for lack of arrivals, at the end for good: there the watchdog helps.
TYPES = [{"prompt": 30, "output": 10, "rate": 2.0}, {"prompt": 30, "output": 35, "rate": 1.0}]
PAUSING = {"policy": "nested-wait", "work_conserving": False, "watchdog_s": 1e-3, "types": TYPES}
WATCHING = PAUSING | {"shadow": True}

SCHEDULING = [
    *((STALLED, f"core.{name}") for name in ("add", "plan", "complete", "abort", "explain")),
    *((STALLED, f"bridge.{name}") for name in ("_add", "_make_foreign", "_forget", "_left", "_report", "_exchange")),
    *((STALLED, f"bridge.{name}") for name in ("_follow", "_look_after", "_let_go")),
    *((STALLED, f"bridge.{name}") for name in ("_decide", "_why", "_compare")),
    *((STALLED, f"outcomes.{name}") for name in ("tell", "compare", "took", "_note_preempted", "_note_chunks")),
    *((STALLED, f"outcomes.{name}") for name in ("_note_ungated", "_note_unpaused", "_tell_drafted", "_correct")),
    *((PAUSING, f"bridge.{name}") for name in ("_decide", "_compare", "_why")),
    *((WATCHING, f"bridge.{name}") for name in ("_decide", "_compare")),
    (PAUSING, "outcomes._note_unpaused"),
    *((WATCHING, f"outcomes.{name}") for name in ("_note_ungated", "_note_unpaused")),
    *((STALLED, f"times.{name}") for name in ("scheduled", "ended")),
    (STALLED, "core.iteration_time"),
    (STALLED, "control.poll"),
    *((STALLED, where) for where in ("core.first_in_queue", "prefixes.tell", "unready.ready", "unready.keeps")),
    (STALLED, "bridge._declare"),
    (STALLED, "watchdog.look"),
    (STALLED, "watchdog.progressed"),
    (STALLED, "queue.open"),
    (STALLED, "transfer.declare"),
    *((STALLED, f"limits.{name}") for name in ("cut", "seats")),
    (PAUSING, "limits.pause"),
    *((STALLED, f"late.{name}") for name in ("watch", "due")),
    *((STALLED, f"telemetry.{name}") for name in ("arrived", "rejected_for", "explain")),
]
# What has to be so for a call to be made at all.
NEEDS: dict[str, dict[str, Any]] = {
    "outcomes._tell_drafted": {"draft_tokens": 2},
    "unready.ready": {"policy": "priority"},
}
FIGURES = [
    "core.stats",
    "core.kv_forecast",
    "core.used_blocks",
    "core.num_waiting",
    "core.waiting_tokens",
    "telemetry.collect",
    "late.taken",
]


class Panic(BaseException):
    """What a Rust panic looks like from Python."""


class Fault:
    """Raises from the call numbered `after` on."""

    def __init__(self, after: int) -> None:
        self.after, self.calls = after, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls > self.after:
            raise Panic("injected")


class Core:
    """The core, with a fault in one attribute; it also refuses some requests, and may hold everything for a while."""

    def __init__(self, core: Any, name: str, fault: Fault, *, stalls: bool) -> None:
        self.core, self.name, self.fault, self.plans = core, name, fault, 0 if stalls else 10**6

    def __getattr__(self, name: str) -> Any:
        if name == self.name:
            self.fault()
        return getattr(self.core, name)

    def __len__(self) -> int:
        return len(self.core)

    def add(self, number: int, *args: Any, **kwargs: Any) -> None:
        if self.name == "add":
            self.fault()
        if number % 7 == 6 and self.plans > 80:
            raise QueueFullError("one in seven is served by vLLM alone")
        self.core.add(number, *args, **kwargs)

    def plan(self, now_ns: int, **report: int | None) -> Any:
        if self.name == "plan":
            self.fault()
        self.plans += 1
        self.core.set_paused(30 < self.plans < 80)
        return self.core.plan(now_ns, **report)


def break_call(bridge: Any, where: str, after: int, patch: pytest.MonkeyPatch, *, stalls: bool = False) -> Fault:
    """Let the call `where`, "owner.name", fail after a number of successful calls."""
    from wait_core.vllm import transfer

    fault = Fault(after)
    owner, name = where.split(".")
    bridge.core = Core(bridge.core, name if owner == "core" else "", fault, stalls=stalls)
    if owner != "core":
        target = bridge if owner == "bridge" else transfer if owner == "transfer" else getattr(bridge, owner)
        whole = getattr(target, name)

        def broken(*args: Any, **kwargs: Any) -> Any:
            fault()
            return whole(*args, **kwargs)

        patch.setattr(target, name, broken)
    return fault


def serve(driver: Driver, seed: int = 0) -> None:
    """Serve a workload with every event that reaches the adapter, to the end."""
    from in_process import random_prompt
    from vllm.v1.core.sched.interface import PauseState

    draw = random.Random(seed)
    scheduler = driver.scheduler
    added = 0
    for i in range(20_000):
        if i < 150:
            for _ in range(draw.choice([0, 1, 1, 2])):
                eos = draw.random() < 0.3
                driver.add(
                    f"r{added}", random_prompt(draw, draw.randint(1, 60)), draw.randint(2, 40), ignore_eos=not eos
                )
                added += 1
        if i < 150 and i % 11 == 0 and scheduler.requests:
            driver.abort(draw.choice(sorted(scheduler.requests)))
        if i in (45, 90):
            scheduler.reset_prefix_cache(reset_running_requests=True)
        if i in (100, 104):
            scheduler.set_pause_state(PauseState.PAUSED_ALL if i == 100 else PauseState.UNPAUSED)
        step = driver.step()
        scheduler.make_stats()
        if i > 150 and not scheduler.requests and not step.scheduled.num_scheduled_tokens:
            break
    else:
        raise TimeoutError(f"no end: {scheduler.get_request_counts()} (running, waiting)")
    pool = scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1
    assert added > 100


def ours(settings: dict[str, Any], **engine: Any) -> Driver:
    from in_process import Driver, Setup

    return Driver(Setup(scheduler="WaitScheduler", wait_core=settings, **SIZES, **engine))


@pytest.mark.parametrize("after", [0, 10])
@pytest.mark.parametrize(("settings", "where"), SCHEDULING)
def test_a_fault_leaves_stock_scheduling(
    settings: dict[str, Any],
    where: str,
    after: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    driver = ours(settings, **NEEDS.get(where, {}))
    bridge = driver.scheduler.wait_core
    if where == "telemetry.explain":
        caplog.set_level("DEBUG", logger="vllm.wait_core.vllm.telemetry")
    # The figures read the core too, by the clock: a fault there is another test's.
    monkeypatch.setattr("wait_core.vllm.telemetry.LOAD_NS", 1 << 62)
    fault = break_call(bridge, where, after, monkeypatch, stalls=settings is STALLED)
    serve(driver)
    if after and fault.calls <= after:
        return  # called seldom: the first call is tested
    assert fault.calls == after + 1, "nothing of ours is called again"
    assert not bridge.active
    assert type(driver.scheduler.waiting).__module__.startswith("vllm."), "vLLM's own queue is back"
    assert driver.scheduler.max_num_scheduled_tokens == SIZES["max_num_batched_tokens"]
    assert caplog.text.count("wait-core failed") == 1


@pytest.mark.parametrize("after", [0, 10])
@pytest.mark.parametrize("where", FIGURES)
def test_a_fault_in_the_figures_leaves_scheduling_ours(
    where: str, after: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver = ours({})
    bridge = driver.scheduler.wait_core
    monkeypatch.setattr("wait_core.vllm.telemetry.LOAD_NS", 0)
    monkeypatch.setattr("wait_core.vllm.telemetry.METRICS_NS", 0)
    fault = break_call(bridge, where, after, monkeypatch)
    serve(driver)
    assert fault.calls == after + 1
    assert bridge.active
    assert caplog.text.count("sends no metrics from now on") == 1


@pytest.mark.parametrize("settings", [STALLED, PAUSING], ids=["stalled core", "paused for good"])
def test_the_watchdog_opens_the_gates_and_closes_them_again(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver = ours(settings)
    bridge = driver.scheduler.wait_core
    break_call(bridge, "core.", 0, monkeypatch, stalls=settings is STALLED)
    serve(driver)
    assert bridge.active
    assert bridge.counts["watchdog"] >= 1
    assert caplog.text.count("the gates open") == 1, "says why once"
    reasons = ["engine_paused"] if settings is STALLED else ["paused_at_boundary", "below_threshold"]
    assert any(reason in caplog.text for reason in reasons)
    if settings is STALLED:
        assert bridge.counts["watchdog"] > 1, "closed after each token, opened again"
        assert bridge.counts["steps"] > 2 * bridge.counts["watchdog"]
    driver.add("last", [5] * 20, 6, ignore_eos=True)
    while driver.scheduler.requests:
        driver.step()
    assert not bridge.watchdog.is_open


def test_the_watchdog_does_not_take_rest_for_a_stall(clock: HandClock) -> None:
    from vllm.v1.core.sched.interface import PauseState

    driver = ours({"watchdog_s": 0.05})
    bridge = driver.scheduler.wait_core
    for name in ("a", "b"):
        driver.add(name, [5] * 20, 6, ignore_eos=True)
        while driver.scheduler.requests:
            driver.step()
        driver.step()  # nothing left to schedule
        clock.forward(0.1)
    driver.add("c", [5] * 20, 6, ignore_eos=True)
    driver.scheduler.set_pause_state(PauseState.PAUSED_NEW)
    for _ in range(3):
        driver.step()
        clock.forward(0.1)
    driver.scheduler.set_pause_state(PauseState.UNPAUSED)
    while driver.scheduler.requests:
        driver.step()
    assert bridge.counts["watchdog"] == 0


def test_a_fault_at_the_end_of_the_engine_ends_ours_only(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = ours({})
    bridge = driver.scheduler.wait_core
    fault = break_call(bridge, "control.keep", 0, monkeypatch)
    driver.scheduler.shutdown()
    assert fault.calls == 1
    assert not bridge.active
