"""The token budget of a step: lowered by `adaptive` where it knows the GPU's law, never below what runs."""

from __future__ import annotations

import random
from statistics import median
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")

LAW = {"law": "a100"}


@pytest.mark.parametrize("settings", [{}, {"iteration_time": LAW}], ids=["no law", "law"])
def test_the_budget_follows_the_law_and_no_request_starves(settings: dict[str, Any]) -> None:
    from in_process import Driver, Setup, random_prompt

    driver = Driver(
        Setup(
            scheduler="WaitScheduler",
            wait_core=settings,
            num_blocks=4096,
            max_num_seqs=128,
            max_num_batched_tokens=2048,
        )
    )
    draw = random.Random(0)
    for i in range(100):
        driver.add(f"r{i}", random_prompt(draw, draw.randint(100, 900)), draw.randint(20, 60), ignore_eos=True)
    busy: list[int] = []
    waited: dict[str, int] = {}
    while driver.scheduler.requests:
        decoding = {r.request_id for r in driver.scheduler.running if not r.is_prefill_chunk}
        step = driver.step().scheduled
        if len(driver.scheduler.waiting):
            busy.append(step.total_num_scheduled_tokens)
        for name in decoding & driver.scheduler.requests.keys():
            waited[name] = 0 if name in step.num_scheduled_tokens else waited.get(name, 0) + 1
            assert waited[name] <= 2, "decodes continue whatever the budget: only a last token in flight is waited for"
    assert driver.scheduler.wait_core.active
    assert driver.scheduler.max_num_scheduled_tokens == 2048, "set back after each step"
    assert len(busy) > 5
    # While requests wait: the edge of a stair of the law, or all that vLLM allows.
    assert median(busy) in ({384, 512, 768, 1024} if settings else {2048})
