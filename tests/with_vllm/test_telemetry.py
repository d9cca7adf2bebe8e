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
        *metrics.LAW,
        "iteration_time_seconds",
        "decision_seconds",
        "hold_seconds",
        "policy_info",
        *(f"{name}_total" for name in counters),
    }
    assert set(re.findall(r"`wait_core_(\w+)`", " ".join(rows))) == shown
