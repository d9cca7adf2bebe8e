"""What arXiv 2504.11320 proves, observed: invariants on random instances, growth with the horizon, overflows.

The experiments are those of bench/reproduce/theorems.py at a small size; seeds are fixed, so nothing here is a matter
of luck.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wait_core import Scheduler

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

from reproduce.theorems import (
    CASES,
    DELTAS,
    KINDS,
    LARGE,
    Growth,
    Instance,
    NestedCase,
    cost,
    exponent,
    hidden_lengths,
    increment_exponent,
)

# Thresholds of Nested WAIT for types (4, 3) and (4, 8) at 6:4, where a test runs every policy.
SETTINGS: dict[str, dict[str, Any]] = {
    "vllm": {},
    "sarathi": {},
    "prefill-first": {},
    "clairvoyant": {},
    "wait": {"thresholds": [60, 40]},
    "nested-wait": {"boundaries": [3, 8], "thresholds": [100, 45]},
}


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 8), st.integers(1, 6)), min_size=1, max_size=3),
    st.sampled_from([0.7, 0.9, 1.0]),
    st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_wait_needs_exactly_its_memory(types: list[tuple[int, int, int]], load: float, seed: int) -> None:
    kinds, n = [(prompt, output) for prompt, output, _ in types], [count for *_, count in types]
    memory = round(sum(count * cost(*kind) for count, kind in zip(n, kinds, strict=True)))
    instance = Instance.at_equilibrium(kinds, n, load)
    spacing = n[0] / instance.types[0][2]
    found = instance.repeat("wait", 400 * spacing, 1, capacity=memory, thresholds=n, first_seed=seed)
    assert found["preemptions"][0] == 0
    assert found["peak_kv_blocks"][0] == memory


def test_fcfs_settles_below_the_fluid_throughput() -> None:
    # §3's example: l = l' = 1, C = 12, 4 arrivals an iteration; the fluid model completes 4 an iteration.
    core = Scheduler("vllm", kv_blocks=12, block_size=1, max_num_seqs=64, token_budget=64, convention="paper",
                     preemption="restart")  # fmt: skip
    known: list[int] = []

    def add(count: int) -> None:
        for i in range(len(known), len(known) + count):
            core.add(i, 1, output_tokens=2)
            known.append(i)

    def iteration() -> int:
        core.plan()
        finished = [i for i in known if i in core and core.stage(i) == 2]
        core.complete(finished=finished)
        return len(finished)

    add(3)
    assert iteration() == 0
    add(6)
    assert core.num_resident == 3
    assert iteration() == 3  # 6 at stage 0 beside 3 at stage 1
    completed = []
    for _ in range(2_000):
        add(4)
        completed.append(iteration())
    assert 3.0 <= np.mean(completed[200:]) <= 3.5
    assert core.stats["preemptions"] > 500


@pytest.mark.parametrize("policy", SETTINGS)
def test_beyond_x_1_every_queue_grows_without_bound(policy: str) -> None:
    stable = Instance(((4, 3, 60.0), (4, 8, 40.0)))
    latency = {}
    for x in (0.5, 1.3):
        instance = Instance(tuple((p, output, rate * x / stable.load) for p, output, rate in stable.types))
        assert instance.load == pytest.approx(x)
        growth = Growth.measure(instance, policy, (40.0, 80.0), 2, **SETTINGS[policy])
        latency[x] = growth.latency
        # Memory does not bind here: what x > 1 lacks is time, and the excess is never completed.
        assert (growth.gap[-1] > 0.2) == (x > 1)
    assert latency[0.5][1] < 1.1 * latency[0.5][0]
    assert latency[1.3][1] > 1.5 * latency[1.3][0]


def test_scaling_the_rates_is_scaling_the_horizon() -> None:
    kinds, n = KINDS["two types"]
    instance = Instance.at_equilibrium(kinds, n, 0.95)
    one = instance.repeat("wait", 16.0, 20, thresholds=n)
    scaled = instance.scaled(8.0).repeat("wait", 2.0, 20, thresholds=n)
    # Equal but for times rounded to nanoseconds.
    assert np.mean(one["output_tokens"] == scaled["output_tokens"]) > 0.9
    np.testing.assert_allclose(8.0 * scaled["latency_s"], one["latency_s"], rtol=1e-3)


@pytest.mark.parametrize("name", KINDS)
def test_theorem_1_without_slack(name: str) -> None:
    kinds, n = KINDS[name]
    instance = Instance.at_equilibrium(kinds, n)
    growth = Growth.measure(
        instance, "wait", (2.0, 8.0, 32.0, 128.0), 60, thresholds=n, capacity=round(instance.memory)
    )
    lost = increment_exponent(growth.horizons, growth.lost)
    assert 0.3 < lost < 0.65  # the gap is lost/T: exponent lost - 1, at most -1/2 in the limit
    assert 0.1 < increment_exponent(growth.horizons, growth.latency) < 0.65
    assert 0.1 < increment_exponent(growth.horizons, growth.ttft) < 0.65


@pytest.mark.parametrize("name", KINDS)
def test_theorem_1_with_slack(name: str) -> None:
    kinds, n = KINDS[name]
    instance = Instance.at_equilibrium(kinds, n, 0.95)
    growth = Growth.measure(instance, "wait", (2.0, 8.0, 32.0, 128.0), 60, thresholds=n)
    assert exponent(growth.horizons, growth.gap) < -0.9
    assert abs(exponent(growth.horizons[1:], growth.latency[1:])) < 0.05
    assert abs(exponent(growth.horizons[1:], growth.ttft[1:])) < 0.05


def test_at_the_boundary_waits_delays_grow_with_the_square_root() -> None:
    instance = Instance.at_equilibrium([(4, 3), (4, 8)], [6, 4])
    growth = Growth.measure(
        instance, "wait", (8.0, 32.0, 128.0), 100, capacity=round(instance.memory), thresholds=[6, 4]
    )
    assert 0.3 < increment_exponent(growth.horizons, growth.lost) < 0.7
    assert increment_exponent(growth.horizons, growth.latency) > 0.3
    assert increment_exponent(growth.horizons, growth.ttft) > 0.3


@pytest.mark.parametrize("order", ["fcfs", "paced", "srpt"])
def test_at_the_boundary_known_lengths_without_thresholds_lose_a_constant_share(order: str) -> None:
    instance = Instance.at_equilibrium([(4, 3), (4, 8)], [6, 4])
    growth = Growth.measure(
        instance, "clairvoyant", (8.0, 32.0, 128.0), 100, capacity=round(instance.memory), order=order
    )
    before, last = growth.rates() / instance.throughput
    # WAIT's share halves from one window to the next.
    assert last > 0.75 * before > 0.005


def test_at_the_boundary_hidden_lengths_cost_a_constant() -> None:
    for name, growth in hidden_lengths((32.0, 128.0, 512.0), 6).items():
        before, last = growth.rates()
        if name == "wait":
            assert last < 0.7 * before, name
        else:
            assert last > 0.9 * before, name
            assert growth.gap[-1] > 0.01, name


def test_nested_wait_overflows_as_rarely_as_planned() -> None:
    for case in CASES[:3]:
        peaks = case.peaks(1.0, 10_000)["peak_kv_blocks"]
        for delta in DELTAS:
            base, capacity = case.planned(delta, 1.0)
            assert np.mean(peaks > capacity) <= delta
        # Without the buffer it is the rule.
        assert np.mean(peaks > base) > 0.5


def test_unequal_prompts_overflow_as_rarely_as_planned() -> None:
    # Equal means, 8 tokens: the buffer for prompts of 8 does not hold for prompts of 2 and 62.
    equal, unequal, fractional = CASES[3:]
    horizon, delta = 20.0, 0.05
    _, of_mean = equal.planned(delta, horizon)
    assert np.mean(equal.peaks(horizon, 1_000)["peak_kv_blocks"] > of_mean) <= delta
    for case in (unequal, fractional):
        base, capacity = case.planned(delta, horizon)
        peaks = case.peaks(horizon, 4_000)["peak_kv_blocks"]
        assert np.mean(peaks > capacity) <= delta
        assert np.mean(peaks > of_mean) > 0.99
        # No more than three times what was needed beyond M^pi.
        assert capacity - base < 4 * (np.quantile(peaks, 1 - delta) - base)


def test_services_without_a_batch_serve_the_boundary_queue_too() -> None:
    # A tenth of a request a service: most services have no batch, and without them segment 2 would fall behind.
    case, horizon, delta = NestedCase((1, 3), (0.8,), (0.1, 0.09), load=0.9), 40.0, 0.05
    found = case.peaks(horizon, 100)
    buffer = case.instance().planner().safety_buffer(list(case.thresholds), list(case.boundaries))
    assert np.mean(found["peak_parked"] > buffer.queue_bounds(delta, horizon)[0]) <= delta
    assert np.mean(found["peak_kv_blocks"] > case.planned(delta, horizon)[1]) <= delta
    assert found["peak_parked"].max() >= 2


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=3),
    st.lists(st.floats(0.2, 0.7), min_size=1, max_size=2),
    st.floats(0.1, 12.0),
    st.sampled_from([0.05, 0.15]),
    st.integers(0, 10_000),
)
@settings(max_examples=25, deadline=None)
def test_any_protected_thresholds_overflow_as_rarely_as_planned(
    prompts: list[tuple[int, int]], survival: list[float], first: float, margin: float, seed: int
) -> None:
    thresholds = [first]
    for share in survival:
        thresholds.append(thresholds[-1] * (share + margin))
    total = sum(weight for _, weight in prompts)
    case = NestedCase(
        (2, 5, 9)[: len(thresholds)], tuple(survival), tuple(thresholds),
        prompts=tuple((7 * prompt, weight / total) for prompt, weight in prompts),
    )  # fmt: skip
    delta = 0.2
    _, capacity = case.planned(delta, 5.0)
    assert np.mean(case.peaks(5.0, 200, first_seed=seed)["peak_kv_blocks"] > capacity) <= delta


def test_nested_wait_within_the_planned_memory_is_as_with_unlimited_memory() -> None:
    case, horizon, delta = CASES[1], 1.0, 0.2
    base, capacity = case.planned(delta, horizon)
    chosen: dict[str, Any] = {"boundaries": case.boundaries, "thresholds": case.thresholds}
    runs = {
        c: case.instance().repeat("nested-wait", horizon, 1_000, capacity=c, **chosen) for c in (base, capacity, LARGE)
    }

    def differ(c: int) -> float:
        return float(np.mean(runs[c]["latency_s"] != runs[LARGE]["latency_s"]))

    assert differ(capacity) <= delta
    assert differ(base) > 0.5


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.thresholds))
def test_nested_wait_overflows_as_rarely_as_planned_over_long_horizons(case: NestedCase) -> None:
    for horizon in (5.0, 20.0):
        peaks = case.peaks(horizon, 10_000, first_seed=10_000)["peak_kv_blocks"]
        for delta in DELTAS:
            assert np.mean(peaks > case.planned(delta, horizon)[1]) <= delta


def decay(before: int, n: int, p: float) -> float:
    """Solve for θ by bisection: e^(-θ n) (1 - p + p e^θ)^before = 1, θ > 0."""
    low, high = 1e-9, 50.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        below = before * np.log1p(p * np.expm1(middle)) < middle * n
        low, high = (middle, high) if below else (low, middle)
    return low


@pytest.mark.parametrize(("before", "n", "p"), [(10, 4, 0.3), (10, 5, 0.4), (66, 44, 0.65)])
def test_the_boundary_queue_is_within_doobs_bound(before: int, n: int, p: float) -> None:
    rng, theta = np.random.default_rng(0), decay(before, n, p)
    queues = np.full(20_000, n)
    for _ in range(200):
        queues = np.maximum(n, queues + rng.binomial(before, p, queues.size) - n)
    for c in range(n, n + round(6 / theta)):
        tail, bound = np.mean(queues >= c), np.exp(-theta * (c - n))
        assert tail <= bound + 4 * np.sqrt(bound / queues.size), c
    # The bound has the right rate of decay: it is above the tail by a constant factor only.
    far = n + round(3 / theta)
    assert np.mean(queues >= far) > 0.05 * np.exp(-theta * (far - n))


def test_the_policys_own_boundary_queue_is_within_the_bound() -> None:
    case = CASES[0]
    theta, n = decay(10, 5, 0.4), case.thresholds[1]
    found = case.peaks(2.0, 4_000)
    steps = float(found["iterations"].max())
    for delta in DELTAS:
        bound = n + np.log(steps / delta) / theta
        assert np.mean(found["peak_parked"] >= bound) <= delta
    assert found["peak_parked"].max() > n


def test_nested_waits_delays_stay_bounded() -> None:
    case = CASES[0]
    planned = {"boundaries": case.boundaries, "thresholds": case.thresholds}
    growth = Growth.measure(case.instance(), "nested-wait", (8.0, 32.0, 128.0), 40, capacity=LARGE, **planned)
    assert abs(exponent(growth.horizons, growth.latency)) < 0.05
    assert abs(exponent(growth.horizons, growth.ttft)) < 0.08
    assert exponent(growth.horizons, growth.gap) < -0.85
