"""Settings that change while the engine serves, shadow mode, the decision log, and faults in all of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wait_core.logs import replay
from wait_core.workload import load

if TYPE_CHECKING:
    from conftest import Run

HERE = Path(__file__).parent
OURS = "wait_core.vllm.WaitScheduler"
TYPES = [{"prompt": 77, "output": 34, "rate": 1.0}]
WAIT = {"policy": "wait", "types": TYPES}


def operate(settings: Path, wait_core: dict[str, Any], actions: list[list[Any]], level: str = "INFO") -> dict[str, Any]:
    """Serve with the settings file at `settings` and return what happened, with the log."""
    job = {"scheduler_cls": OURS, "wait_core": wait_core, "async_scheduling": True}
    environment = os.environ | {"WAIT_CORE_CONFIG_FILE": str(settings), "VLLM_LOGGING_LEVEL": level}
    done = subprocess.run(
        [sys.executable, str(HERE / "operation.py")],
        input=json.dumps({"job": job, "actions": actions}),
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answer = next(line for line in done.stdout.splitlines() if line.startswith('{"job"'))  # amid vLLM's own log
    result: dict[str, Any] = json.loads(answer)
    assert result["unused"] == [], "the run was too short for the script"
    return result | {"log": done.stderr + done.stdout}


def assert_served(result: dict[str, Any], stock: dict[str, Any]) -> None:
    assert result["tokens"] == stock["tokens"]
    assert result["free_blocks_at_end"] == result["usable_blocks"]


def test_settings_change_while_serving(run: Run, tmp_path: Path) -> None:
    stock = run(async_scheduling=True)
    settings, log = tmp_path / "settings.json", tmp_path / "decisions.jsonl"
    settings.write_text(json.dumps({"max_hold": 3.5}))
    other = {"types": [{"prompt": 77, "output": 34, "rate": 1.0}, {"prompt": 10, "output": 5, "rate": 0.1}]}
    actions = [
        [40, "write", json.dumps({"watchdg_s": 1})],
        [60, "write", json.dumps({"max_hold": -1})],
        [80, "write", json.dumps({"policy": "wait", **other, "use_max_tokens": False, "known_lengths": False})],
        [120, "write", json.dumps({"shadow": True})],
        [160, "delete", ""],
        [180, "write", json.dumps({"policy": "vllm"})],
        [200, "fail", "move"],
        [210, "write", json.dumps({"max_hold": 9})],
    ]
    mine = operate(settings, WAIT | {"log_file": str(log)}, actions, "DEBUG")
    said = mine["log"]
    assert_served(mine, stock)
    assert mine["adapter"]["active"]
    assert mine["adapter"]["reconfigured"] == 3
    assert mine["adapter"]["policy"] == "vllm"
    # The block at the start: value and source of each setting.
    for line in [
        r"wait-core \S+ schedules",
        r"policy +wait +additional_config",
        r"capacity +1,248 tokens +vLLM",
        r"watchdog_s +2.0 +default",
        rf"max_hold +3.5 +file {re.escape(str(settings))}",
        r"config_file .* environment WAIT_CORE_CONFIG_FILE",
        r"thresholds +\[[\d.]+\] +planned",
        r"max_num_seqs +32 +vLLM",
    ]:
        assert re.search(line, said), line
    # What was refused, and why.
    assert said.count("refuses the changed settings") == 4
    assert 'unknown setting "watchdg_s"; did you mean "watchdog_s"?' in said
    assert "max_hold = -1" in said
    assert "No such file" in said
    assert "injected into move" in said
    assert said.count("settings changed:") == 3
    # Why requests waited.
    assert re.search(r"wait-core holds r\d+\S*: below_threshold, needs \d+, limit \d+", said)
    # Three cores one after the other, and each decided as its log says.
    result = replay(log)
    assert result.line is None, result
    assert result.notes == ()
    assert log.read_text().count('"wait-core-log"') == 4
    trace = load(log)
    asked = sorted(len(tokens) for tokens in stock["tokens"].values())
    assert sorted(trace.output_tokens.tolist()) == asked
    assert mine["metrics"]['wait_core_reconfigurations_total{engine="0",model_name="tiny"}'] == 3


def test_shadow_mode_counts_and_changes_nothing(run: Run, tmp_path: Path) -> None:
    stock = run(async_scheduling=True)
    settings = tmp_path / "settings.json"
    settings.write_text('{"shadow": true}')
    mine = operate(settings, WAIT, [])
    assert_served(mine, stock)
    for key in ("steps", "preemptions", "max_running"):
        assert mine[key] == stock[key], key
    assert mine["adapter"]["active"]
    assert mine["adapter"]["ungated"] > 20, "stock vLLM admits what the policy would have held"
    shown = mine["metrics"]
    labels = '{engine="0",model_name="tiny"}'
    assert shown[f"wait_core_ungated_admissions_total{labels}"] == mine["adapter"]["ungated"]
    assert shown[f"wait_core_preemptions_total{labels}"] == stock["preemptions"]
    assert shown[f"wait_core_admitted_total{labels}"] == 200
    assert shown[f"wait_core_decision_seconds_count{labels}"] >= mine["adapter"]["steps"]
    assert shown[f"wait_core_held_requests{labels}"] == 0
    assert shown['wait_core_policy_info{engine="0",mode="shadow",model_name="tiny",policy="wait"}'] == 1
    assert shown['wait_core_holds_total{engine="0",model_name="tiny",reason="below_threshold"}'] > 0


@pytest.mark.parametrize("where", ["collect", "detach"])
def test_without_metrics_scheduling_goes_on(run: Run, tmp_path: Path, where: str) -> None:
    stock = run(async_scheduling=True)
    settings = tmp_path / "settings.json"
    settings.write_text("{}")
    mine = operate(settings, WAIT, [[50, "fail", where]])
    assert_served(mine, stock)
    assert mine["adapter"]["active"]
    assert mine["log"].count("metrics from now on") == 1
    assert mine["preemptions"] < stock["preemptions"]


@pytest.mark.parametrize("where", ["write", "poll", "explain"])
def test_an_error_of_ours_leaves_stock_scheduling(run: Run, tmp_path: Path, where: str) -> None:
    stock = run(async_scheduling=True)
    settings = tmp_path / "settings.json"
    settings.write_text("{}")
    level = "DEBUG" if where == "explain" else "INFO"
    mine = operate(settings, WAIT | {"log_file": str(tmp_path / "log.jsonl")}, [[50, "fail", where]], level)
    assert_served(mine, stock)
    assert not mine["adapter"]["active"]
    assert mine["log"].count("wait-core failed") == 1
    assert f"injected into {where}" in mine["log"]
    assert mine["metrics"]['wait_core_active{engine="0",model_name="tiny"}'] == 0
