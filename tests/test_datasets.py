"""Synthetic datasets and the panel: fixed definitions, their moments, their JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from wait_core import WaitCoreError
from wait_core.workload import datasets
from wait_core.workload.datasets import (
    Constant,
    Dataset,
    Gamma,
    Histogram,
    LogNormal,
    Mmpp,
    Poisson,
    TraceWorkload,
    dataset,
)

CHAT = {"kind": "lognormal", "mu": 6.6, "sigma": 1.0, "low": 8, "high": 6000}


def plain(**change: Any) -> dict[str, Any]:
    base = {
        "name": "d",
        "description": "",
        "arrivals": {"kind": "poisson"},
        "phases": [
            {
                "start": 0.0,
                "components": [
                    {"name": "c", "weight": 1.0, "prompt": CHAT, "output": {"kind": "constant", "value": 5}}
                ],
            }
        ],
    }
    return base | change


def with_output(output: object) -> dict[str, Any]:
    data = plain()
    data["phases"][0]["components"][0]["output"] = output
    return data


def test_the_panel_is_the_fixed_one() -> None:
    panel = datasets.panel()
    assert (panel.capacity_tokens, panel.kv_blocks, panel.block_size) == (118_784, 7_424, 16)
    assert (panel.max_num_seqs, panel.num_requests) == (256, 4_000)
    assert panel.loads == (0.6, 0.9, 1.0, 1.2, 2.0)
    assert panel.token_budgets == (256, 384, 512, 1_024, 2_048)
    assert panel.watermarks == (0.0, 0.01, 0.05, 0.10, 0.20)
    assert panel.held_out == ("azure_code", "bursts", "long-prefill", "tenants", "qwen3-30b-a3b-a100-sxm-tp2")
    assert min(len(seeds) for seeds in panel.seeds.values()) >= 5
    assert list(panel.workloads) == [
        "p512d20", "two-type", "p512d1000", "lmsys", "azure_conv", "azure_code",
        "chat", "lognormal-870", "reasoning-2700", "shift", "bursts", "long-prefill",
        "lognormal-short", "two-kinds", "long-prompts", "rag", "turns", "tenants", "multi-turn",
    ]  # fmt: skip
    first, *others = panel.engines.values()
    assert (first.kv_blocks, first.max_num_seqs, len(first.workloads)) == (7_424, 256, 16)
    assert {blocks for engine in others if (blocks := engine.kv_blocks)} == {512, 1_024, 2_048, 4_096, 7_424, 65_536}
    assert sum(engine.kv_blocks is None for engine in others) == 7
    assert [(each.workloads, each.loads) for each in others if each.prefix_caching] == [(("multi-turn",), (0.9, 1.2))]
    traces = [name for name, workload in panel.workloads.items() if isinstance(workload, TraceWorkload)]
    assert traces == ["azure_conv", "azure_code"]


@pytest.mark.parametrize(
    ("name", "prompt", "output"),
    [
        ("p512d20", 512, 20),
        ("two-type", 512, 29),
        ("p512d1000", 512, 1_000),
        ("lmsys", 58.6, 147.3),
        ("lognormal-870", 365, 870),
        ("reasoning-2700", 222, 2_700),
    ],
)
def test_mean_lengths(name: str, prompt: float, output: float) -> None:
    assert dataset(name).mean_lengths() == pytest.approx((prompt, output), rel=0.02)


def test_lmsys_has_the_published_moments() -> None:
    (phase,) = dataset("lmsys").phases
    (component,) = phase.components
    l, p = component.prompt.pmf()  # noqa: E741  # the paper's letter
    d, q = component.output.pmf()
    assert l.max() < 500
    assert d.max() < 500
    assert (l @ p, d @ q) == pytest.approx((58.6, 147.3), abs=0.05)
    assert l[np.searchsorted(np.cumsum(p), 0.5)] == 21
    assert d[np.searchsorted(np.cumsum(q), 0.5 - 1e-12)] == 116
    assert q[d <= 50].sum() == pytest.approx(0.31, abs=1e-6)
    assert q[d > 300].sum() == pytest.approx(0.14, abs=1e-6)
    # E[A] = E[(l' + 1)(l + l'/2)], lengths independent (arXiv 2504.11320, fluid equilibrium)
    work = float((d + 1) @ q) * float(l @ p) + float(((d + 1) * d / 2) @ q)
    assert work == pytest.approx(28_172, rel=1e-3)


def test_shift_grows_sevenfold_at_the_middle() -> None:
    before, after = dataset("shift").phases
    assert (before.start, after.start) == (0.0, 0.5)
    growth = after.components[0].output.mean() / before.components[0].output.mean()
    assert growth == pytest.approx(math.exp(2.0), rel=0.03)


def test_bursts_keep_the_mean_rate() -> None:
    arrivals = dataset("bursts").arrivals
    assert isinstance(arrivals, Mmpp)
    assert arrivals.multipliers == (0.5, 2.0)
    assert np.average(arrivals.multipliers, weights=arrivals.sojourn_s) == pytest.approx(1.0)
    assert np.mean(arrivals.sojourn_s) == 30.0


def test_long_prefill_is_chat_with_one_percent_of_long_prompts() -> None:
    (phase,) = dataset("long-prefill").phases
    weights = {component.name: component.weight for component in phase.components}
    assert weights == {"chat": 0.99, "long": 0.01}
    assert phase.components[1].prompt == Constant(14_000)
    assert phase.components[0].prompt == dataset("chat").phases[0].components[0].prompt


@pytest.mark.parametrize(
    "distribution",
    [Constant(7), LogNormal(5.0, 0.8, 4, 2_000), LogNormal(1.0, 0.5, 3, 3), Histogram((1, 3, 10), (1.0, 3.0))],
)
def test_probabilities_add_up(distribution: datasets.Distribution) -> None:
    values, probability = distribution.pmf()
    assert values.shape == probability.shape
    assert probability.min() >= 0
    assert probability.sum() == pytest.approx(1.0, abs=1e-12)


def test_lognormal_matches_sampling_as_it_is_defined() -> None:
    law = LogNormal(5.0, 0.8, 40, 300)
    draws = np.exp(law.mu + law.sigma * np.random.default_rng(1).standard_normal(200_000))
    draws = np.clip(np.floor(draws + 0.5), law.low, law.high)
    assert law.mean() == pytest.approx(draws.mean(), rel=5e-3)
    values, probability = law.pmf()
    assert probability[-1] == pytest.approx((draws == 300).mean(), abs=5e-3)
    assert values[-1] == 300


@pytest.mark.parametrize("name", datasets.dataset_names())
def test_json_round_trip(name: str) -> None:
    data = json.loads(dataset(name).to_json())
    assert Dataset.from_dict(data) == dataset(name)
    assert data == dataset(name).to_dict()
    assert data["arrivals"]["kind"] in {"poisson", "mmpp"}
    assert {c["prompt"]["kind"] for p in data["phases"] for c in p["components"]} <= {"constant", "lognormal"}


def test_gamma_arrivals_round_trip() -> None:
    data = plain(arrivals={"kind": "gamma", "burstiness": 0.5})
    assert Dataset.from_dict(data).arrivals == Gamma(0.5)
    assert Dataset.from_dict(data).to_dict() == data


def test_constant_names_need_no_entry() -> None:
    found = dataset("p630d20")
    assert found.mean_lengths() == (630, 20)
    assert found.arrivals == Poisson()


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("chatt", "'chatt' is unknown; did you mean 'chat'"),
        ("p0d5", "'p0d5' is unknown"),
        ("", "'' is unknown"),
        ("azure_conv", "recorded trace"),
    ],
)
def test_unknown_names(name: str, match: str) -> None:
    with pytest.raises(WaitCoreError, match=match):
        dataset(name)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (plain(arivals=1), "dataset: 'arivals' is unknown; did you mean 'arrivals'"),
        ({"name": "d"}, "dataset: 'description' is missing"),
        (plain(phases=[]), "dataset.phases"),
        (plain(phases=3), "dataset.phases: 3 is not a list"),
        (plain(phases=[3]), "phase: 3 is not an object"),
        (plain(phases=[{"start": 0.5, "components": plain()["phases"][0]["components"]}]), "dataset.phases"),
        (plain(phases=[{"start": 0.0, "components": []}]), "phase.components"),
        (plain(arrivals={"kind": "uniform"}), "dataset.arrivals.kind: 'uniform'"),
        (plain(arrivals="poisson"), "dataset.arrivals.kind: 'poisson'"),
        (plain(arrivals={"kind": "gamma", "burstiness": 0}), "gamma.burstiness: 0"),
        (plain(arrivals={"kind": "mmpp", "multipliers": [0.5, 2], "sojourn_s": [30, 30]}), "average 1 but of 1.25"),
        (plain(arrivals={"kind": "mmpp", "multipliers": 1, "sojourn_s": [30, 30]}), "mmpp.multipliers"),
        (with_output({"kind": "constant", "value": 0}), "constant.value: 0"),
        (with_output({"kind": "constant", "value": 1.5}), "constant.value: 1.5"),
        (with_output(CHAT | {"sigma": float("nan")}), "lognormal.sigma: nan"),
        (with_output(CHAT | {"mu": float("inf")}), "lognormal.mu: inf"),
        (with_output(CHAT | {"low": 9000}), "lognormal.high: 6000"),
        (with_output(CHAT | {"hihg": 1}), "'hihg' is unknown; did you mean 'high'"),
        (with_output({"kind": "histogram", "edges": [1, 1], "weights": [1]}), "histogram.edges"),
        (with_output({"kind": "histogram", "edges": [1, 2], "weights": [0]}), "histogram.weights"),
        (with_output({"kind": "histogram", "edges": 5, "weights": [0]}), "histogram.edges: 5 is not a list"),
    ],
)  # fmt: skip
def test_wrong_definitions_name_key_and_value(data: dict[str, Any], match: str) -> None:
    with pytest.raises(WaitCoreError, match=match):
        Dataset.from_dict(data)
