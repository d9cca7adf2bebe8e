"""Two pipeline stages, each a process: while one batch is in the second stage, others are planned for the first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Run

# vLLM's CPU build allocates what the second stage receives while it warms up, which it does for compiled models only,
# and not where VLLM_CPU_CI_ENV is set.
STAGES: dict[str, Any] = {
    "pipeline_parallel_size": 2,
    "distributed_executor_backend": "mp",
    "enforce_eager": False,
    "compilation_config": {"mode": 2, "backend": "eager"},
}


@pytest.mark.timeout(600)
def test_tokens_are_those_of_stock(run: Run) -> None:
    job: dict[str, Any] = {"requests": 40, "time_limit_s": 600, "engine": STAGES}
    job["environment"] = {"VLLM_CPU_CI_ENV": "0"}
    stock = run(**job)
    mine = run(**job, scheduler_cls="wait_core.vllm.WaitScheduler")
    assert mine["scheduler"] == "SyncWaitScheduler"
    assert mine["batch_queue_size"] == 2, "batches overlap, and each request is in one of them"
    assert mine["adapter"]["active"]
    assert mine["adapter"]["foreign"] == mine["adapter"]["watchdog"] == 0
    assert mine["tokens"] == stock["tokens"]
    assert mine["free_blocks_at_end"] == mine["usable_blocks"]
    print([[result[name] for name in ("steps", "preemptions")] for result in (stock, mine)])
    # Stock lets one stage idle while all requests are in one batch; ours may spread them over both.
    assert mine["steps"] + mine["empty_steps"] <= 1.1 * (stock["steps"] + stock["empty_steps"])
    assert mine["preemptions"] < stock["preemptions"]
