"""Encoder-decoder models: what each request's encoder has read is held in blocks of its own while it is resident."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Run

pytestmark = pytest.mark.filterwarnings("ignore")

GROUPS = ({"kind": "full", "block_size": 16}, {"kind": "cross_attention", "block_size": 16})


def setup(scheduler: str, policy: str, **more: Any) -> Any:
    """Describe an engine with a group for cross-attention."""
    from in_process import Setup

    return Setup(
        scheduler=scheduler,
        wait_core={"policy": policy, "watchdog_s": 0.0} if scheduler == "WaitScheduler" else {},
        kv_groups=GROUPS,
        prefix_caching=False,
        max_model_len=512,
        max_num_seqs=16,
        **{"max_num_batched_tokens": 1024, "num_blocks": 151, **more},
    )


def serve(scheduler: str, policy: str) -> dict[str, Any]:
    """Serve requests whose encoders read little or much, or nothing, in little memory."""
    from in_process import Driver, encoder_input, random_prompt

    driver = Driver(setup(scheduler, policy))
    mine = driver.scheduler
    draw = random.Random(0)
    todo = [
        (f"{i}", random_prompt(draw, draw.randint(1, 60)), draw.randint(1, 300), draw.choice([0, 5, 40, 200]))
        for i in range(80)
    ]
    found: dict[str, Any] = {"tokens": {}, "steps": [], "preemptions": 0, "scheduler": mine}
    while todo or mine.has_requests():
        if todo and len(found["steps"]) % 3 == 0:
            name, prompt, most, reads = todo.pop(0)
            driver.add(name, prompt, most, mm_features=encoder_input(name, reads) if reads else None)
        step = driver.step()
        found["steps"].append(step.scheduled.num_scheduled_tokens)
        found["preemptions"] += len(step.scheduled.preempted_req_ids or ())
        for outputs in (step.outputs or {}).values():
            for output in outputs.outputs:
                found["tokens"].setdefault(output.request_id, []).extend(output.new_token_ids)
        assert len(found["steps"]) < 5_000
    driver.step()
    return found


def test_policy_vllm_takes_the_steps_of_stock_when_memory_is_short() -> None:
    stock, mine = serve("AsyncScheduler", "vllm"), serve("WaitScheduler", "vllm")
    assert stock["preemptions"] > 10
    assert mine["tokens"] == stock["tokens"]
    assert mine["steps"] == stock["steps"]
    bridge = mine["scheduler"].wait_core
    assert bridge.active
    assert bridge.counts["foreign"] == bridge.counts["watchdog"] == bridge.core.used_blocks == len(bridge.core) == 0


def test_adaptive_preempts_less() -> None:
    stock, mine = serve("AsyncScheduler", "vllm"), serve("WaitScheduler", "adaptive")
    assert mine["tokens"] == stock["tokens"]
    assert mine["preemptions"] < stock["preemptions"]
    bridge = mine["scheduler"].wait_core
    assert bridge.active
    assert bridge.counts["foreign"] == bridge.counts["watchdog"] == bridge.core.used_blocks == len(bridge.core) == 0


@pytest.mark.parametrize("policy", ["vllm", "adaptive"])
def test_the_core_counts_the_blocks_before_vllm_reports_them(policy: str) -> None:
    from in_process import Driver, encoder_input

    driver = Driver(setup("WaitScheduler", policy))
    reads = [0, 1, 16, 17, 500]
    for i, tokens in enumerate(reads):
        driver.add(f"{i}", [3] * 20, 10, mm_features=encoder_input(f"{i}", tokens) if tokens else None)
    driver.step()
    pool = driver.scheduler.kv_cache_manager.block_pool
    used = sum(2 + -(-tokens // 16) for tokens in reads)
    assert driver.scheduler.wait_core.core.used_blocks == used == pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()


def test_a_request_that_fits_no_empty_cache_is_left_to_vllm() -> None:
    from in_process import Driver, encoder_input

    driver = Driver(setup("WaitScheduler", "vllm", num_blocks=41))
    driver.add("large", [3] * 20, 10, mm_features=encoder_input("large", 640))
    driver.add("small", [3] * 20, 10, mm_features=encoder_input("small", 300))
    assert driver.scheduler.wait_core.counts["foreign"] == 1


@pytest.mark.parametrize("policy", ["vllm", "adaptive"])
def test_a_whisper_model_gives_the_tokens_of_stock(run: Run, policy: str) -> None:
    stock = run(program="transcribe.py")
    mine = run(program="transcribe.py", scheduler_cls="wait_core.vllm.WaitScheduler", wait_core={"policy": policy})
    assert stock["preemptions"] > 0
    assert len({tuple(tokens[:8]) for tokens in stock["tokens"].values()}) > 10, "requests differ"
    assert mine["tokens"] == stock["tokens"]
    assert mine["preemptions"] <= stock["preemptions"]
    assert mine["adapter"]["active"]
    assert mine["adapter"]["foreign"] == mine["adapter"]["watchdog"] == 0
    assert mine["free_blocks_at_end"] == mine["usable_blocks"]
