"""Figures on their way out of the engine, without an engine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")


def test_what_nobody_fetches_stays_bounded() -> None:
    from wait_core import Scheduler
    from wait_core.vllm.telemetry import MOST, Telemetry

    telemetry = Telemetry()
    for i in range(3 * MOST):
        telemetry.decisions_ns.append(i)
        telemetry.holds_ns += [i]
    figures = telemetry.collect(Scheduler(kv_blocks=10), 0, {})
    assert json.loads(json.dumps(figures))["decisions_ns"] == list(range(2 * MOST, 3 * MOST))
    assert len(figures["holds_ns"]) == MOST
    again = telemetry.collect(Scheduler(kv_blocks=10), 0, {})
    assert again["decisions_ns"] == again["holds_ns"] == []


def test_the_document_names_every_metric() -> None:
    from wait_core.vllm import metrics

    document = (Path(__file__).parents[2] / "docs" / "vllm.md").read_text(encoding="utf-8")
    table = document.split("\n## Seen from outside\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    counters = [name for name, _ in metrics.COUNTERS.values()] + list(metrics.BY_REASON)
    shown = {
        *metrics.GAUGES,
        "decision_seconds",
        "hold_seconds",
        "policy_info",
        *(f"{name}_total" for name in counters),
    }
    assert set(re.findall(r"`wait_core_(\w+)`", " ".join(rows))) == shown


def test_the_example_for_llm_d_names_gauges_that_there_are() -> None:
    import yaml

    from wait_core.vllm import metrics

    path = Path(__file__).parents[2] / "examples" / "llm_d.yaml"
    plugins = yaml.safe_load(path.read_text(encoding="utf-8"))["plugins"]
    (extractor,) = (each for each in plugins if each["type"] == "core-metrics-extractor")
    (engine,) = extractor["parameters"]["engineConfigs"]
    taken = {each["attributeKey"]: each["metricSpec"] for each in engine["customMetrics"]}
    assert {name.removeprefix("wait_core_") for name in taken.values()} <= set(metrics.GAUGES)
    read = {each["parameters"].get("attribute", each["parameters"].get("attributeKey")) for each in plugins
            if each["type"].startswith("endpoint-attribute-")}  # fmt: skip
    assert read == set(taken)
