"""What was learned survives the engine, and other settings; an unusable file is no obstacle."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import HandClock

pytestmark = pytest.mark.filterwarnings("ignore")

HIDDEN = {"known_lengths": False, "use_max_tokens": False}


def engine(**settings: Any) -> Any:
    """Return a driver under `adaptive`, lengths hidden."""
    from in_process import Driver, Setup

    sizes: dict[str, Any] = {"num_blocks": 41, "max_num_seqs": 16, "max_model_len": 256}
    return Driver(Setup(scheduler="WaitScheduler", wait_core=HIDDEN | settings, **sizes))


def serve(driver: Any, count: int, name: str = "r") -> None:
    for i in range(count):
        driver.add(f"{name}{i}", [3 + i % 50] * 40, 20, ignore_eos=True)
    while driver.scheduler.requests:
        driver.step()


def core(driver: Any) -> Any:
    return driver.scheduler.wait_core.core


def test_a_restarted_engine_goes_on_from_what_was_learned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "vllm.wait_core.vllm.learned_file")
    path = tmp_path / "learned.json"
    first = engine(learned_file=str(path))
    serve(first, 60)
    first.scheduler.shutdown()
    learned = core(first).learned()
    assert [file.name for file in tmp_path.iterdir()] == ["learned.json"]
    second = engine(learned_file=str(path))
    assert core(second).learned() == learned
    assert "goes on from what was learned before" in caplog.text
    assert core(engine()).learned() != learned
    third = engine(learned_file=str(path), policy="vllm")
    assert caplog.text.count("begins without what") == 1
    third.scheduler.shutdown()
    assert json.loads(path.read_text())["learned"] == learned, "a policy that learns nothing does not overwrite it"


def written(driver: Any) -> None:
    driver.scheduler.wait_core.control._learned._writer.join()


def test_an_engine_that_comes_to_rest_has_kept_it(tmp_path: Path, clock: HandClock) -> None:
    """It may be killed at any time then."""
    path = tmp_path / "learned.json"
    driver = engine(learned_file=str(path))
    serve(driver, 60)
    written(driver)
    assert json.loads(path.read_text())["learned"] == core(driver).learned()
    before = path.stat().st_ino
    serve(driver, 4, "s")
    written(driver)
    assert path.stat().st_ino == before, "at most once a second"
    clock.forward(1.5)
    serve(driver, 4, "t")
    written(driver)
    assert path.stat().st_ino != before


def test_it_is_kept_at_intervals_while_the_engine_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: HandClock
) -> None:
    from wait_core.vllm import learned_file

    path = tmp_path / "learned.json"
    driver = engine(learned_file=str(path))
    driver.add("long", [3] * 40, 200, ignore_eos=True)
    for _ in range(20):
        driver.step()
    assert not path.exists()
    monkeypatch.setattr(learned_file, "BUSY_NS", 0)
    clock.forward(2)
    driver.step()
    written(driver)
    assert json.loads(path.read_text())["policy"] == "adaptive"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"format": "wait-core-learned"}',
        '{"format": "wait-core-learned", "version": 2, "policy": "adaptive", "learned": {}}',
        '{"format": "wait-core-learned", "version": 1, "policy": "adaptive", "learned": {"lengths": 3}}',
        '{"format": "wait-core-learned", "version": 1, "policy": "adaptive", "learned": null}',
    ],
)
def test_a_file_that_holds_something_else_is_not_used(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "learned.json"
    path.write_text(text)
    driver = engine(learned_file=str(path))
    assert caplog.text.count("begins without what") == 1
    serve(driver, 30)
    driver.scheduler.shutdown()
    assert core(engine(learned_file=str(path))).learned() == core(driver).learned()


def test_a_folder_that_is_not_there_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    driver = engine(learned_file=str(tmp_path / "absent" / "learned.json"))
    serve(driver, 4)
    driver.scheduler.shutdown()
    driver.scheduler.shutdown()
    assert caplog.text.count("cannot keep what it has learned") == 1
    assert driver.scheduler.wait_core.active


def test_other_settings_keep_what_was_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wait_core.vllm.bridge.LOOK_NS", 0)
    path, log = tmp_path / "settings.json", tmp_path / "log.jsonl"
    path.write_text("{}")
    driver = engine(config_file=str(path), log_file=str(log))
    serve(driver, 60)
    before = core(driver)
    path.write_text('{"overflow_probability": 0.01}')
    driver.add("last", [5] * 40, 20, ignore_eos=True)
    driver.step()
    assert core(driver).settings["overflow_probability"] == 0.01
    assert core(driver).learned()["lengths"] == before.learned()["lengths"]
    serve(driver, 5, "s")
    driver.scheduler.wait_core.log.close()
    from wait_core.logs import replay

    assert replay(log).line is None
    path.write_text('{"policy": "vllm"}')
    driver.add("other", [5] * 40, 20, ignore_eos=True)
    driver.step()
    assert core(driver).learned() is None
