"""The compiled core against slow, obvious schedulers: the same trajectory, iteration by iteration."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Paper, Request
from oracle.nested_wait import NestedWait
from oracle.vllm_v1 import Sequence, VllmV1
from oracle.wait import Wait

from wait_core import Scheduler

if TYPE_CHECKING:
    from collections.abc import Iterable

# (iterations after the one before, index of the type)
ARRIVALS = st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 2, 5]), st.integers(0, 2)), min_size=1, max_size=60)
LENGTHS = st.tuples(st.integers(1, 9), st.integers(1, 8))


def same_trajectory(core: Scheduler, oracle: Paper, arrivals: Iterable[tuple[int, Request]]) -> int:
    """Drive both with the same arrivals until nothing more happens; return the number of preemptions."""
    pending = list(arrivals)
    residents: set[int] = set()
    requests = {request.id: request for _, request in pending}
    evictions = idle = 0
    for iteration in range(10_000):
        while pending and pending[0][0] <= iteration:
            request = pending.pop(0)[1]
            # In the paper's convention a request takes an iteration more than it has output tokens.
            core.add(request.id, request.prompt, output_tokens=request.output + 1, type_id=request.kind)
            oracle.waiting.append(request)
        plan = core.plan()
        step = oracle.step()
        assert plan.preempted == step.evicted, iteration
        residents = (residents - set(plan.preempted)) | set(plan.admitted) | set(plan.resumed)
        ran = residents - set(plan.paused)
        assert ran == step.batch.keys(), iteration
        assert len(ran) == plan.num_decodes + len(plan.prefill)
        assert {i for i, _ in plan.prefill} == {i for i, stage in step.batch.items() if stage == 0}
        assert residents == {request.id for request in oracle.residents}
        assert core.used_blocks == sum(request.kv for request in oracle.residents)
        assert [core.stage(i) for i in residents] == [requests[i].stage for i in residents]
        finished = oracle.finish()
        core.complete(finished=finished)
        residents -= set(finished)
        evictions += len(step.evicted)
        idle = 0 if step.batch or step.evicted else idle + 1
        if idle and not pending:
            return evictions
        if not pending and evictions > 50:
            return evictions  # the paper's algorithms may preempt in circles where memory is too small
    raise AssertionError("no end in sight")


def scheduler(policy: str, capacity: int, **settings: Any) -> Scheduler:
    return Scheduler(
        policy,
        kv_blocks=capacity,
        block_size=1,
        max_num_seqs=1000,
        token_budget=10_000,
        convention="paper",
        preemption="restart",
        work_conserving=False,
        **settings,
    )


def requests(arrivals: list[tuple[int, int]], lengths: list[tuple[int, int]]) -> list[tuple[int, Request]]:
    found, at = [], 0
    for i, (gap, kind) in enumerate(arrivals):
        at += gap
        prompt, output = lengths[kind]
        found.append((at, Request(i, prompt, output, kind)))
    return found


def cost(prompt: int, output: int) -> int:
    """A: KV tokens of one request at every stage."""
    return sum(prompt + stage for stage in range(output + 1))


@given(st.lists(LENGTHS, min_size=3, max_size=3), st.lists(st.integers(1, 4), min_size=3, max_size=3), ARRIVALS)
@settings(max_examples=200, deadline=None)
def test_wait_with_enough_memory(lengths: list[tuple[int, int]], n: list[int], arrivals: list[tuple[int, int]]) -> None:
    capacity = sum(count * cost(*kind) for count, kind in zip(n, lengths, strict=True))
    types = [{"prompt": prompt, "output": output, "rate": 1.0} for prompt, output in lengths]
    core = scheduler("wait", capacity, types=types, thresholds=n)
    assert same_trajectory(core, Wait(capacity, n), requests(arrivals, lengths)) == 0


@given(
    # Of unequal prompts too: the algorithm does not look at them, the memory does.
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
    st.lists(st.integers(1, 8), min_size=3, max_size=3, unique=True),
    st.lists(st.integers(1, 4), min_size=3, max_size=3),
    st.integers(0, 200),
    ARRIVALS,
)
@settings(max_examples=400, deadline=None)
def test_nested_wait(
    prompts: list[int], outputs: list[int], n: list[int], spare: int, arrivals: list[tuple[int, int]]
) -> None:
    boundaries = sorted(outputs)
    # From enough for one request to enough for all: with and without preemptions.
    capacity = max(prompts) + max(outputs) + 1 + spare
    core = scheduler("nested-wait", capacity, boundaries=boundaries, thresholds=n)
    lengths = list(zip(prompts, outputs, strict=True))
    same_trajectory(core, NestedWait(capacity, boundaries, n), requests(arrivals, lengths))


@given(st.lists(st.integers(1, 4), min_size=3, max_size=3), ARRIVALS)
@settings(max_examples=100, deadline=None)
def test_nested_wait_with_the_boundaries_as_printed(n: list[int], arrivals: list[tuple[int, int]]) -> None:
    boundaries, capacity = [2, 5, 9], 10_000
    core = scheduler("nested-wait", capacity, boundaries=boundaries, thresholds=n, literal_boundaries=True)
    lengths = [(4, output) for output in boundaries]
    same_trajectory(core, NestedWait(capacity, boundaries, n, literal=True), requests(arrivals, lengths))


def test_the_boundaries_as_printed_with_every_stage_full() -> None:
    boundaries, n, capacity = [2, 5, 9], [4, 3, 2], 10_000
    core = scheduler("nested-wait", capacity, boundaries=boundaries, thresholds=n, literal_boundaries=True)
    arrivals = [(0, (i * 7) % 3) for i in range(600)]
    lengths = [(4, output) for output in boundaries]
    same_trajectory(core, NestedWait(capacity, boundaries, n, literal=True), requests(arrivals, lengths))


def test_the_instances_reach_what_they_are_for() -> None:
    boundaries, n = [2, 5, 9], [3, 2, 1]
    arrivals = [(0 if i % 3 else 1, (i * 7) % 3) for i in range(300)]
    lengths = [(4, output) for output in boundaries]
    roomy, tight = (
        same_trajectory(
            scheduler("nested-wait", capacity, boundaries=boundaries, thresholds=n),
            NestedWait(capacity, boundaries, n),
            requests(arrivals, lengths),
        )
        for capacity in (10_000, 60)
    )
    assert roomy == 0
    assert tight > 0


@pytest.mark.slow
@given(st.data())
@settings(max_examples=20, deadline=None)
def test_nested_wait_in_long_runs(data: st.DataObject) -> None:
    prompt = data.draw(st.integers(1, 9))
    boundaries = sorted(data.draw(st.sets(st.integers(1, 12), min_size=2, max_size=5)))
    n = sorted(data.draw(st.lists(st.integers(1, 6), min_size=len(boundaries), max_size=len(boundaries))), reverse=True)
    kinds = st.integers(0, len(boundaries) - 1)
    arrivals = data.draw(st.lists(st.tuples(st.sampled_from([0, 0, 1]), kinds), min_size=300, max_size=600))
    base = sum(
        count * (last - first) * (prompt + last)
        for count, (first, last) in zip(n, pairwise([-1, *boundaries]), strict=True)
    )
    capacity = data.draw(st.integers(prompt + boundaries[-1] + 1, 2 * base + 20))
    core = scheduler("nested-wait", capacity, boundaries=boundaries, thresholds=n)
    same_trajectory(
        core, NestedWait(capacity, boundaries, n), requests(arrivals, [(prompt, output) for output in boundaries])
    )


@st.composite
def engines(draw: st.DrawFn, longest: int) -> dict[str, int]:
    block_size = draw(st.sampled_from([1, 4, 16]))
    seats = draw(st.integers(1, 8))
    return {
        "kv_blocks": -(-longest // block_size) + draw(st.integers(0, 100)),
        "block_size": block_size,
        "max_num_seqs": seats,
        "token_budget": seats + draw(st.integers(0, 40)),
    }


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=50),
    engines(longest=60),
    st.sampled_from([0.0, 0.1, 0.3]),
)
@settings(max_examples=400, deadline=None)
def test_vllm_v1(arrivals: list[tuple[int, int, int]], engine: dict[str, Any], watermark: float) -> None:
    core = Scheduler("vllm", watermark=watermark, **engine)
    oracle = VllmV1(spare=int(watermark * engine["kv_blocks"]), **engine)
    pending, at = [], 0
    for i, (gap, prompt, output) in enumerate(arrivals):
        at += gap
        pending.append((at, Sequence(i, prompt, output, tokens=prompt)))
    for iteration in range(100_000):
        while pending and pending[0][0] <= iteration:
            sequence = pending.pop(0)[1]
            core.add(sequence.id, sequence.prompt)
            oracle.waiting.append(sequence)
        plan, step = core.plan(), oracle.step()
        assert plan.preempted == step.preempted
        prefill = dict(plan.prefill)
        assert plan.num_decodes == len(step.scheduled) - len(prefill)
        assert all(step.scheduled[i] == tokens for i, tokens in prefill.items())
        assert core.used_blocks == sum(sequence.blocks for sequence in oracle.running)
        expected = {s.id: s.tokens - s.prompt for s in oracle.running}
        assert {i: core.stage(i) for i in expected} == expected
        core.complete(finished=oracle.finish())
        if not pending and not oracle.running and not oracle.waiting:
            return
    raise AssertionError("no end in sight")
