"""A TTFT target inside vLLM: late requests let those in time go first, and every request finishes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import HandClock

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_late_requests_let_others_go_first(policy: str, clock: HandClock) -> None:
    from in_process import Driver, Setup, random_prompt

    setup = Setup(scheduler="WaitScheduler", wait_core={"ttft_target": 1.0}, policy=policy, max_num_seqs=2)
    driver, draw = Driver(setup), random.Random(1)
    early, late = [f"early{i}" for i in range(4)], [f"late{i}" for i in range(4)]
    for name in late:
        driver.add(name, random_prompt(draw, 20), 5, ignore_eos=True)
    clock.forward(1.1)
    for name in early:
        driver.add(name, random_prompt(draw, 20), 5, ignore_eos=True)
    begun: list[str] = []
    for _ in range(100):
        step = driver.step()
        begun += [request.req_id for request in step.scheduled.scheduled_new_reqs]
        if not driver.scheduler.has_unfinished_requests():
            break
    assert begun == early + late
    report = driver.scheduler.wait_core.report()
    assert report["active"]
    assert report["corrected"] == 0
    assert driver.scheduler.wait_core.core.stats["holds"]["ttft_target"] > 0


def test_long_late_prompts_delay_no_prompt_in_time(clock: HandClock) -> None:
    from in_process import Driver, Setup, random_prompt

    waits: dict[bool, int] = {}
    for stated in (False, True):
        wait_core = {"ttft_target": 1.0} if stated else {}
        setup = Setup(scheduler="WaitScheduler", wait_core=wait_core, max_num_batched_tokens=256, max_num_seqs=8)
        driver, draw = Driver(setup), random.Random(1)
        for i in range(4):
            driver.add(f"late{i}", random_prompt(draw, 1500), 5, ignore_eos=True)
        clock.forward(1.1)
        came: dict[str, int] = {}
        answered: dict[str, int] = {}
        for step in range(400):
            if step % 2 == 0 and step < 120:
                driver.add(f"short{step}", random_prompt(draw, 200), 5, ignore_eos=True)
                came[f"short{step}"] = step
            clock.forward(0.01)
            for of_client in (driver.step().outputs or {}).values():
                for output in of_client.outputs:
                    answered.setdefault(output.request_id, step)
            if step >= 120 and not driver.scheduler.has_unfinished_requests():
                break
        assert not driver.scheduler.has_unfinished_requests()
        report = driver.scheduler.wait_core.report()
        assert report["active"]
        assert report["refused"] == report["corrected"] == 0
        assert driver.scheduler.scheduler_config.long_prefill_token_threshold == 0
        waits[stated] = max(answered[name] - step for name, step in came.items())
    assert waits[True] <= 6 < waits[False]
