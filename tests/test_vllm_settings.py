"""Settings of the vLLM adapter, which need no vLLM to be read."""

from __future__ import annotations

import json
import logging
import re
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from wait_core import Scheduler, WaitCoreError, _core
from wait_core.vllm import config

ENGINE = {"kv_blocks": 100, "block_size": 16, "max_num_seqs": 8, "token_budget": 64, "host_preempts": True}
TYPES = [{"prompt": 50, "output": 20, "rate": 2.0}]


def test_the_file_overrides_and_both_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"max_hold": 2.5, "shadow": True}))
    monkeypatch.setenv(config.FILE_VARIABLE, str(path))
    settings = config.load({"policy": "wait", "types": TYPES, "max_hold": 9, "watchdog_s": 1})
    assert (settings.shadow, settings.watchdog_s, settings.core["max_hold"]) == (True, 1, 2.5)
    core = config.make_core(settings, ENGINE)
    shown = {line.split()[0]: line for line in config.describe(settings, core, ENGINE).splitlines()[1:]}
    assert shown.keys() >= {"policy", "capacity", "thresholds", "max_hold", "kv_blocks", "shadow", "types"}
    for name, ending in {
        "policy": "additional_config",
        "capacity": "vLLM",
        "kv_blocks": "vLLM",
        "max_hold": f"file {path}",
        "watchdog_s": "additional_config",
        "known_lengths": "default",
        "work_conserving": "default",
        "thresholds": "planned",
        "config_file": f"environment {config.FILE_VARIABLE}",
    }.items():
        assert shown[name].endswith(f"  {ending}"), shown[name]
    assert "1,600 tokens" in shown["capacity"]


def test_a_path_in_the_configuration_beats_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.FILE_VARIABLE, str(tmp_path / "absent.json"))
    path = tmp_path / "settings.json"
    path.write_text('{"watchdog_s": 7}')
    assert config.load({"config_file": str(path)}).watchdog_s == 7
    with pytest.raises(config.ConfigError, match=r"absent\.json.*No such file"):
        config.load({})


@pytest.mark.parametrize(
    ("given", "in_file", "message"),
    [
        ([], {}, "must be an object"),
        ({}, 5, "must be an object, got 5"),
        ({}, None, "settings file settings.json must be an object, got None"),
        (None, {}, "must be an object, got None"),
        ({"wait_core": {"policy": "vllm"}}, {}, 'its settings stand in it by themselves, not under "wait_core"'),
        ({}, {"wait_core": {"policy": "vllm"}}, 'settings file settings.json: .* not under "wait_core"'),
        ({}, {"policy": None}, "policy must be of type str, got None"),
        ({"kv_blocks": 4}, {}, "kv_blocks = 4: it follows the engine; set vLLM's num_gpu_blocks_override"),
        ({"host_preempts": False}, {}, "it cannot be set"),
        ({"max_wait_s": -1}, {}, "max_wait_s must be a number of seconds, 0 or more, got -1"),
        ({}, {"max_wait_s": "2"}, "max_wait_s must be a number of seconds"),
        ({"policy": 3}, {}, "policy must be of type str, got 3"),
        ({"shadow": "yes"}, {}, "shadow must be of type bool"),
        ({"watchdog_s": -1}, {}, "watchdog_s must be a number of seconds"),
        ({"watchdog_s": True}, {}, "watchdog_s must be a number"),
        ({"log_max_mb": float("nan")}, {}, "log_max_mb must be a number of megabytes"),
        ({"learned_file": 1}, {}, "learned_file must be a path"),
        ({"log_file": 1}, {}, "log_file must be a path"),
        ({}, {"log_file": "a"}, "log_file = 'a': it is fixed at the start"),
    ],
)
def test_what_is_wrong_is_named(given: Any, in_file: Any, message: str) -> None:
    with pytest.raises(config.ConfigError, match=message) as refused:
        config.read(given, in_file, "settings.json")
    assert isinstance(refused.value, WaitCoreError), "as all that the package raises by itself"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"watchdgo_s": 3}, 'additional_config: unknown setting "watchdgo_s"; did you mean "watchdog_s"'),
        ({"treshold": [1]}, 'did you mean "thresholds"'),
        ({"zzzzzzzzzz": 1}, "unknown setting"),
        ({"policy": "wiat", "types": TYPES}, "wiat"),
        ({"types": TYPES, "max_hold": -2}, "max_hold = -2"),
        ({"policy": "wait", "types": TYPES, "thresholds": [1, 2]}, "one threshold a type"),
        ({"policy": "wait"}, "needs at least one request type"),
    ],
)
def test_the_core_refuses_what_is_its_own(given: dict[str, Any], message: str) -> None:
    with pytest.raises(config.ConfigError, match=message):
        config.make_core(config.read(given), ENGINE)


def test_the_document_names_every_setting() -> None:
    document = (Path(__file__).parent.parent / "docs" / "vllm.md").read_text(encoding="utf-8")
    table = document.split("\n## Settings\n")[1].split("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert named >= set(config.OWN)
    assert named - set(config.OWN) <= set(_core.SETTINGS), "no name of a setting that is gone"


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text("{")
    with pytest.raises(config.ConfigError, match=r"settings\.json:1: not JSON: Expecting"):
        config.load({"config_file": str(path)})


@pytest.fixture
def logger_of_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give what reads files in the adapter the one function of vLLM that it needs, where vLLM is not installed."""
    if find_spec("vllm") is None:
        stub: Any = types.ModuleType("vllm.logger")
        stub.init_logger = logging.getLogger
        monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
        monkeypatch.setitem(sys.modules, "vllm.logger", stub)
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)  # so that caplog sees it
    for module in ("settings_file", "learned_file"):
        monkeypatch.delitem(sys.modules, f"wait_core.vllm.{module}", raising=False)


DAMAGED = [b"", b"null", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b'{"policy": "\\ud800"}']
DAMAGED += [b'{"wait_core": {"policy": "vllm"}}', b'{"policy": null}', b"[{}]"]


@pytest.mark.usefixtures("logger_of_vllm")
@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_settings_file_is_refused_while_serving(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The settings in force stay, and the next change of the file is looked at again."""
    from wait_core.vllm import settings_file

    path = tmp_path / "settings.json"
    path.write_text("{}")
    watched = settings_file.SettingsFile(str(path), {})
    path.write_bytes(content)
    changed = watched.poll()
    if changed is not None:
        with pytest.raises(config.ConfigError):
            config.make_core(changed, {"kv_blocks": 60})
    else:
        assert caplog.text.count("refuses the changed settings") == 1
    path.write_text('{"watchdog_s": 7.5}')
    again = watched.poll()
    assert again is not None
    assert again.watchdog_s == 7.5


@pytest.mark.usefixtures("logger_of_vllm")
@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_learned_file_is_not_used(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    from wait_core.vllm import learned_file

    path = tmp_path / "learned.json"
    path.write_bytes(content)
    core = Scheduler("adaptive", kv_blocks=60)
    before = core.learned()
    kept = learned_file.LearnedFile(path)
    kept.load(core)
    assert caplog.text.count("begins without what") == 1
    assert core.learned() == before
    kept.save(core)
    caplog.clear()
    learned_file.LearnedFile(path).load(core)
    assert "begins without" not in caplog.text
    assert [entry.name for entry in tmp_path.iterdir()] == ["learned.json"]
