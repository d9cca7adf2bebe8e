"""The `Scheduler` from Python: what a host reports, and how the core reacts."""

from __future__ import annotations

import random
from typing import Any

import pytest

from wait_core import Scheduler, WaitCoreError
from wait_core.logs.decision_log import KeptLog, LoggedCore


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


def test_what_went_as_planned_is_reported_with_the_next_plan() -> None:
    settings: dict[str, Any] = {"kv_blocks": 60, "max_num_seqs": 8, "token_budget": 128}
    logs = KeptLog(), KeptLog()
    cores = apart, together = [LoggedCore(Scheduler("adaptive", **settings), log) for log in logs]
    draw = random.Random(0)
    report: dict[str, Any] = {}
    steady = 0
    for at in range(600):
        if draw.random() < 0.1:
            for core in cores:
                core.add(at, 5 + at % 90, 40, now_ns=at)
        if report:
            apart.complete(**report)
        plan, other = apart.plan(at), together.plan(at, **report)
        assert repr(plan) == repr(other)
        changes = plan.admitted, plan.resumed, plan.preempted, plan.prefill, plan.paused, plan.refused
        assert plan.only_decodes == other.only_decodes == (not any(changes))
        steady += plan.only_decodes and plan.num_decodes > 0
        for number in [n for n in range(at + 1) if apart.stage(n) == 20 + n % 7]:
            for core in cores:
                core.complete(finished=[number])
        report = {"free_blocks": 60 - apart.used_blocks - (draw.random() < 0.3 and apart.used_blocks < 60)}
        if draw.random() < 0.9:
            report |= {"step_ns": 10**6 + 1000 * at, "iteration": plan.iteration}
    assert steady > 100
    assert apart.iteration_time == together.iteration_time
    assert logs[0].events == logs[1].events


def test_a_report_that_is_refused_plans_nothing() -> None:
    scheduler = Scheduler("vllm", kv_blocks=10)
    scheduler.add(1, 20)
    with pytest.raises(WaitCoreError, match="free_blocks"):
        scheduler.plan(0, free_blocks=11)
    assert (scheduler.num_waiting, scheduler.stats["iterations"]) == (1, 0)
