"""The step log of a real engine: complete, harmless, and enough to fit a law to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from wait_core import simulate
from wait_core.hardware.calibration import fit
from wait_core.logs.step_log import load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
def test_every_step_is_logged_and_a_law_fits(run: Run, tmp_path: Path, async_scheduling: bool) -> None:
    stock = run(async_scheduling=async_scheduling)
    log = tmp_path / "steps.jsonl"
    mine = run(
        async_scheduling=async_scheduling,
        scheduler_cls="wait_core.vllm.WaitScheduler",
        wait_core={"policy": "vllm", "step_log_file": str(log)},
    )
    assert mine["tokens"] == stock["tokens"]
    steps = load([log])
    assert len(steps) == mine["steps"]
    outputs = sum(len(tokens) for tokens in mine["tokens"].values())
    assert outputs - len(mine["tokens"]) - mine["preemptions"] <= steps.decodes.sum() <= outputs
    assert steps.prefill_tokens.sum() > 0
    found = fit(steps)
    # Single steps of a millisecond are noise; their sum is not.
    assert abs(found.total_error) < 0.5
    report = simulate(
        "vllm",
        dataset_name="p16d32",
        request_rate=50,
        num_prompts=50,
        iteration_time=found.iteration_time,
        kv_blocks=80,
    )
    assert report.summary()["completed"] == 50
