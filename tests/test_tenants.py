"""Tenants: the tokens served follow their weights, and a flood of one costs another little."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from wait_core import Report, Scheduler, WaitCoreError, simulate
from wait_core.workload import Requests, sampled

if TYPE_CHECKING:
    import numpy.typing as npt


def run(requests: Requests, **settings: Any) -> Report:
    return simulate("adaptive", requests=requests, kv_blocks=7424, **settings)


def flooded(rate: float, flood: float, count: int) -> Requests:
    """A tenant at its rate, and another that floods the engine for as long."""
    steady = sampled("chat", request_rate=rate, num_prompts=count, seed=1)
    other = sampled("chat", request_rate=flood, num_prompts=round(count * flood / rate), seed=2)
    return Requests.of_tenants([steady, other])


def first_tokens(requests: Requests, **settings: Any) -> npt.NDArray[np.float64]:
    report = run(requests, **settings)
    return np.asarray((report.run.first_token_ns - report.run.arrival_ns) * 1e-9)


def test_a_flood_leaves_the_other_what_it_has_alone_at_its_share() -> None:
    requests = flooded(rate=1.8, flood=10.0, count=500)
    assert requests.tenant is not None
    mine = requests.tenant == 0
    shared = first_tokens(requests, tenant_weights=[1.0, 1.0])[mine]
    without = first_tokens(requests)[mine]
    # An engine of half the speed: twice the rate, and all times doubled.
    alone = 2.0 * first_tokens(sampled("chat", request_rate=3.6, num_prompts=500, seed=1))
    assert np.quantile(shared, 0.99) <= 1.5 * np.quantile(alone, 0.99)
    assert np.quantile(without, 0.99) > 10 * np.quantile(shared, 0.99)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [3.0, 1.0]])
def test_served_tokens_follow_the_weights_while_both_wait(weights: list[float]) -> None:
    floods = [sampled("chat", request_rate=6.0, num_prompts=1200, seed=seed) for seed in (1, 2)]
    requests = Requests.of_tenants(floods)
    report = run(requests, tenant_weights=weights)
    assert requests.tenant is not None
    # Both wait from the first seconds on to the last arrival.
    until = requests.arrival_ns[-1]
    done = report.run.finished_ns <= until
    tokens = requests.prompt.astype(float) + requests.output
    served = [float(tokens[done & (requests.tenant == tenant)].sum()) for tenant in (0, 1)]
    assert served[0] / served[1] == pytest.approx(weights[0] / weights[1], rel=0.1)
    assert report.summary()["completed"] == len(requests)


def test_tenants_go_through_everything() -> None:
    parts = [sampled("lmsys", request_rate=5.0, num_prompts=count, seed=count) for count in (30, 20)]
    merged = Requests.of_tenants(parts)
    assert merged.tenant is not None
    assert np.bincount(merged.tenant).tolist() == [30, 20]
    assert (np.diff(merged.arrival_ns.astype(np.int64)) >= 0).all()
    assert merged.rate == 10.0
    assert (merged.prompt[merged.tenant == 1] == parts[1].prompt).all()
    part = merged.window(0.5, 10)
    assert part.tenant is not None
    assert len(part.tenant) == 10
    core = Scheduler("adaptive", kv_blocks=60, tenant_weights=[1.0, 2.0])
    assert core.settings["tenant_weights"] == [1.0, 2.0]
    core.add(1, 10, tenant=1)
    with pytest.raises(WaitCoreError, match="tenant = 2: must be an index of tenant_weights"):
        core.add(2, 10, tenant=2)
    assert core.plan(0).admitted == [1]
