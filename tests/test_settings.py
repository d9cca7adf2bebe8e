"""Settings are described once, and the descriptions are true."""

from __future__ import annotations

import json
import sys
import typing
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import wait_core
from wait_core import Scheduler, WaitCoreError, simulate
from wait_core._core import SETTINGS
from wait_core.cli import main
from wait_core.settings import POLICIES, Setting, schema, settings, types

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import settings as settings_script  # noqa: E402
import stub_docs  # noqa: E402

BY_NAME = {each.name: each for each in settings()}
TYPES = [{"prompt": 64, "output": 32, "rate": 10.0}]
# Values other than the defaults, for settings that have no range to take one from.
OTHER: dict[str, Any] = {
    "types": [{"prompt": 60, "output": 30, "rate": 9.0}, {"prompt": 64, "output": 32, "rate": 1.0}],
    "thresholds": [3.0],
    "boundaries": [8, 32],
    "protection": {"failure_probability": 0.5, "horizon": 1.0},
    "iteration_time": {"law": "linear", "d0": 0.05, "d1": 1e-5},
    "order": "srpt",
    "tenant_weights": [1.0, 2.0],
    "without": ["buffer", "horizons"],
    "work_conserving": False,
    "literal_boundaries": True,
    "watermark": 0.2,
    "ageing": 1.0,
    "skip_ahead": 4,
    "margin": 0.5,
    "max_hold": 0.0,
    "tpot_target": 0.03,
    "ttft_target": 0.2,
    "overflow_probability": 0.4,
}


def core(**given: Any) -> Scheduler:
    """Return a scheduler with everything else that the setting under test needs."""
    needed: dict[str, Any] = {"policy": "vllm", "kv_blocks": 2000, "max_num_seqs": 1, "block_size": 1}
    if given.get("late") == "refuse":
        needed["ttft_target"] = 1.0
    return Scheduler(**needed | given)


def test_what_is_made_from_the_doc_comments_is_up_to_date() -> None:
    stale = [str(path) for path, text in settings_script.outputs().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run python scripts/settings.py, and build again"
    assert stub_docs.main(["--check"]) == 0, "run python scripts/stub_docs.py"


def test_every_setting_is_described_everywhere() -> None:
    assert set(BY_NAME) == set(SETTINGS)
    annotated = typing.get_type_hints(types.Settings)
    assert set(annotated) == set(SETTINGS) - {"policy"}
    text = Scheduler.__doc__ or ""
    document = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for each in settings():
        assert f"\n{each.name} : " in text
        assert f"| `{each.name}` |" in document
        assert set(each.policies) <= set(POLICIES)
    assert "policies" in BY_NAME["order"].to_dict()


@pytest.mark.parametrize("name", [name for name, each in schema()["properties"].items() if each.get("x-range")])
def test_a_stated_range_is_the_one_that_the_core_checks(name: str) -> None:
    stated = schema()["properties"][name]
    within = stated.get("items", stated) if stated["x-range"].startswith("each") else stated
    step = 1 if "integer" in str(within["type"]) else 1e-9

    def given(value: Any) -> dict[str, Any]:
        least: dict[str, Any] = {name: [value]} if within is not stated else {name: value}
        if name == "max_num_seqs":
            least["token_budget"] = 2**30
        return least

    inside: list[Any] = []
    outside: list[Any] = []
    if "minimum" in within:
        inside.append(within["minimum"])
        outside.append(within["minimum"] - step)
    if "exclusiveMinimum" in within:
        inside.append(within["exclusiveMinimum"] + step)
        outside.append(within["exclusiveMinimum"])
    if "maximum" in within:
        inside.append(within["maximum"])
        outside.append(within["maximum"] + max(step, 1))
    if "exclusiveMaximum" in within:
        inside.append(within["exclusiveMaximum"] - step)
        outside.append(within["exclusiveMaximum"])
    if name == "types":
        kind = {"prompt": 1, "output": 1, "rate": 1.0}
        core(types=[kind] * 4096)
        with pytest.raises(WaitCoreError, match="types"):
            core(types=[kind] * 4097)
    for value in inside:
        core(**given(value))
        jsonschema.validate(given(value), schema())
    for value in outside:
        with pytest.raises(WaitCoreError, match=name):
            core(**given(value))
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(given(value), schema())


@pytest.mark.parametrize("each", [each for each in settings() if each.policies != POLICIES], ids=lambda each: each.name)
def test_a_setting_changes_nothing_under_a_policy_that_does_not_use_it(each: Setting) -> None:
    common: dict[str, Any] = {"dataset_name": "p64d32", "request_rate": 40.0, "num_prompts": 120, "kv_blocks": 60}
    given = {each.name: OTHER[each.name]} if each.name in OTHER else {each.name: "refuse", "ttft_target": 1.0}
    for policy in set(POLICIES) - set(each.policies):
        if policy in {"wait", "nested-wait"} or each.name == "iteration_time":
            continue  # the simulated GPU has this name too
        plain, other = simulate(policy, **common), simulate(policy, **common | given)
        assert (plain.run.finished_ns == other.run.finished_ns).all(), policy


def test_choices_are_those_of_the_core() -> None:
    for name, each in schema()["properties"].items():
        for choice in each.get("items", each).get("oneOf", ()):
            value = [choice["const"]] if each["type"] == "array" else choice["const"]
            if name in {"policy", "order"}:
                policy = choice["const"] if name == "policy" else "clairvoyant"
                chosen = {"policy": policy, "types": TYPES} | ({} if name == "policy" else {name: value})
                assert core(**chosen).settings[name] == value
            else:
                assert core(**{name: value}).settings[name] == value


def test_the_schema_is_one_and_takes_what_the_core_takes() -> None:
    for path in (
        ROOT / "python" / "wait_core" / "settings" / "schema.json",
        ROOT / "docs" / "vllm-settings.schema.json",
    ):
        jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text(encoding="utf-8")))
    jsonschema.validate(Scheduler("adaptive", kv_blocks=7424).settings, schema())
    for wrong in ({"kv_block": 3}, {"kv_blocks": "many"}, {"order": "lifo"}, {"without": ["all"]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema())


def test_the_command_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    out = capsys.readouterr().out
    assert "\ntoken_budget\n    integer; 1 to 2^30 tokens; default: 2,048\n" in out
    assert main(["settings", "--json", "--policy", "vllm"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} == {each.name for each in settings() if "vllm" in each.policies}
    assert next(row for row in rows if row["name"] == "watermark") == {
        "name": "watermark",
        "type": "number",
        "unit": "",
        "default": 0.0,
        "absent": "0",
        "range": "0 to below 1",
        "meaning": "Share of the blocks that admission leaves free.",
        "policies": ["vllm", "sarathi", "prefill-first"],
    }
    assert main(["settings", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema()


def test_one_default_policy_everywhere() -> None:
    assert Scheduler(kv_blocks=10).settings["policy"] == "adaptive"
    assert BY_NAME["policy"].default == "adaptive"
    report = simulate(dataset_name="p64d32", request_rate=5.0, num_prompts=20)
    assert report.policy == "adaptive"
    assert wait_core.plan(types=[(64, 32, 1.0)], num_prompts=50, runs=1).engine.policy == "adaptive"
