"""`wait-core calibrate`: known laws are recovered from noisy measurements."""

from __future__ import annotations

import json
import random
import sys
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from wait_core import WaitCoreError, simulate
from wait_core._core import iteration_seconds
from wait_core.cli import main
from wait_core.hardware.calibration import fit
from wait_core.logs.step_log import FEWEST, FORMAT, VERSION, load

if TYPE_CHECKING:
    from pathlib import Path

A100 = {"law": "a100"}
LINEAR = {"law": "linear", "d0": 0.0106, "d1": 4.0e-7}
MEASURED = {
    "law": "measured",
    "round_to": 1,
    "steps": [
        {"up_to": 64, "base_ns": 9.0e6, "per_token_ns": 12_000.0},
        {"up_to": 256, "base_ns": 14.0e6, "per_token_ns": 9_000.0},
        {"up_to": 2048, "base_ns": -2.0e6, "per_token_ns": 66_000.0},
    ],
    "attention": {"per_decode_kv_ns": 270.0, "per_prefill_attention_ns": 5.0, "prefill_base_ns": 60_000.0},
}


def shape(draw: random.Random) -> dict[str, Any]:
    """Draw an iteration of a busy engine: most decode alone, some also compute chunks."""
    decodes = draw.randint(0, 250)
    chunks = []
    if decodes == 0 or draw.random() < 0.4:
        room = 2048 - decodes
        for _ in range(draw.randint(1, 4)):
            tokens = min(room, draw.randint(1, 900))
            if tokens > 0:
                chunks.append((tokens, draw.choice([0, 0, draw.randint(1, 2000)])))
                room -= tokens
    return {"decodes": decodes, "decode_kv": decodes * draw.randint(50, 900), "chunks": chunks}


def write(path: Path, law: dict[str, Any], *, count: int, noise: float, stalls: float = 0.0) -> Path:
    """Write the log of an engine that follows `law` up to noise, with occasional stalls of a second."""
    draw = random.Random(5)
    lines: list[dict[str, Any]] = [{"format": FORMAT, "version": VERSION}]
    for _ in range(count):
        batch = shape(draw)
        seconds = iteration_seconds(law, **batch) * draw.lognormvariate(-(noise**2) / 2, noise)
        seconds += draw.random() < stalls
        lines.append({"ns": round(seconds * 1e9), **batch})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def measured_ahead(path: Path) -> Path:
    """Rewrite a log as an engine measures it that schedules one iteration ahead.

    Launching prefill takes 70 % of its time, and until it is launched the decode iteration before it has not ended.
    """
    header, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    for before, line in pairwise(lines):
        if line["chunks"] and not before["chunks"]:
            late = max(0, round(0.7 * line["ns"]) - before["ns"])
            before["ns"] += late
            line["ns"] -= late
    path.write_text("".join(json.dumps(line) + "\n" for line in [header, *lines]), encoding="utf-8")
    return path


def worst(found: dict[str, Any], true: dict[str, Any], seed: int = 99) -> tuple[float, float]:
    """Return the mean and the largest relative error on fresh iterations."""
    draw = random.Random(seed)
    shapes = [shape(draw) for _ in range(500)]
    errors = [abs(iteration_seconds(found, **batch) / iteration_seconds(true, **batch) - 1) for batch in shapes]
    return sum(errors) / len(errors), max(errors)


@pytest.mark.parametrize("law", [MEASURED, LINEAR, A100], ids=["measured", "linear", "a100"])
def test_a_known_law_is_found_again(tmp_path: Path, law: dict[str, Any]) -> None:
    found = fit(load([write(tmp_path / "steps.jsonl", law, count=6000, noise=0.05)]))
    mean, largest = worst(found.iteration_time, law)
    # The A100 has more stairs than are searched for, and rounded to 8 tokens.
    assert mean < (0.02 if law is A100 else 0.006)
    assert largest < (0.15 if law is A100 else 0.03)
    assert abs(found.total_error) < 0.005
    assert 0.03 < found.median_error < 0.045  # of the noise: 0.67 standard deviations
    assert found.r_squared > 0.95


def test_a_known_law_is_found_where_launching_prefill_delays_the_end_of_a_decode_iteration(tmp_path: Path) -> None:
    log = write(tmp_path / "steps.jsonl", MEASURED, count=6000, noise=0.02)
    found = fit(load([measured_ahead(log)]))
    mean, largest = worst(found.iteration_time, MEASURED)
    assert mean < 0.01
    assert largest < 0.05
    assert abs(found.total_error) < 0.005
    assert found.outliers == 0


def test_stairs_are_where_they_are(tmp_path: Path) -> None:
    found = fit(load([write(tmp_path / "steps.jsonl", MEASURED, count=6000, noise=0.02)]))
    assert [step["up_to"] for step in found.iteration_time["steps"][:-1]] == [64, 256]
    attention = found.iteration_time["attention"]
    assert attention["per_decode_kv_ns"] == pytest.approx(270.0, rel=0.02)
    assert min(attention["per_decode_ns"], attention["per_prefill_token_ns"]) == 0


def test_the_papers_law(tmp_path: Path) -> None:
    found = fit(load([write(tmp_path / "steps.jsonl", LINEAR, count=2000, noise=0.05)]), "linear")
    assert found.iteration_time["d0"] == pytest.approx(LINEAR["d0"], rel=0.01)
    assert found.iteration_time["d1"] == pytest.approx(LINEAR["d1"], rel=0.01)


def test_stalls_are_left_out_and_said(tmp_path: Path) -> None:
    clean = fit(load([write(tmp_path / "clean.jsonl", MEASURED, count=4000, noise=0.05)]))
    stalled = fit(load([write(tmp_path / "stalled.jsonl", MEASURED, count=4000, noise=0.05, stalls=0.01)]))
    assert clean.outliers == 0
    assert 20 <= stalled.outliers <= 60
    assert stalled.outlier_time > 0.1
    assert stalled.total_error < -0.1  # these stalls are part of the time, but not of the law
    assert worst(stalled.iteration_time, MEASURED)[0] < 0.008


def test_the_law_goes_into_the_simulator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "steps.jsonl", MEASURED, count=4000, noise=0.05)
    law = tmp_path / "law.json"
    assert main(["calibrate", str(log), "--output", str(law)]) == 0
    said = capsys.readouterr().out
    assert "4,000 iterations" in said
    assert "measured" in said
    assert "linear" in said
    assert main(["calibrate", str(log), "--json", "--form", "linear"]) == 0
    assert json.loads(capsys.readouterr().out)["iteration_time"]["law"] == "linear"
    workload: dict[str, Any] = {"dataset_name": "chat", "request_rate": 5, "num_prompts": 300, "kv_blocks": 4000}
    mine, true = (
        simulate(**workload, iteration_time=which).summary()["mean_e2el_ms"] for which in (str(law), MEASURED)
    )
    assert mine == pytest.approx(true, rel=0.05)


def step(**changes: str) -> str:
    """Return a step log of one step, with the JSON of some of its values changed."""
    values = {"ns": "5000", "decodes": "1", "decode_kv": "9", "chunks": "[]"} | changes
    row = ", ".join(f'"{name}": {value}' for name, value in values.items())
    return f'{{"format": "{FORMAT}", "version": {VERSION}}}\n{{{row}}}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 iterations"),
        ('{"format": "wait-core-log", "version": 1}\n', "wait-core-log"),
        ('{"format": "wait-core-steps", "version": 9}\n', "version 9"),
        ('{"format": "wait-core-steps", "version": 1}\n{"ns": 1}\n{}\n', ":2: column 'chunks'"),
        ('{"format": "wait-core-steps", "version": 1}\n{"ns": 0, "decodes": 1, "decode_kv": 1, "chunks": []}\n', ":2:"),
        (step(chunks="[[100000000000, 0]]"), ":2: column 'chunks': 100000000000 is not an integer from 0 to"),
        (step(chunks="[[1073741824, 0], [1073741824, 0]]"), ":2: "),
        (step(chunks="[[1e400, 0]]"), ":2: column 'chunks'"),
        (step(chunks="[[1, 2, 3]]"), ":2: column 'chunks'"),
        (step(ns="1e400"), ":2: column 'ns'"),
        (step(ns="true"), ":2: column 'ns'"),
        (step(decode_kv="-1"), ":2: column 'decode_kv'"),
        (step(decodes="[" * 100_000), ":2: not JSON: nested too deeply"),
        (step(decodes="9" * 5_000), ":2: not JSON"),
        (step()[:-1] + "\x00\n", ":2: not JSON"),
    ],
)
def test_what_is_no_step_log_is_refused(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text(text, encoding="utf-8")
    assert main(["calibrate", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_bytes(b"\x7fELF\x02\x01\x01\x00\xff\xfe")
    assert main(["calibrate", str(path)]) == 2
    assert f"{path}:1: not UTF-8 text: byte 9, 0xff of the line" in capsys.readouterr().err


def test_a_batch_without_bound_does_not_take_time_without_bound(tmp_path: Path) -> None:
    """Stairs are looked for in as many places in a batch of 2^30 tokens as in one of 16,384."""
    path = write(tmp_path / "steps.jsonl", LINEAR, count=200, noise=0.0)
    with path.open("a") as file:
        file.write('{"ns": 1000000, "decodes": 0, "decode_kv": 0, "chunks": [[1073741824, 0]]}\n')
    start = time.process_time()
    fit(load([path]))
    assert time.process_time() - start < 20.0


def test_the_law_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    log = write(tmp_path / "steps.jsonl", MEASURED, count=10, noise=0.05)  # too few
    law = tmp_path / "law.json"
    law.write_text("{}")
    assert main(["calibrate", str(log), "--output", str(law)]) == 2
    assert law.read_text() == "{}"
    assert main(["calibrate", "/nowhere.jsonl", "--output", str(tmp_path / "no" / "law.json")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["law.json", "steps.jsonl"]


def test_without_scipy_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write(tmp_path / "steps.jsonl", MEASURED, count=100, noise=0.05)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    assert main(["calibrate", str(log)]) == 2
    assert (
        capsys.readouterr().err
        == "wait-core: a law is fitted with scipy: pip install '.[calibrate]' in the repository of wait-core\n"
    )


def test_an_unfinished_line_and_a_full_log_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "steps.jsonl", LINEAR, count=FEWEST, noise=0.0)
    with path.open("a") as file:
        file.write('{"stop":"size"}\n{"ns": 12')
    assert len(load([path])) == FEWEST
    with pytest.raises(WaitCoreError, match="form = 'table'"):
        fit(load([path]), "table")
