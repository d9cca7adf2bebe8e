"""What a host may do wrong, or late, or twice: the core continues, and never panics."""

from __future__ import annotations

import random
import resource
import time

import pytest
from by_hand import POLICIES, held, refused, run_to_the_end, scheduler

from wait_core._core import CapacityError, DuplicateIdError


@pytest.mark.parametrize("policy", POLICIES)
def test_an_impossible_request_is_rejected_at_add(policy: str) -> None:
    core = scheduler(policy)
    refused(lambda: core.add(1, 40), "request 1 needs 41 KV tokens", "40", kind=CapacityError)
    refused(lambda: core.add(1, 20, output_tokens=21), "needs 41", kind=CapacityError)
    refused(lambda: core.add(1, 2**32 - 1), "needs 4294967296", kind=CapacityError)
    core.set_capacity(5)
    refused(lambda: core.add(1, 20), "20 that the KV cache holds", kind=CapacityError)
    core.add(1, 19)
    assert len(core) == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_abort_in_every_state_twice_and_of_unknown_ids(policy: str) -> None:
    core = scheduler(policy, max_num_seqs=2, token_budget=12)
    core.add(1, 8, 4)
    core.plan()  # decoding from now on
    core.add(2, 16, 4)
    core.add(3, 8, 4)
    core.plan()  # 2 prefills or waits, 3 waits
    assert core.num_resident + core.num_waiting == 3
    for i in (3, 1, 2):
        assert core.abort(i)
        assert not core.abort(i)
        assert i not in core
        core.plan()
    assert not core.abort(99)
    core.complete(finished=[1, 99], preempted=[2], refused=[3], progress=[(1, 3)])
    stats = core.stats
    assert (stats["aborted"], stats["unknown_ids"], stats["finished"]) == (3, 4 + 5, 0)
    assert (len(core), core.used_blocks) == (0, 0)
    assert core.plan().is_empty


@pytest.mark.parametrize("policy", POLICIES)
def test_abort_storm(policy: str) -> None:
    core = scheduler(policy, kv_blocks=1000, max_num_seqs=64, token_budget=256)
    dice = random.Random(7)
    present: set[int] = set()
    for i in range(3000):
        core.add(i, dice.randint(1, 40), dice.randint(1, 20))
        present.add(i)
        if i % 3 == 0:
            core.plan()
        if i % 100 == 99:
            for j in dice.sample(sorted(present), 90):
                assert core.abort(j)
                present.discard(j)
            core.complete()
    for j in present:
        core.abort(j)
    assert (len(core), core.used_blocks, core.num_waiting, core.num_resident) == (0, 0, 0, 0)
    assert core.stats["aborted"] == 3000
    core.add(1, 8, 4)
    run_to_the_end(core, {1: 4})


@pytest.mark.parametrize("policy", POLICIES)
def test_a_duplicate_id_changes_nothing(policy: str) -> None:
    core = scheduler(policy)
    core.add(5, 8, 4)
    refused(lambda: core.add(5, 9, 5), "request id 5", kind=DuplicateIdError)
    core.plan()
    refused(lambda: core.add(5, 9, 5), "request id 5", kind=DuplicateIdError)
    assert len(core) == 1
    core.complete(finished=[5])
    core.add(5, 9, 5)
    run_to_the_end(core, {5: 5})


@pytest.mark.parametrize("policy", POLICIES)
def test_a_clock_that_goes_backwards(policy: str) -> None:
    core = scheduler(policy, max_hold=1.0)
    core.add(1, 8, 4, now_ns=5_000_000_000)
    core.plan(6_000_000_000)
    core.add(2, 8, 4, now_ns=1)
    for now in (3, 0, 7_000_000_000, 2):
        core.plan(now)
        core.complete()
    core.add(3, 8, 4, now_ns=2**64 - 1)
    for i in (1, 2):
        core.abort(i)
    run_to_the_end(core, {3: 4})


@pytest.mark.parametrize("policy", POLICIES)
def test_capacity_shrinks_below_use_and_grows_again(policy: str) -> None:
    core = scheduler(policy)
    for i in (1, 2, 3):
        core.add(i, 11, 4, output_tokens=4)
    core.plan()
    core.complete()
    core.set_capacity(4)
    for _ in range(6):
        core.plan()
        core.complete()
        assert core.used_blocks <= 4
    core.set_capacity(10)
    run_to_the_end(core, {i: 4 for i in (1, 2, 3) if i in core})


@pytest.mark.parametrize("policy", POLICIES)
def test_the_host_preempts_what_we_did_not_choose(policy: str) -> None:
    core = scheduler(policy)
    for i in (1, 2, 3):
        core.add(i, 8, 4, output_tokens=4)
    core.plan()
    core.plan()
    chosen = next(i for i in (1, 2, 3) if i not in held(core))
    before = core.stage(chosen)
    core.complete(preempted=[chosen, 99])
    assert core.stats["preemptions"] == 1
    assert core.stage(chosen) in {before, (before or 0) - 1}
    run_to_the_end(core, dict.fromkeys((1, 2, 3), 4))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_host_refuses_an_admission(policy: str) -> None:
    core = scheduler(policy)
    for i in (1, 2, 3):
        core.add(i, 8, 4, output_tokens=4)
    admitted = core.plan().admitted
    core.complete(refused=admitted)
    assert (core.num_resident, core.num_waiting, core.used_blocks) == (0, 3, 0)
    assert (core.stats["admitted"], core.stats["preemptions"]) == (0, 0)
    assert core.plan().admitted[:1] == admitted[:1]
    run_to_the_end(core, dict.fromkeys((1, 2, 3), 4))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_prefix_cache_reset(policy: str) -> None:
    core = scheduler(policy)
    for i in (1, 2):
        core.add(i, 8, 4, output_tokens=4, shared_prefix=4)
    core.plan()
    core.complete(free_blocks=9)
    resident = [i for i in (1, 2) if i not in held(core)]
    core.complete(preempted=resident[::-1], free_blocks=10)
    assert core.used_blocks == 0
    assert core.plan().resumed == resident
    run_to_the_end(core, dict.fromkeys((1, 2), 4))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_paused_engine_keeps_everything(policy: str) -> None:
    core = scheduler(policy)
    core.add(1, 8, 4, output_tokens=4)
    core.plan()
    core.add(2, 8, 4, output_tokens=4)
    core.set_paused(True)
    for _ in range(3):
        plan = core.plan()
        assert plan.is_empty
        assert plan.paused == [1]
        core.complete()
    for i in (1, 2):
        hold = core.explain(i)
        assert hold is not None
        assert hold.reason == "engine_paused"
    core.set_paused(False)
    run_to_the_end(core, {1: 4, 2: 4})


@pytest.mark.parametrize("policy", POLICIES)
def test_finish_and_abort_in_the_same_iteration(policy: str) -> None:
    core = scheduler(policy)
    core.add(1, 8, 1)
    core.plan()
    assert core.abort(1)
    core.complete(finished=[1, 1])
    assert not core.abort(1)
    stats = core.stats
    assert (stats["aborted"], stats["finished"], stats["unknown_ids"]) == (1, 0, 3)
    assert core.used_blocks == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_the_next_iteration_is_planned_before_this_one_completed(policy: str) -> None:
    core = scheduler(policy)
    outputs = dict.fromkeys((1, 2, 3, 4), 4)
    for i in outputs:
        core.add(i, 8, 5, output_tokens=4)
    flying: list[list[int]] = []
    for _ in range(200):
        core.plan()
        flying.append([i for i in outputs if (core.stage(i) or 0) >= 4 and i not in held(core)])
        if len(flying) == 2:
            ended = [i for i in flying.pop(0) if i in core]
            core.complete(finished=ended)
            for i in ended:
                del outputs[i]
        if not outputs:
            break
    assert not outputs
    assert core.used_blocks == 0
    assert core.stats["finished"] == 4


@pytest.mark.parametrize("policy", ["vllm", "wait", "nested-wait"])
def test_a_million_ids(policy: str) -> None:
    core = scheduler(policy, kv_blocks=100_000, max_num_seqs=256, token_budget=2048)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    for i in range(1_000_000):
        core.add(i, 8, 4)
    assert len(core) == core.num_waiting == 1_000_000
    for _ in range(1000):
        core.plan()
        core.complete()
    for i in range(0, 1_000_000, 2):
        core.abort(i)
    seconds = time.perf_counter() - begun
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert len(core) == 500_000
    assert seconds < 30, f"{seconds:.1f} s"
    assert kilobytes < 400_000, f"{kilobytes} kB"
