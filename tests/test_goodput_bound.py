"""The bound on the goodput: against a slow solver over every composition, and against what schedulers reach."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from wait_core import WaitCoreError, simulate
from wait_core._core import Planner
from wait_core.cli import main
from wait_core.planning import goodput_bound, plan
from wait_core.workload import sampled

Types = list[tuple[int, int, float]]
STEPS = [(4, 5e6, 1e5), (9, 8e6, 2e5), (64, 2e7, 1e5)]
"""Stairs of the law: last token count, ns at 0, ns per token."""
PER_DECODE_KV_NS = 2_000.0
LAW: dict[str, Any] = {
    "law": "measured",
    "round_to": 1,
    "steps": [{"up_to": end, "base_ns": base, "per_token_ns": slope} for end, base, slope in STEPS],
    "attention": {
        "decode_base_ns": 2e5,
        "prefill_base_ns": 1e5,
        "per_decode_ns": 0.0,
        "per_decode_kv_ns": PER_DECODE_KV_NS,
        "per_prefill_token_ns": 0.0,
        "per_prefill_kv_ns": 0.0,
        "per_prefill_attention_ns": 0.0,
    },
}


def slow(types: Types, capacity: int, running: int, budget: int) -> float:
    """Return the same share by a general solver, with every composition and not only the corners of the stairs."""
    shortest = min(prompt for prompt, _, _ in types)
    most_decodes = min(running, capacity // (shortest + 1))
    compositions = [
        (prefill, decodes)
        for decodes in range(most_decodes + 1)
        for prefill in range(min(budget, capacity) + 1 - decodes)
        if prefill + decodes > 0
    ]

    def seconds(prefill: int, decodes: int) -> float:
        base, slope = next((base, slope) for end, base, slope in STEPS if prefill + decodes <= end)
        once = (2e5 if decodes else 0.0) + (1e5 if prefill else 0.0)
        return 1e-9 * (base + slope * (prefill + decodes) + once)

    fits = [prompt + output - 1 <= capacity for prompt, output, _ in types]
    requests = []
    for (prompt, output, rate), possible in zip(types, fits, strict=True):
        held = output * (prompt + (output - 1) / 2)
        read = held - prompt
        time = 1e-9 * PER_DECODE_KV_NS * read
        rows = [prompt, output - 1, read, held, output, time]
        requests.append([rate * row if possible else 0.0 for row in rows])
    supplies = [[-p, -d, -capacity if d else 0.0, -capacity, -running, seconds(p, d)] for p, d in compositions]
    gain = [-rate if possible else 0.0 for (_, _, rate), possible in zip(types, fits, strict=True)]
    found = linprog(
        gain + [0.0] * len(supplies),
        A_ub=np.array(requests + supplies).T,
        b_ub=[0.0] * 5 + [1.0],
        bounds=[(0, 1)] * len(types) + [(0, None)] * len(supplies),
    )
    assert found.status == 0
    return -float(found.fun or 0.0) / sum(rate for _, _, rate in types)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 40), st.floats(0.1, 20.0)), min_size=1, max_size=6),
    st.integers(40, 400),
    st.integers(1, 20),
    st.integers(1, 40),
)
def test_a_general_solver_over_all_compositions_finds_the_same(
    types: Types, capacity: int, running: int, budget: int
) -> None:
    planner = Planner(types, LAW, capacity=capacity, max_running=running, token_budget=budget)
    assert planner.goodput_bound()["goodput"] == pytest.approx(slow(types, capacity, running, budget), abs=1e-5)


@pytest.mark.parametrize("policy", ["vllm", "adaptive", "clairvoyant"])
def test_no_scheduler_exceeds_it(policy: str) -> None:
    requests = sampled("chat", request_rate=9.0, num_prompts=800, seed=2)
    more: dict[str, Any] = {"ttft_target": 2.0, "late": "refuse"} if policy == "adaptive" else {}
    report = simulate(policy, requests=requests, **more)
    reached = report.summary(slo_ttft_ms=2000, slo_tpot_ms=100)["goodput"]
    # A finite run has an end, after which those in time are still served: the bound holds for its whole duration.
    longer = requests.scaled((len(requests) - 1) / report.summary()["duration"])
    assert reached <= goodput_bound(longer, 2000, 100) + 1e-6


def test_four_thousand_pairs_of_lengths_are_exact_too() -> None:
    requests = sampled("chat", request_rate=12.0, num_prompts=4000, seed=1)
    bound = goodput_bound(requests, 2000, 100)
    assert 0.7 < bound < 0.9
    assert goodput_bound(requests.scaled(24.0), 2000, 100) < bound


def test_a_plan_prints_it_where_an_objective_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    types = [(512, 200, 3.0), (512, 900, 3.0)]
    report = plan(types=types, runs=1, num_prompts=200, slo_ttft_ms=2000)
    assert report.goodput is not None
    assert 0 < report.goodput.goodput < 1
    assert report.goodput.request_goodput == pytest.approx(6.0 * report.goodput.goodput)
    assert plan(types=types, runs=1, num_prompts=200).goodput is None
    command = ["plan", "--type", "512:200:3", "--type", "512:900:3", "--runs", "1", "--num-prompts", "200"]
    assert main([*command, "--slo-ttft", "2000", "--slo-tpot", "100"]) == 0
    assert "goodput within TTFT 2 s, TPOT 100 ms: at most" in capsys.readouterr().out
    with pytest.raises(WaitCoreError, match=r"^slo_ttft_ms = NaN: must be above 0 ms$"):
        plan(types=types, runs=1, num_prompts=200, slo_ttft_ms=math.nan)
