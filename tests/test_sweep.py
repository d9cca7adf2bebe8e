"""`sweep` and its command: the same figures as single runs, in every form, and an interrupted sweep resumes."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from wait_core import WaitCoreError, simulate
from wait_core.cli import main
from wait_core.simulation import Cell, sweep

if TYPE_CHECKING:
    from pathlib import Path

SMALL: dict[str, Any] = {"dataset_name": "p64d32", "num_prompts": 60}
COMMAND = ["sweep", "--dataset-name", "p64d32", "--num-prompts", "60", "--request-rates", "10", "40",
           "--kv-blocks", "60", "200", "--seeds", "2"]  # fmt: skip


def test_cells_have_the_figures_that_they_have_alone() -> None:
    cells = [
        Cell(policy=policy, request_rate=rate, kv_blocks=blocks, seed=seed)
        for policy in ("vllm", "adaptive") for rate in (10.0, 40.0) for blocks in (60, None) for seed in (0, 3)
    ]  # fmt: skip
    found = dict(sweep(cells, workers=3, slo_ttft_ms=500.0, **SMALL))
    assert set(found) == set(cells)
    for cell, row in found.items():
        memory: dict[str, Any] = {} if cell.kv_blocks is None else {"kv_blocks": cell.kv_blocks}
        alone = simulate(cell.policy, request_rate=cell.request_rate, seed=cell.seed, **SMALL, **memory)
        assert row == {"request_rate": cell.request_rate} | alone.summary(slo_ttft_ms=500.0)


def test_closing_it_cuts_short_what_runs() -> None:
    long = [Cell(policy="vllm", request_rate=1.0, seed=seed) for seed in range(1, 50)]
    running = sweep(
        [Cell(policy="vllm", request_rate=1.0, kv_blocks=1), *long], workers=2,
        dataset_name="reasoning-2700", num_prompts=100_000,
    )  # fmt: skip
    begun = time.monotonic()
    next(running)
    running.close()
    assert time.monotonic() - begun < 30


def test_what_is_wrong_in_one_ends_all() -> None:
    cells = [Cell(policy="vllm", request_rate=9.0), Cell(policy="nothing", request_rate=9.0)]
    with pytest.raises(WaitCoreError, match="nothing"):
        list(sweep(cells, **SMALL))
    with pytest.raises(WaitCoreError, match="workers = 0"):
        list(sweep(cells, workers=0, **SMALL))


def test_every_form_has_the_same_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    order = [(row["request_rate"], row["kv_blocks"], row["policy"], row["seed"]) for row in rows]
    assert order == [
        (r, b, p, s) for r in (10.0, 40.0) for b in (60, 200) for p in ("vllm", "adaptive") for s in (0, 1)
    ]
    assert main([*COMMAND, "--csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(row["mean_e2el_ms"]) for row in table] == [row["mean_e2el_ms"] for row in rows]
    assert [int(row["holds.no_blocks"]) for row in table] == [row["holds"]["no_blocks"] for row in rows]
    for form in ("jsonl", "json", "csv"):
        output = tmp_path / f"rows.{form}"
        assert main([*COMMAND, "--output", str(output), "--workers", "2"]) == 0
        text = output.read_text(encoding="utf-8")
        if form == "csv":
            assert list(csv.DictReader(io.StringIO(text))) == table
        else:
            assert (json.loads(text) if form == "json" else [json.loads(line) for line in text.splitlines()]) == rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv", "rows.json", "rows.jsonl"]
    out = capsys.readouterr().out
    assert out.count("adaptive") == 3 * 4
    assert main([*COMMAND, "--output", str(tmp_path / "rows.txt")]) == 2
    assert "rows.txt" in capsys.readouterr().err


def test_parquet_is_an_extra(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs the extra arrow")
    assert main([*COMMAND, "--output", str(tmp_path / "rows.parquet"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    stored = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [row["mean_e2el_ms"] for row in stored] == [row["mean_e2el_ms"] for row in rows]


def test_parquet_without_pyarrow_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wait_core.cli.rows.find_spec", lambda _name: None)
    assert main([*COMMAND, "--output", str(tmp_path / "rows.parquet")]) == 2
    assert "pip install '.[arrow]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_sweep_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "rows.jsonl"
    partial = tmp_path / "rows.jsonl.partial"
    arguments = ["sweep", "--dataset-name", "reasoning-2700", "--request-rates", "1", "--policies", "vllm",
                 "--num-prompts", "3000", "--seeds", "40", "--output", str(output)]  # fmt: skip
    handler = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{handler}; from wait_core.cli import main; sys.exit(main())", *arguments]
    process = subprocess.Popen([*command, "--workers", "1"], stderr=subprocess.PIPE, text=True)
    while not (partial.exists() and partial.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    kept = partial.read_text(encoding="utf-8").splitlines()
    assert f"{len(kept) - 1} of 40 runs are kept in {partial}: the same command resumes" in err
    assert not output.exists()
    # A row that was kept is not simulated again: a mark in it comes out.
    entry = json.loads(kept[1])
    entry["row"]["mean_e2el_ms"] = -1.0
    cut = json.dumps({"cell": "cut off"})[:-3]
    partial.write_text("\n".join([kept[0], json.dumps(entry), cut]), encoding="utf-8")
    assert main(arguments) == 0
    capsys.readouterr()
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row["seed"] for row in rows] == list(range(40))
    assert [row["mean_e2el_ms"] for row in rows].count(-1.0) == 1
    assert not partial.exists()
    # Rows of another sweep cannot be reused.
    partial.write_text(kept[0] + "\n", encoding="utf-8")
    assert main([*arguments, "--burstiness", "2"]) == 2
    assert "holds the rows of another sweep" in capsys.readouterr().err
    assert partial.exists()


def test_a_trace_is_swept_at_its_own_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "words.csv"
    trace.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,10,5\n0.1,0,5\n0.2,9,3\n", encoding="utf-8")
    assert main(["sweep", "--dataset-path", str(trace), "--policies", "adaptive"]) == 0
    out, err = capsys.readouterr()
    assert "own" in out
    assert "note: 1 row left out" in err
    assert main(["sweep", "--dataset-name", "chat", "--request-rates", "1", "inf"]) == 2
    assert "--request-rates: 'inf'" in capsys.readouterr().err
    assert main(["sweep", "--dataset-name", "chat"]) == 2
    assert "--request-rates" in capsys.readouterr().err


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_two_workers_use_two_cores() -> None:
    """The core runs without Python's lock: its processor time passes faster than time."""
    cells = [Cell(policy="vllm", request_rate=1.0, seed=seed) for seed in range(6)]
    best = 0.0
    for _ in range(10):  # others may need the other core
        began, used = time.monotonic(), time.process_time()
        list(sweep(cells, workers=2, dataset_name="reasoning-2700", num_prompts=4000))
        best = max(best, (time.process_time() - used) / (time.monotonic() - began))
        if best > 1.2:
            break
    assert best > 1.2 or os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1), best
