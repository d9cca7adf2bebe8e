"""Late requests are ended: on arrival, while they wait, and never once they have been admitted."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import HandClock

pytestmark = pytest.mark.filterwarnings("ignore")


class Line:
    """An engine with few seats, and what its clients received."""

    def __init__(self, seats: int = 1, policy: str = "fcfs", **wait_core: Any) -> None:
        from in_process import Driver, Setup

        self.driver = Driver(
            Setup(scheduler="WaitScheduler", wait_core=wait_core, policy=policy, max_num_seqs=seats, num_blocks=200)
        )
        self.scheduler = self.driver.scheduler
        self.draw = random.Random(1)
        self.told: dict[str, tuple[str, str | None]] = {}
        self.tokens: dict[str, int] = {}
        self.late: dict[str, int] = {}
        """As the metrics count them."""

    def add(self, name: str, output: int = 10, **extra: Any) -> None:
        from in_process import random_prompt

        arguments: dict[str, Any] = {"extra_args": extra} if extra else {}
        self.driver.add(name, random_prompt(self.draw, 20), output, ignore_eos=True, **arguments)

    def step(self) -> None:
        from wait_core.vllm.telemetry import detach

        outputs = self.driver.step(ended=()).outputs or {}
        for output in outputs.values():
            figures = detach(output.scheduler_stats) if output.scheduler_stats else None
            for bound, count in (figures or {}).get("metrics", {}).get("late", {}).items():
                self.late[bound] = self.late.get(bound, 0) + count
            for one in output.outputs:
                self.tokens[one.request_id] = self.tokens.get(one.request_id, 0) + len(one.new_token_ids)
                if one.finish_reason is not None:
                    self.told[one.request_id] = str(one.finish_reason), one.stop_reason

    def run(self) -> None:
        for _ in range(2000):
            self.step()
            if not self.scheduler.has_requests():
                break
        assert not self.scheduler.requests
        assert self.scheduler.wait_core.report()["active"]
        assert self.scheduler.wait_core._ids == {}
        pool = self.scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_what_has_waited_too_long_ends_and_its_client_is_notified(policy: str, clock: HandClock) -> None:
    line = Line(policy=policy, max_wait_s=0.3)
    for i in range(3):
        line.add(f"r{i}", 60)
    for _ in range(5):
        line.step()
    clock.forward(0.35)
    line.run()
    assert line.told == {
        "r0": ("length", None),
        "r1": ("abort", "late: max_wait_s"),
        "r2": ("abort", "late: max_wait_s"),
    }
    assert line.tokens == {"r0": 60, "r1": 0, "r2": 0}
    assert line.late == {"max_wait_s": 2}


def test_off_by_default(clock: HandClock) -> None:
    line = Line(ttft_target=0.05)
    for i in range(4):
        line.add(f"r{i}")
    clock.forward(0.1)
    line.run()
    assert {reason for reason, _ in line.told.values()} == {"length"}


def test_a_request_may_ask_for_less_and_not_for_more(clock: HandClock) -> None:
    line = Line(max_wait_s=0.3)
    line.add("first", 60)
    line.add("patient", wait_core_deadline=99.0)
    line.add("impatient", wait_core_deadline=0.1)
    line.add("wrong", wait_core_deadline="soon")
    for _ in range(5):
        line.step()
    clock.forward(0.15)
    line.step()
    line.step()
    assert line.told == {"impatient": ("abort", "late: deadline")}
    clock.forward(0.2)
    line.run()
    assert line.told["patient"] == line.told["wrong"] == ("abort", "late: max_wait_s")


def test_what_was_admitted_in_time_is_not_ended(clock: HandClock) -> None:
    """A preempted request waits again, but it has been admitted once."""
    line = Line(seats=4, max_wait_s=0.2, known_lengths=False, overflow_probability=0.9)
    for i in range(4):
        line.add(f"r{i}", 40)
    for _ in range(3):
        line.step()
    line.scheduler.reset_prefix_cache(reset_running_requests=True)
    clock.forward(0.25)
    line.run()
    assert {reason for reason, _ in line.told.values()} == {"length"}
    assert sum(line.tokens.values()) == 160


def test_late_refuse_ends_what_the_policy_finds_late(clock: HandClock) -> None:
    line = Line(ttft_target=0.2, late="refuse")
    for i in range(6):
        line.add(f"r{i}", 30)
    line.step()
    clock.forward(0.25)
    line.run()
    ended = {name: told for name, told in line.told.items() if told[0] == "abort"}
    assert ended
    assert set(ended.values()) == {("abort", "late: ttft_target")}
    assert line.told["r0"] == ("length", None)
    assert line.late == {"ttft_target": len(ended)}
    assert line.scheduler.wait_core.core.stats["refused"] == len(ended)


def test_what_would_wait_too_long_ends_when_it_comes(clock: HandClock) -> None:
    line = Line(max_wait_s=30.0)
    for i in range(30):
        line.add(f"r{i}", 2)
    for _ in range(60):
        line.step()
        clock.forward(0.005)
    core = line.scheduler.wait_core.core
    assert core.predicted_wait_ns > 5e6
    line.add("impatient", wait_core_deadline=0.001)
    assert "impatient" not in line.scheduler.requests
    line.step()
    line.step()
    assert line.told["impatient"] == ("abort", "late: deadline")
    line.run()
    assert sum(reason == "length" for reason, _ in line.told.values()) == 30


def test_bounds_far_away_do_not_pile_up() -> None:
    from wait_core.vllm.late import Late

    nobody: Any = None
    late = Late(nobody)
    request: Any = SimpleNamespace()
    for number in range(5000):
        late.watch(number, 10**17, "deadline")
        assert late.due(number, {number: request}) == []
    assert len(late.watched) < 1100


def test_shadow_mode_ends_nothing(clock: HandClock) -> None:
    line = Line(max_wait_s=0.05, ttft_target=0.05, late="refuse", shadow=True)
    for i in range(4):
        line.add(f"r{i}")
    clock.forward(0.1)
    line.run()
    assert {reason for reason, _ in line.told.values()} == {"length"}


def test_a_log_of_it_is_replayed(tmp_path: Path, clock: HandClock) -> None:
    from wait_core.logs import replay

    log = tmp_path / "decisions.jsonl"
    line = Line(ttft_target=0.2, late="refuse", max_wait_s=0.25, log_file=str(log))
    for i in range(6):
        line.add(f"r{i}", 30)
    line.step()
    clock.forward(0.3)
    line.run()
    line.scheduler.wait_core.log.close()
    assert replay(log).line is None


def test_tenants_and_priorities_that_clients_name() -> None:
    line = Line(tenant_weights=[3.0, 1.0], ageing=1000.0)
    for i in range(4):
        line.add(f"plain{i}", 5)
    for i in range(4):
        line.add(f"other{i}", 5, wait_core_tenant=1)
    line.add("nobody", 5, wait_core_tenant=9)
    line.run()
    order = list(line.told)
    assert order.index("other0") < order.index("plain3"), "its share, not its place in the queue"
    line = Line(ageing=1000.0)
    for i in range(4):
        line.add(f"r{i}", 5)
    line.add("urgent", 5, wait_core_priority=-3)
    line.run()
    assert list(line.told)[:2] == ["urgent", "r0"] or list(line.told)[:2] == ["r0", "urgent"]


def test_under_policy_vllm_all_go_by_arrival(tmp_path: Path) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text('{"policy": "vllm"}')
    line = Line(config_file=str(settings))
    names = [f"r{i}" for i in range(4)]
    for name in names:
        line.add(name, 5)
    line.add("urgent", 5, wait_core_priority=-3)
    line.run()
    assert list(line.told) == [*names, "urgent"]
