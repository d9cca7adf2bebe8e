"""What every command prints, to the letter: tests/golden/NAME.txt.

WAIT_CORE_GOLDEN=write python -m pytest tests/test_golden.py    # where a change is meant; look at the difference
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from wait_core.cli import demo, main
from wait_core.cli.app import COMMANDS, parser_of

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
SMALL = ["--dataset-name", "p64d32", "--request-rate", "40", "--num-prompts", "100", "--set", "kv_blocks=60"]
CASES: dict[str, list[str]] = {
    "calibrate": ["calibrate", "steps.jsonl", "--form", "linear"],
    "compare": ["compare", *SMALL, "--policies", "vllm", "wait", "--goodput", "ttft:500"],
    "compare-trace": ["compare", "--dataset-path", "burst.csv", "--policies", "vllm"],
    "demo": ["demo", "--num-prompts", "300"],
    "hardware": ["hardware"],
    "plan": ["plan", "--type", "64:32:8", "--type", "64:8:4", "--num-prompts", "300", "--runs", "2",
             "--kv-blocks", "600", "--policy", "clairvoyant", "--target-rate", "30", "--goodput", "ttft:2000"],
    "plan-unstable": ["plan", "--type", "512:1000:4", "--num-prompts", "300", "--runs", "1", "--policy", "vllm"],
    "plan-fleet": ["plan", "--type", "256:32:120", "--num-prompts", "1500", "--runs", "2", "--kv-blocks", "600",
                   "--replicas", "auto", "--goodput", "ttft:300", "tpot:25"],
    "replay": ["replay", "log.jsonl"],
    "replay-differs": ["replay", "other.jsonl"],
    "settings": ["settings"],
    "settings-vllm": ["settings", "--policy", "vllm"],
    "simulate": ["simulate", *SMALL, "--policy", "vllm"],
    "simulate-apart": ["simulate", *SMALL, "--policy", "vllm", "--prefill-replicas", "1", "--decode-replicas", "2",
                       "--kv-bandwidth", "2"],
    "simulate-json": ["simulate", *SMALL, "--policy", "vllm", "--json"],
    "simulate-refused": ["simulate", *SMALL, "--set", "kv_block=3"],
    "simulate-none-fits": ["simulate", *SMALL[:-1], "kv_blocks=5", "--policy", "vllm"],
    "sweep": ["sweep", *SMALL[:2], "--num-prompts", "100", "--request-rates", "10", "40", "--kv-blocks", "60", "200",
              "--policies", "vllm", "wait", "--seeds", "2"],
    "trace": ["trace", "burst.csv"],
    "trace-shared": ["trace", "mooncake.jsonl"],
}  # fmt: skip
UNSTEADY = {"doctor"}
"""Commands whose output is about the machine: tests/test_doctor.py."""


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what a command's output depends on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(demo, "drawable", lambda: False)
    (tmp_path / "burst.csv").write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,API log\n45,ChatGPT,1087,0,1087,API log\n118,GPT-4,417,276,693,API log\n"
    )
    (tmp_path / "mooncake.jsonl").write_text(
        '{"timestamp": 0, "input_length": 700, "output_length": 52, "hash_ids": [46, 47]}\n'
        '{"timestamp": 900, "input_length": 512, "output_length": 26, "hash_ids": [46]}\n'
    )


def printed(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    status = main(list(arguments))
    out, err = capsys.readouterr()
    shown = [f"$ wait-core {' '.join(arguments)}", out.rstrip("\n")]
    if err:
        shown += ["--- standard error", err.rstrip("\n")]
    text = "\n".join([*shown, f"--- exit status {status}", ""])
    # The last digits of a sum are those of the machine's order of summation.
    return re.sub(r"\d+\.\d{9,}(e-?\d+)?", lambda number: f"{float(number[0]):.9g}", text)


def steps(path: Path) -> None:
    """Write a step log whose times are 10 ms and 1 us a KV token, to the nanosecond."""
    from wait_core.logs import step_log

    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"format": step_log.FORMAT, "version": step_log.VERSION}) + "\n")
        for decodes in range(1, 200):
            kv = 100 * decodes + decodes**2
            row = {"ns": 10_000_000 + 1000 * kv, "decodes": decodes, "decode_kv": kv, "chunks": []}
            file.write(json.dumps(row) + "\n")


def log(path: Path, *, first_chunk: int) -> None:
    """Write a decision log of one request, whose second plan says how much of its prompt was computed."""
    from wait_core import Scheduler
    from wait_core.logs.decision_log import DecisionLog, LoggedCore

    writer = DecisionLog(path, max_bytes=10**6)
    core = LoggedCore(Scheduler("vllm", kv_blocks=30, max_num_seqs=8, token_budget=64), writer)
    core.add(7, 40, 3, now_ns=5)
    for step in range(3):
        core.plan(10**6 * step)
        core.complete()
    writer.close()
    if first_chunk != 40:
        path.write_text(path.read_text(encoding="utf-8").replace("[7,40]", f"[7,{first_chunk}]"), encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_a_command_prints_what_it_did(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "calibrate":
        pytest.importorskip("scipy", reason="calibrate needs scipy")
        steps(tmp_path / "steps.jsonl")
    if name.startswith("replay"):
        log(tmp_path / "log.jsonl", first_chunk=40)
        log(tmp_path / "other.jsonl", first_chunk=32)
    text = printed(CASES[name], capsys)
    if name == "hardware":  # what an extra adds is not tested here
        text = text.split("\n\n")[0] + "\n"
    kept = GOLDEN / f"{name}.txt"
    if os.environ.get("WAIT_CORE_GOLDEN") == "write":
        kept.write_text(text, encoding="utf-8")
    assert text == kept.read_text(encoding="utf-8"), (
        "meant? WAIT_CORE_GOLDEN=write python -m pytest tests/test_golden.py"
    )


def test_every_command_has_one() -> None:
    assert {command[0] for command in CASES.values()} | UNSTEADY == set(COMMANDS)
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)


def test_every_option_is_explained() -> None:
    """In `--help`; its layout is argparse's and differs between versions of Python."""
    for command in COMMANDS:
        (commands,) = (each for each in parser_of([command])._actions if isinstance(each, argparse._SubParsersAction))
        options = commands.choices[command]._actions
        assert len(options) > 1
        for option in options:
            assert option.help, (command, option.dest)
