"""The report of bench/vllm_gpu.py: its tables have the columns of the documentation's, whatever machine they are of."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_calibration import write

from wait_core.hardware.iteration_time import iteration_time

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT / "bench"))

import contract  # noqa: E402
import pages  # noqa: E402
import vllm_gpu_report  # noqa: E402
from vllm_gpu_cells import ARMS, CELLS, OURS, STOCK  # noqa: E402

LAW = "llama-3.1-8b-h100-sxm"
COUNT = 20
"""Requests of a round."""


def run(cell: str, arm: str, number: int) -> dict[str, Any]:
    """Make up a round: ours takes half the time of stock's, and gives every second answer of stock's."""
    took = (0.5 if arm == OURS else 1.0) * number
    keys = ("mean_ttft_ms", "p99_ttft_ms", "mean_e2el_ms", "p99_e2el_ms", "mean_tpot_ms", "p99_itl_ms")
    figures = dict.fromkeys(keys, 1e3 * took) | dict.fromkeys(("schedule_us", "update_us"), 50.0)
    figures |= {"duration": took, "output_throughput": 100 / took, "steps": 100, "scheduler_s": 0.1 * took}
    digests = [f"{i}" if arm != OURS or i % 2 else "other" for i in range(COUNT)]
    return {"kind": "run", "cell": cell, "arm": arm, "number": number, "preemptions": 3, "digests": digests, **figures}


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Return what two rounds and a calibration leave."""
    lines: list[dict[str, Any]] = [{"kind": "about", "arm": arm, "gpu": "a GPU", "usable blocks": 1250} for arm in ARMS]
    lines += [{"kind": "alone", "cell": cell, "same": dict.fromkeys(ARMS, True)} for cell in CELLS for _ in range(3)]
    lines += [run(cell, arm, number) for cell in CELLS for arm in ARMS for number in (1, 2)]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    law = iteration_time(LAW)
    for name in ("fitted", "held-out"):
        write(tmp_path / f"steps-{name}.jsonl", law, count=400, noise=0.0)
    (tmp_path / "h200.json").write_text(json.dumps(law))
    return tmp_path


def test_the_report_writes_the_files_of_the_page(kept: Path) -> None:
    bench = contract.Bench("vllm_gpu", SimpleNamespace())  # type: ignore[arg-type]
    vllm_gpu_report.report(bench, kept, [str(kept / "h200.json"), LAW])
    files = bench.files()
    assert set(files) == {path.stem for path in contract.DATA.glob("vllm-gpu*.csv")}
    for name, rows in files.items():
        assert [list(row) for row in rows] == [list(row) for row in pages.read(name)], name
    ours = next(row for row in files["vllm-gpu"] if row["arm"] == OURS)
    assert ours["tok/s"] == "150"
    assert ours["tok/s / stock's"] == "2.000+-0.000"
    assert ours["E2E / stock's"] == "0.500+-0.000"
    assert files["vllm-gpu-overhead"][0]["both, share of the time"] == "10.0%"
    exact = next(row for row in files["vllm-gpu-laws"] if row["law"] == "h200")
    assert exact["decodes: median error"] == exact["prefill: median error"] == "0.0%"
    assert bench.gpu == "a GPU"
    claims = {claim.name: claim.value for claim in bench.claims}
    assert claims[f"chat-like: answers the same as {STOCK}'s, {OURS}"] == pytest.approx(0.5)
    assert claims[f"chat-like: one request at a time, all its tokens as {STOCK}'s, {OURS}"] == 1.0
    assert claims["steps that no law was fitted to"] == 400
