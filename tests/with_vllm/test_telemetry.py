"""Figures on their way out of the engine, without an engine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")


def test_what_is_never_fetched_stays_bounded() -> None:
    from wait_core import Scheduler
    from wait_core.vllm.telemetry import MOST, Telemetry

    telemetry = Telemetry()
    for i in range(3 * MOST):
        telemetry.decisions_ns.append(i)
        telemetry.holds_ns += [i]
    core = Scheduler(kv_blocks=10)
    figures = telemetry.collect(core, core.settings, 0, {})
    assert json.loads(json.dumps(figures))["decisions_ns"] == list(range(2 * MOST, 3 * MOST))
    assert len(figures["holds_ns"]) == MOST
    again = telemetry.collect(core, core.settings, 0, {})
    assert again["decisions_ns"] == again["holds_ns"] == []


@pytest.mark.parametrize("rust", [False, True])
def test_a_front_end_in_rust_gets_no_figures_and_the_log_says_so(
    rust: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from in_process import Driver, Setup

    from wait_core.vllm.telemetry import detach

    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", str(int(rust)))
    driver = Driver(Setup(scheduler="WaitScheduler"))
    assert caplog.text.count("behind vLLM's Rust front end") == rust
    driver.add("r", [5] * 20, 3)
    figures = []
    while driver.scheduler.has_requests():
        outputs = (driver.step().outputs or {}).values()
        figures += [detach(each.scheduler_stats) for each in outputs if each.scheduler_stats]
    assert any(figures) is not rust


def test_the_dashboard_asks_vllm_for_what_it_has() -> None:
    from vllm.v1.metrics import loggers

    folder = Path(__file__).parents[2] / "docs" / "monitoring"
    asked = set()
    for file in folder.iterdir():
        asked |= {re.sub(r"_bucket$", "", name) for name in re.findall(r"vllm:\w+", file.read_text(encoding="utf-8"))}
    named = set(re.findall(r'"(vllm:\w+)"', Path(str(loggers.__file__)).read_text(encoding="utf-8")))
    assert asked
    assert asked <= named


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
