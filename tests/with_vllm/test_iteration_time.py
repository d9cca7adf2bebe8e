"""The iteration-time law, learned from the steps of an engine whose clock is driven by a law that is made up."""

from __future__ import annotations

import json
import random
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
from virtual import step_ns

from wait_core._core import iteration_seconds
from wait_core.vllm.step_times import StepTimes

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Run
    from in_process import Driver

pytestmark = pytest.mark.filterwarnings("ignore")

LINEAR = {"law": "linear", "d0": 0.008, "d1": 2e-7}
STAIRS = {
    "law": "measured",
    "round_to": 1,
    "steps": [
        {"up_to": 16, "base_ns": 4.0e6, "per_token_ns": 250e3},
        {"up_to": 128, "base_ns": 7.6e6, "per_token_ns": 25e3},
        {"up_to": 8192, "base_ns": 10.2e6, "per_token_ns": 4.5e3},
    ],
    "attention": {"per_decode_kv_ns": 18.0, "per_prefill_attention_ns": 0.4},
}


class VirtualTime:
    """A clock that advances as `law` says while the steps of `driver` are computed."""

    def __init__(self, law: dict[str, Any]) -> None:
        self.law = law
        self.ns = 1_000_000_000
        self.under_way: deque[int] = deque()

    def now_ns(self) -> int:
        return self.ns

    def compute(self, driver: Driver, scheduled: Any) -> None:
        """Let the step that is to end next take its time, after another was scheduled."""
        if scheduled.total_num_scheduled_tokens:
            self.under_way.append(step_ns(self.law, driver, scheduled))
        ahead = driver.setup.ahead if scheduled.total_num_scheduled_tokens else 0
        if len(self.under_way) > ahead:
            self.ns += self.under_way.popleft()


def serve(driver: Driver, time: VirtualTime, requests: int, seed: int = 0) -> None:
    """Serve requests of many sizes, with pauses in which the engine rests."""
    from in_process import random_prompt

    draw = random.Random(seed)
    begun = 0
    while begun < requests or driver.scheduler.has_requests():
        if begun < requests and draw.random() < 0.15:
            begun += 1
            driver.add(
                f"r{seed}-{begun}", random_prompt(draw, int(draw.lognormvariate(5, 1)) + 1), draw.randint(2, 120)
            )
        if not driver.scheduler.has_requests():
            time.ns += 3_000_000_000
            continue
        driver.step(compare=lambda scheduled: time.compute(driver, scheduled))


def engine(monkeypatch: pytest.MonkeyPatch, law: dict[str, Any], **wait_core: Any) -> tuple[Driver, VirtualTime]:
    from in_process import Driver, Setup

    from wait_core.vllm import clock

    time = VirtualTime(law)
    monkeypatch.setattr(clock, "now_ns", time.now_ns)
    ahead = wait_core.pop("ahead", 1)
    return Driver(Setup(scheduler="WaitScheduler", wait_core=wait_core, max_model_len=4096, ahead=ahead)), time


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("law", [LINEAR, STAIRS], ids=["linear", "stairs"])
def test_the_law_that_is_learned_is_the_law_of_the_clock(
    law: dict[str, Any], ahead: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from wait_core.vllm.telemetry import detach

    caplog.set_level("INFO")
    driver, time = engine(monkeypatch, law, ahead=ahead)
    serve(driver, time, 150)
    bridge = driver.scheduler.wait_core
    learned = bridge.core.iteration_time
    assert learned["used"]
    assert learned["error"] < 0.05
    assert learned["observations"] > 0.5 * bridge.counts["steps"]
    for decodes, context, chunks in ((1, 300, ()), (8, 400, ()), (12, 300, [(200, 0)]), (4, 300, [(800, 0)])):
        shape: dict[str, Any] = {"decodes": decodes, "decode_kv": decodes * context, "chunks": chunks}
        assert iteration_seconds(learned["law"], **shape) == pytest.approx(iteration_seconds(law, **shape), rel=0.1)
    assert "wait-core decides by the iteration-time law of" in caplog.text
    # As it travels to /metrics.
    outputs: list[Any] = []
    driver.add("last", [3] * 50, 3)
    while driver.scheduler.has_requests():
        step = driver.step(compare=lambda scheduled: time.compute(driver, scheduled))
        outputs += (step.outputs or {}).values()
    figures = [detach(each.scheduler_stats) for each in outputs if each.scheduler_stats]
    reported = [each["metrics"]["iteration_time"] for each in figures if each and "metrics" in each]
    assert reported[-1]["used"]
    assert reported[-1]["seconds"]["decode"] == pytest.approx(
        iteration_seconds(law, decodes=1, decode_kv=1000), rel=0.1
    )


def test_it_outlives_the_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = tmp_path / "learned.json"
    driver, time = engine(monkeypatch, LINEAR, learned_file=str(kept))
    serve(driver, time, 150)
    before = driver.scheduler.wait_core.core.iteration_time
    driver.scheduler.shutdown()
    assert json.loads(kept.read_text())["learned"]["iteration_time"]
    again, _ = engine(monkeypatch, LINEAR, learned_file=str(kept))
    after = again.scheduler.wait_core.core.iteration_time
    assert after["used"]
    shape: dict[str, Any] = {"decodes": 8, "decode_kv": 3000, "chunks": [(200, 0)]}
    assert iteration_seconds(after["law"], **shape) == pytest.approx(iteration_seconds(before["law"], **shape))


def test_what_another_core_planned_is_not_reported_to_its_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, time = engine(monkeypatch, LINEAR)
    driver.add("r", [3] * 50, 20)
    for _ in range(4):
        driver.step(compare=lambda scheduled: time.compute(driver, scheduled))
    bridge = driver.scheduler.wait_core
    timed = bridge._timed
    assert all(timed)
    bridge.core = object()
    bridge.step_ended(type("Output", (), {"total_num_scheduled_tokens": 1}))
    assert bridge._timed is timed


def test_a_pause_is_no_part_of_a_step_and_the_work_between_two_is() -> None:
    times: StepTimes[str] = StepTimes()
    ms = 1_000_000
    times.scheduled(10 * ms, "first")
    assert times.ended(15 * ms) == ("first", 5 * ms)
    times.handled(16 * ms)
    times.scheduled(17 * ms, "at once")
    assert times.ended(25 * ms) == ("at once", 10 * ms)
    times.handled(26 * ms)
    times.scheduled(60 * ms, "after a pause")
    times.scheduled(61 * ms, "ahead")
    assert times.ended(70 * ms) == ("after a pause", 10 * ms)
    times.handled(71 * ms)
    assert times.ended(75 * ms) == ("ahead", 5 * ms)
    assert times.ended(80 * ms) is None


def test_a_law_appears_in_a_real_engine(run: Run) -> None:
    """The tiny Llama on the CPU, every setting as it is by default."""
    mine = run(
        scheduler_cls="wait_core.vllm.WaitScheduler",
        requests=150,
        output_tokens=(8, 100),
        arrivals_per_step=1,
        engine={"num_gpu_blocks_override": 200},
    )
    law = mine["adapter"]["iteration_time"]
    assert law["observations"] >= 64
    assert law["error"] is not None
    assert 0 < law["seconds"]["decode"] < 1.0
    assert law["seconds"]["decode"] < law["seconds"]["prompt"]
