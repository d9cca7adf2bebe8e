"""Pooling models: a request computes its prompt and ends; what is made of it takes the place of its one token."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Run

pytestmark = pytest.mark.filterwarnings("ignore")

LONGEST = 512


def serve(scheduler: str, policy: str, ahead: int, **more: Any) -> dict[str, Any]:
    """Embed prompts of up to `max_model_len` tokens, in chunks, in little memory."""
    from in_process import Driver, Setup, random_prompt

    driver = Driver(
        Setup(
            scheduler=scheduler,
            wait_core={"policy": policy, "watchdog_s": 0.0} if scheduler == "WaitScheduler" else {},
            pooling=True,
            ahead=ahead,
            **{"num_blocks": 61, "max_model_len": LONGEST, "max_num_seqs": 8, "max_num_batched_tokens": 256, **more},
        )
    )
    mine = driver.scheduler
    draw = random.Random(0)
    shared = random_prompt(draw, 60)
    lengths = [LONGEST - 60 if i % 10 == 9 else draw.randint(1, 200) for i in range(80)]
    todo = [(f"{i}", shared + random_prompt(draw, length)) for i, length in enumerate(lengths)]
    found: dict[str, Any] = {"made": {}, "steps": [], "scheduler": mine}
    while todo or mine.has_requests():
        if todo:
            driver.add(*todo.pop(0), 1)
        step = driver.step()
        found["steps"].append(step.scheduled.num_scheduled_tokens)
        for outputs in (step.outputs or {}).values():
            for output in outputs.outputs:
                found["made"][output.request_id] = output.pooling_output.tolist()
        assert len(found["steps"]) < 2_000
    driver.step()
    return found


@pytest.mark.parametrize("ahead", [0, 1], ids=["", "ahead"])
@pytest.mark.parametrize("policy", ["vllm", "adaptive"])
def test_prompts_are_computed_as_by_stock(policy: str, ahead: int) -> None:
    stock = serve("AsyncScheduler", policy, ahead)
    mine = serve("WaitScheduler", policy, ahead)
    assert len(stock["made"]) == 80
    assert mine["made"] == stock["made"]
    if policy == "vllm":
        assert mine["steps"] == stock["steps"]
    assert len(mine["steps"]) <= 1.02 * len(stock["steps"])
    bridge = mine["scheduler"].wait_core
    assert bridge.active
    assert bridge.counts["foreign"] == bridge.counts["watchdog"] == bridge.counts["corrected"] == 0
    assert bridge.core.used_blocks == len(bridge.core) == 0


def test_a_prompt_as_long_as_the_model_allows_is_planned() -> None:
    from in_process import Driver, Setup

    driver = Driver(Setup(scheduler="WaitScheduler", pooling=True, max_model_len=512))
    driver.add("whole", [3] * 512, 1)
    assert driver.scheduler.wait_core.counts["foreign"] == 0
    assert driver.step().scheduled.num_scheduled_tokens == {"whole": 512}


@pytest.mark.parametrize("settings", [{"max_wait_s": 1.0}, {"ttft_target": 1.0, "late": "refuse"}])
def test_requests_that_cannot_be_told_so_do_not_end_late(settings: dict[str, Any]) -> None:
    from in_process import Setup, make_scheduler

    from wait_core.vllm.config import ConfigError

    with pytest.raises(ConfigError, match="where the model pools: leave them out"):
        make_scheduler(Setup(scheduler="WaitScheduler", pooling=True, wait_core=settings))


@pytest.mark.parametrize("policy", ["vllm", "adaptive"])
@pytest.mark.parametrize("model", ["llama", "bert"])
def test_embeddings_are_those_of_stock(run: Run, model: str, policy: str) -> None:
    stock = run(program="embed.py", model=model)
    mine = run(
        program="embed.py", model=model, scheduler_cls="wait_core.vllm.WaitScheduler", wait_core={"policy": policy}
    )
    assert mine["adapter"]["active"]
    assert mine["adapter"]["foreign"] == mine["adapter"]["watchdog"] == 0
    assert mine["free_blocks_at_end"] == mine["usable_blocks"]
    assert mine["steps"] <= 1.05 * stock["steps"]
    assert len(mine["embeddings"]) == 60
    for name, embedding in mine["embeddings"].items():
        # Batches of other sizes are summed in another order.
        assert embedding == pytest.approx(stock["embeddings"][name], abs=1e-5), name
        assert sum(value * value for value in embedding) == pytest.approx(1.0, abs=1e-4)
    rounded = {tuple(round(value, 2) for value in each) for each in mine["embeddings"].values()}
    assert len(rounded) > 50, "the prompt decides"
