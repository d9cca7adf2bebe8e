"""vLLM's data-parallel balancer in front of two schedulers of ours: its own rule, and what the ranks report to it."""

from __future__ import annotations

from statistics import mean
from typing import Any

import pytest
from in_process import Driver, Setup
from ranks import LOADS, PROMPT, Load, rank, serve

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(("load", "at_most"), LOADS.items(), ids=str)
def test_the_wait_before_a_cache_that_is_reserved(load: Load, at_most: float) -> None:
    usage, forecast = (mean(serve(load, forecast=each, first=first) for first in (0, 1)) for each in (False, True))
    assert forecast <= at_most * usage


def test_the_reported_use_is_the_expected_peak_only_if_enabled() -> None:
    asked, not_asked, shadow = rank(), rank(balance_by_forecast=False), rank(shadow=True)
    stock = Driver(Setup("AsyncScheduler", num_blocks=201, max_model_len=1024, prefix_caching=False, ahead=0))
    for driver in (asked, not_asked, shadow, stock):
        for i in range(4):
            driver.add(f"r{i}", PROMPT, 400, ignore_eos=True)
        for _ in range(3):
            driver.step()
    used = stock.scheduler.get_kv_cache_usage()
    for driver in (not_asked, shadow):
        assert driver.scheduler.get_kv_cache_usage() == used
    load = asked.scheduler.wait_core.core.load()
    reported = asked.scheduler.get_kv_cache_usage()
    assert reported == pytest.approx(load["kv_peak"] / (200 * 16))
    assert used < 0.2
    assert 0.5 < reported <= 1.0
    # The gauge stays what it is.
    assert asked.scheduler.make_stats().kv_cache_usage == used


def test_an_error_of_ours_leaves_what_vllm_knows() -> None:
    driver = rank()
    driver.add("r", PROMPT, 400, ignore_eos=True)
    driver.step()

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    used = driver.scheduler.kv_cache_manager.usage
    driver.scheduler.wait_core.core = Broken()
    assert driver.scheduler.get_kv_cache_usage() == used
    assert driver.scheduler.wait_core.telemetry.failed
