"""The experiments of the paper: thresholds, verdicts, the summary's marks, and the fluid experiment as a command."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"
sys.path.insert(0, str(BENCH))

from reproduce import authors, document, llama3_law, runs, sweeps, workloads  # noqa: E402

from wait_core import _core, simulate  # noqa: E402
from wait_core.hardware import iteration_time  # noqa: E402


def outcome(completion: float = 1.0, growth: float = 1.0) -> runs.Outcome:
    return runs.Outcome(latency_s=1.0, ttft_s=0.1, completion=completion, growth=growth, preempted=0.0)


def cell(*outcomes: runs.Outcome) -> runs.Cell:
    return runs.Cell(runs.Setting("sarathi", 128, 512), outcomes)


def test_thresholds_of_two_types_by_hand() -> None:
    # p_2 = 0.3, so n_2 = 0.35 n_1; 20 n_1 + 30 n_2 = 30.5 n_1 = 61.
    outputs = np.array([20] * 7 + [50] * 3, np.uint32)
    assert workloads.spread_total(61.0, outputs, [20, 50], 0.05) == pytest.approx([2.0, 0.7])


def test_thresholds_never_grow_from_segment_to_segment() -> None:
    # No request ends in the first segment: p_2 = 1, and q_2 = 0.99 keeps n_2 < n_1.
    thresholds = workloads.spread_total(199.0, np.full(5, 200, np.uint32), [100, 200], 0.05)
    assert thresholds == pytest.approx([1.0, 0.99])


@pytest.mark.parametrize(
    ("longest", "count", "expected"), [(10, 3, (4, 7, 10)), (3, 5, (1, 2, 3)), (500, 2, (250, 500))]
)
def test_equal_ranges(longest: int, count: int, expected: tuple[int, ...]) -> None:
    assert workloads.equal_ranges(longest, count) == expected


def test_wait_spreads_its_total_over_types_by_their_load() -> None:
    source = workloads.Workload(name="two", source=workloads.TWO_TYPES, rates=(10,), sizes=(29,), chunks=(512,))
    thresholds = runs.Setting("wait", 29, 512).keywords(source, 10.0)["thresholds"]
    assert thresholds == pytest.approx([0.7, 0.3]), "20 * 0.7 + 50 * 0.3 = 29"


def test_time_varying_arrivals_have_the_rates_and_mixes_of_their_windows() -> None:
    workload = workloads.TimeVarying(
        name="v", source=workloads.TWO_TYPES, rates=(15.0,), sizes=(1,), windows=((10.0, 0.2), (20.0, 0.4)),
        window_s=50.0, planned_share=0.4,
    )  # fmt: skip
    requests = workload.requests(15.0, 30_000, seed=3)
    assert len(requests) == 30_000
    assert np.all(np.diff(requests.arrival_ns.astype(np.int64)) >= 0)
    window = (requests.arrival_ns * 1e-9 / 50.0).astype(int)
    busy = window % 2 == 1
    whole = window < window.max()
    seconds = 50.0 * np.array([len(np.unique(window[whole & (busy == odd)])) for odd in (False, True)])
    counts = np.array([np.count_nonzero(whole & (busy == odd)) for odd in (False, True)])
    assert counts / seconds == pytest.approx([10.0, 20.0], rel=0.05)
    assert [np.mean(requests.output[busy == odd] == 50) for odd in (False, True)] == pytest.approx([0.2, 0.4], abs=0.02)


def test_a_rate_is_stable_by_completions_and_by_growth() -> None:
    assert cell(outcome()).stable
    assert not cell(outcome(completion=0.97)).stable
    assert not cell(outcome(growth=1.6)).stable
    assert cell(outcome(growth=1.6), outcome(growth=1.2)).stable, "on the means over the seeds"


def test_stable_rates_end_at_the_first_that_is_not() -> None:
    cells = {3.0: cell(outcome()), 1.0: cell(outcome()), 2.0: cell(outcome(completion=0.5))}
    assert sweeps.stable_up_to(cells) == 1.0
    assert sweeps.stable_up_to({1.0: cells[2.0]}) == 0.0


def test_an_overloaded_run_is_found_unstable() -> None:
    setting = runs.Setting("sarathi", 128, 512)
    assert runs.cell(setting, workloads.SINGLE, 18.0, 2_000, (0,)).stable
    assert not runs.cell(setting, workloads.SINGLE, 40.0, 2_000, (0,)).stable


def test_only_what_was_run_is_replaced_in_the_table(tmp_path: Path) -> None:
    page = tmp_path / "table.csv"
    row = {"experiment": "e", "quantity": "a, b", "paper": "", "ours": "2"}
    document.write(page, [row, row | {"experiment": "f"}])
    text = page.read_text(encoding="utf-8")
    assert text == 'experiment,quantity,paper,ours\ne,"a, b",,2\nf,"a, b",,2\n'
    document.write(page, [row | {"ours": "3"}])
    assert page.read_text(encoding="utf-8") == text.replace('e,"a, b",,2', 'e,"a, b",,3'), "in its place"


def test_the_table_of_the_documentation_has_every_experiment() -> None:
    table = BENCH.parent / "docs" / "data" / "paper-results.csv"
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    known = set(re.findall(r'^    "([a-z0-9-]+)": ', (BENCH / "paper.py").read_text(encoding="utf-8"), re.MULTILINE))
    found = {row["experiment"] for row in rows}
    # "ablation" and others state their rows under their own name; lmsys has three populations.
    assert known <= found
    assert all(row["quantity"] and row["ours"] for row in rows)


def test_latencies_in_the_documentation_are_lines_of_the_table() -> None:
    docs = BENCH.parent / "docs"
    table = (docs / "data" / "paper-results.csv").read_text(encoding="utf-8")
    stated = re.findall(r"\d+\.\d+ ± \d+\.\d+", (docs / "paper-results.md").read_text(encoding="utf-8"))
    assert len(stated) > 20
    assert not [each for each in stated if each not in table]


def test_the_law_of_the_authors_model() -> None:
    law = json.loads(llama3_law.LAW.read_text(encoding="utf-8"))
    assert law["steps"][-1]["up_to"] == 4096
    step = {each["up_to"]: each["base_ns"] for each in law["steps"]}
    # What 512 tokens cost more than 508: 32 layers of 0.1664 - 0.0045 ms in `attn_kv_cache_save`, nothing else.
    assert step[512] - step[508] == pytest.approx(1e6 * 32 * (0.1664 - 0.0045))
    for short, long in ((508, 512), (128, 256)):
        seconds = [
            _core.iteration_seconds(law, chunks=[(tokens, 0)], decodes=0, decode_kv=0) for tokens in (short, long)
        ]
        assert seconds[1] > seconds[0]


def test_the_law_is_made_of_the_published_medians(tmp_path: Path) -> None:
    columns = [f"time_stats.{name}.median" for name in llama3_law.OPERATIONS]
    rows = [
        {"num_tokens": n, "num_tensor_parallel_workers": 1} | dict.fromkeys(columns, n / 9e3) for n in (1, 16, 4096)
    ]
    with (tmp_path / "mlp.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows([*rows, rows[0] | {"num_tensor_parallel_workers": 2, "num_tokens": 8}])
    made = llama3_law.law(tmp_path)
    base = {step["up_to"]: step["base_ns"] for step in made["steps"]}
    # n/1000 ms a layer, n rounded up to 8, and the row of `attn_kv_cache_save`.
    assert base[8] == pytest.approx(1e6 * 32 * (0.008 + 0.006))
    assert base[512] == pytest.approx(1e6 * 32 * (0.512 + 0.1664))
    assert base[528] == pytest.approx(1e6 * 32 * (0.528 + 0.1768))


def test_a_cap_on_concurrency_holds_no_request() -> None:
    settings = authors.concurrency(authors.TL, 508, 256)
    report = simulate(requests=workloads.SINGLE.requests(1.0, 50, 0), kv_blocks=29_952, **settings)
    # Alone it is cut by the budget of 508 tokens only: the threshold of 256 leaves room for others.
    law = iteration_time("a100")
    chunk = sum(_core.iteration_seconds(law, chunks=[one], decodes=0, decode_kv=0) for one in ((508, 0), (4, 508)))
    assert report.run.first_token_ns[0] - report.run.arrival_ns[0] == pytest.approx(chunk * 1e9)


def test_the_fluid_experiment_as_a_command() -> None:
    command = [sys.executable, str(BENCH / "paper.py"), "fluid", "--quick", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    line = json.loads(result.stdout.splitlines()[-1])
    assert line["bench"] == "paper"
    peaks = [claim["value"] for claim in line["claims"] if "peak KV / M^π" in claim["name"]]
    assert peaks
    assert peaks == pytest.approx([1.0] * len(peaks)), "WAIT's peak is exactly M^π"
    assert all(claim["holds"] for claim in line["claims"])


def test_an_unknown_experiment_is_refused() -> None:
    command = [sys.executable, str(BENCH / "paper.py"), "singel"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "singel" in result.stderr
