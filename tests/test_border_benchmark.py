"""Cost of the Python border, for pytest-benchmark (`pytest tests/test_border_benchmark.py --benchmark-enable`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from wait_core import Scheduler

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture


@pytest.mark.parametrize("running", [16, 256, 1_024])
def test_iteration(benchmark: BenchmarkFixture, running: int) -> None:
    scheduler = Scheduler("vllm", kv_blocks=running * 256, max_num_seqs=running, token_budget=1 << 20)
    for i in range(2 * running):
        scheduler.add(i, 64)

    def iteration() -> int:
        decodes = scheduler.plan().num_decodes
        scheduler.complete()
        return decodes

    assert iteration() == 0  # the prefills
    # As many rounds as the KV cache has room for.
    decodes = benchmark.pedantic(iteration, rounds=2_000, warmup_rounds=100)  # type: ignore[no-untyped-call]
    assert decodes == running


def test_add_and_abort(benchmark: BenchmarkFixture) -> None:
    scheduler = Scheduler("vllm", kv_blocks=1_000)

    def one() -> bool:
        scheduler.add(1, 64, 64)
        return scheduler.abort(1)

    assert benchmark(one)
    assert len(scheduler) == 0
