"""Figures on their way out of the engine, without an engine."""

from __future__ import annotations

import json


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
