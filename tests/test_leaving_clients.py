"""Clients that leave before their output ends free memory as those do whose output has ended, and are learned from."""

from __future__ import annotations

import random
from typing import Any

import pytest

from wait_core import Scheduler

MAX_TOKENS = 2000
MEAN_STAY = 100
EVERY = 16  # iterations between two arrivals, in the mean


def waits(policy: str, *, known: bool) -> list[int]:
    """Return the iterations that each request waits for its admission; four in five leave early."""
    core = Scheduler(policy, kv_blocks=4000, block_size=16, max_num_seqs=256, host_preempts=True)
    draw = random.Random(1)
    waiting: dict[int, int] = {}
    ends: dict[int, int] = {}
    left: list[int] = []
    for step in range(10_000):
        if draw.random() < 1 / EVERY:
            number = len(waiting) + len(left)
            hint: dict[str, Any] = {"output_tokens": MAX_TOKENS} if known else {}
            core.add(number, 200, MAX_TOKENS, now_ns=step * 10_000_000, **hint)
            waiting[number] = step
            ends[number] = MAX_TOKENS if draw.random() < 0.2 else 1 + int(draw.expovariate(1 / MEAN_STAY))
        plan = core.plan(step * 10_000_000)
        left += [step - waiting.pop(number) for number in plan.admitted]
        gone = [number for number in ends if number not in waiting and (core.stage(number) or 0) >= ends[number]]
        core.complete(finished=[number for number in gone if ends[number] == MAX_TOKENS])
        for number in gone:
            assert core.abort(number) == (ends.pop(number) < MAX_TOKENS)
    return left


@pytest.mark.parametrize("known", [False, True])
def test_no_request_waits_for_memory_that_leaving_clients_will_free(known: bool) -> None:
    """Half the memory is in use. Learning from completed requests only would count each for four times its size."""
    mine, stock = (waits(policy, known=known) for policy in ("adaptive", "vllm"))
    assert len(mine) == len(stock) > 500
    assert max(stock) == 0
    assert max(mine) <= 1, "a prompt beside another"


def test_a_client_that_leaves_before_its_first_token_teaches_nothing() -> None:
    core = Scheduler("adaptive", kv_blocks=100, max_num_seqs=8, token_budget=64)
    core.add(1, 200)
    core.plan()
    core.complete()
    before = core.learned()
    assert core.abort(1)
    core.add(2, 20)
    assert core.abort(2)
    assert core.learned() is not None
    assert before is not None
    assert core.learned()["lengths"] == before["lengths"]  # type: ignore[index]
