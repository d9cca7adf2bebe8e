"""The `Scheduler` from Python: what a host reports, and how the core reacts."""

from __future__ import annotations

from wait_core import Scheduler


def test_a_host_may_admit_on_its_own() -> None:
    scheduler = Scheduler("vllm", kv_blocks=100, max_num_seqs=1, token_budget=64)
    scheduler.add(1, 16)
    scheduler.add(2, 32)
    scheduler.plan()
    assert (scheduler.num_resident, scheduler.num_waiting) == (1, 1)
    scheduler.complete(progress=[(2, 20)])  # it has computed 20 of 32 prompt tokens
    assert (scheduler.num_resident, scheduler.num_waiting) == (2, 0)
    plan = scheduler.plan()
    assert plan.prefill == [(2, 12)]
    assert plan.num_decodes == 1
    assert scheduler.stage(2) == 1
    assert scheduler.stats["admitted"] == 2


def test_a_decode_that_yields_several_tokens() -> None:
    scheduler = Scheduler("vllm", kv_blocks=100)
    scheduler.add(1, 16)
    scheduler.plan()
    assert scheduler.stage(1) == 1
    scheduler.plan()
    # Speculation: the step of the second token yielded four.
    scheduler.complete(progress=[(1, 20)])
    assert scheduler.stage(1) == 5
    assert scheduler.used_blocks == 2


def test_the_settings_say_the_capacity_in_force() -> None:
    core = Scheduler("vllm", kv_blocks=10)
    assert core.settings["kv_blocks"] == 10
    core.set_capacity(7)
    assert (core.settings["kv_blocks"], core.settings["max_model_len"]) == (7, None)
