"""The forecast of `adaptive` against what actually happens to its residents."""

from __future__ import annotations

import numpy as np
import pytest

from wait_core import Scheduler, WaitCoreError
from wait_core.simulation import probe
from wait_core.workload import sampled


def test_overflows_are_about_as_frequent_as_predicted() -> None:
    # A cache of some 40 requests: the next request is held by the forecast most of the time.
    requests = sampled("reasoning-2700", request_rate=1.0, num_prompts=1500, seed=4)
    found = probe(requests, kv_blocks=7424, every=32, overflow_probability=0.02)
    held = found.held & (found.completed > 100)
    assert held.sum() > 1000
    predicted, observed = found.overflow[held].mean(axis=0), found.overflowed[held].mean(axis=0)
    assert 0.05 < predicted[-1] < 0.4
    assert predicted[-1] / 10 <= observed[-1] <= 2 * predicted[-1]
    assert abs(np.median(found.peak_ratio[held]) - 1) < 0.1
    # The spread is that of the truth: three in four within 1.5 deviations, at a horizon where much is open.
    at = int(np.flatnonzero(found.horizon == 512)[0])
    away = (found.truth[held, at] - found.mean[held, at]) / found.deviation[held, at]
    assert 0.75 < np.mean(np.abs(away) < 1.5) < 0.98


def test_a_stated_probability_moves_the_overflows() -> None:
    requests = sampled("reasoning-2700", request_rate=1.0, num_prompts=600, seed=4)
    share = {}
    for delta in (0.2, 0.002):
        found = probe(requests, kv_blocks=7424, every=32, overflow_probability=delta)
        held = found.held & (found.completed > 100)
        share[delta] = found.overflowed[held, -1].mean()
    assert share[0.2] > 3 * share[0.002]


def test_policies_that_forecast_nothing_say_so() -> None:
    requests = sampled("lmsys", request_rate=50.0, num_prompts=50, seed=1)
    found = probe(requests, policy="vllm")
    assert found.mean.shape[0] == 0
    assert Scheduler("vllm", kv_blocks=10).kv_forecast() == []


def test_a_scheduler_reports_what_it_expects() -> None:
    core = Scheduler("adaptive", kv_blocks=100)
    core.add(1, 100, max_tokens=50)
    core.plan(0)
    forecast = core.kv_forecast()
    horizons, mean, deviation, overflow = zip(*forecast, strict=True)
    assert list(horizons) == sorted(horizons)
    assert 100 < max(mean) < 200
    assert max(deviation) > 0
    assert max(overflow) < 1e-6


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, float("nan")])
def test_a_probability_out_of_range_is_refused(delta: float) -> None:
    with pytest.raises(WaitCoreError, match="overflow_probability"):
        Scheduler("adaptive", kv_blocks=100, overflow_probability=delta)


def test_probes_need_an_interval() -> None:
    with pytest.raises(WaitCoreError, match="every"):
        probe(sampled("lmsys", request_rate=50.0, num_prompts=5, seed=1), every=0)
