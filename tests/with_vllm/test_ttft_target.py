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
