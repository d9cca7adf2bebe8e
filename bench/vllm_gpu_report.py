"""The tables of bench/vllm_gpu.py, from the folder in which it keeps what was measured."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
from contract import interval
from vllm_gpu_cells import ARMS, CELLS, FIXED, OURS, STOCK, drawn

from wait_core import simulate
from wait_core._core import iteration_seconds
from wait_core.hardware import calibration
from wait_core.hardware.iteration_time import iteration_time
from wait_core.logs import step_log
from wait_core.workload import Requests

if TYPE_CHECKING:
    import numpy.typing as npt
    from contract import Bench

Rows = list[dict[str, Any]]
RATIOS = {"tok/s": "output_throughput", "TTFT": "mean_ttft_ms", "E2E": "mean_e2el_ms"}
"""What is compared with stock's, round by round."""


class Kept:
    """What a folder keeps of the runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        lines = (folder / "runs.jsonl").read_text(encoding="utf-8").splitlines()
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def of(self, kind: str, **wanted: Any) -> list[dict[str, Any]]:
        """Return what was kept of a kind, where all of `wanted` agree."""
        return [x for x in self.lines if x["kind"] == kind and all(x[key] == value for key, value in wanted.items())]

    def rounds(self, cell: str, arm: str) -> dict[int, dict[str, Any]]:
        """Return the rounds of an arm that stock served too."""
        stock = {run["number"] for run in self.of("run", cell=cell, arm=STOCK)}
        return {run["number"]: run for run in self.of("run", cell=cell, arm=arm) if run["number"] in stock}


def ratio(runs: dict[int, dict[str, Any]], stock: dict[int, dict[str, Any]], key: str) -> str:
    """Return the mean of paired ratios and half its 95 % interval."""
    found, half = interval([run[key] / stock[number][key] for number, run in runs.items()])
    return f"{found:.3f}+-{half:.3f}"


def side_by_side(bench: Bench, kept: Kept) -> Rows:
    """Return the table of the arms, and claim how many answers are stock's."""
    rows = []
    for cell in CELLS:
        stock = kept.rounds(cell, STOCK)
        for arm in ARMS:
            runs = kept.rounds(cell, arm)
            if not runs:
                continue

            def of(key: str, runs: dict[int, dict[str, Any]] = runs) -> float:
                return mean(float(run[key]) for run in runs.values())

            row = {"cell": cell, "arm": arm, "rounds": len(runs), "tok/s": f"{of('output_throughput'):.0f}"}
            for title, key in (("TTFT", "ttft_ms"), ("E2E", "e2el_ms")):
                row |= {f"{what} {title} (s)": f"{of(f'{what}_{key}') / 1e3:.2f}" for what in ("mean", "p99")}
            row |= {"mean TPOT (ms)": f"{of('mean_tpot_ms'):.2f}", "p99 ITL (ms)": f"{of('p99_itl_ms'):.1f}"}
            row["preemptions"] = f"{of('preemptions'):.0f}"
            if arm != STOCK:
                for title, key in RATIOS.items():
                    row[f"{title} / stock's"] = ratio(runs, stock, key)
                pairs = [(run["digests"], stock[number]["digests"]) for number, run in runs.items()]
                same = mean(mine == theirs for pair in pairs for mine, theirs in zip(*pair, strict=True))
                bench.claim(f"{cell}: answers the same as stock's, {arm}", same, "share")
            rows.append(row)
    return rows


def overhead(kept: Kept) -> Rows:
    """Return the table of what the schedulers cost."""
    rows = []
    for cell, arm in product(CELLS, ARMS):
        if runs := list(kept.rounds(cell, arm).values()):
            rows.append(
                {
                    "cell": cell,
                    "arm": arm,
                    "steps a round": f"{mean(run['steps'] for run in runs):.0f}",
                    "time a step (ms)": f"{mean(1e3 * run['duration'] / run['steps'] for run in runs):.2f}",
                    "schedule (us)": f"{mean(run['schedule_us'] for run in runs):.0f}",
                    "update_from_output (us)": f"{mean(run['update_us'] for run in runs):.0f}",
                    "both, share of the time": f"{mean(run['scheduler_s'] / run['duration'] for run in runs):.1%}",
                }
            )
    return rows


def predicted(law: dict[str, Any], file: Path) -> npt.NDArray[np.float64]:
    """Return the times of the steps of a log under a law, s."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines()[1:]:
        step = json.loads(line)
        chunks = [tuple(chunk) for chunk in step["chunks"]]
        found.append(iteration_seconds(law, decodes=step["decodes"], decode_kv=step["decode_kv"], chunks=chunks))
    return np.array(found)


def laws(bench: Bench, kept: Kept, compared: dict[str, dict[str, Any]]) -> Rows:
    """Return the table of how well laws predict the steps that none was fitted to."""
    held_out = kept.folder / "steps-held-out.jsonl"
    steps = step_log.load([held_out])
    starts = calibration.starts_of(steps)  # a step with prefill may be taken together with the one before it
    took = np.add.reduceat(steps.seconds, starts)
    prefill = np.add.reduceat(steps.prefill_tokens, starts) > 0
    rows = []
    for name, law in compared.items():
        expected = np.add.reduceat(predicted(law, held_out), starts)
        row = {"law": name}
        for kind, part in (("decodes", ~prefill), ("prefill", prefill)):
            error = expected[part] / took[part] - 1
            row[f"{kind}: median error"] = f"{np.median(np.abs(error)):.1%}"
            row[f"{kind}: signed"] = f"{np.median(error):+.1%}"
            row[f"{kind}: sum"] = f"{expected[part].sum() / took[part].sum() - 1:+.1%}"
        rows.append(row | {"sum of all": f"{expected.sum() / took.sum() - 1:+.1%}"})
    bench.claim("steps that no law was fitted to", len(steps), "")
    bench.claim("those with prefill, of their time", float(took[prefill].sum() / took.sum()), "share")
    return rows


def simulated(kept: Kept, laws: dict[str, dict[str, Any]]) -> Rows:
    """Return the table of the arms, simulated with the same requests under each law, all just started.

    Preemptions are those under the first law.
    """
    engine = FIXED["engine"]
    settings: dict[str, Any] = {
        "kv_blocks": kept.of("about")[0]["usable blocks"],
        "block_size": engine["block_size"],
        "max_num_seqs": engine["max_num_seqs"],
        "token_budget": engine["max_num_batched_tokens"],
        "max_model_len": engine["max_model_len"],
        "iteration_time_knowledge": "hidden",
    }
    rows = []
    for cell, arm in product(CELLS, ARMS):
        runs = list(kept.rounds(cell, arm).values())
        if not runs:
            continue
        policy = {"policy": "adaptive", "lengths": "hidden"} if arm == OURS else {"policy": "vllm", **ARMS[arm]}
        served = [requests(cell, run) for run in runs]
        found = {
            name: [simulate(requests=each, iteration_time=law, **settings, **policy).summary() for each in served]
            for name, law in laws.items()
        }
        row = {"cell": cell, "arm": arm}
        for title, key, shown in (
            ("preemptions", "preemptions", [next(iter(laws))]),
            ("tok/s", "output_throughput", laws),
        ):
            row[f"{title}: engine"] = f"{mean(run[key] for run in runs):.0f}"
            row |= {f"{title}: {name}": f"{mean(each[key] for each in found[name]):.0f}" for name in shown}
        rows.append(row)
    return rows


def requests(cell: str, run: dict[str, Any]) -> Requests:
    """Return the requests of a round, as the simulator takes them."""
    count = len(run["digests"])
    prompt, output = np.array(drawn(CELLS[cell], run["number"], 1)[:count], np.uint32).T.copy()
    return Requests(name=cell, arrival_ns=np.zeros(count, np.uint64), prompt=prompt, output=output, rate=np.inf)


def report(bench: Bench, folder: Path, shipped: list[str]) -> None:
    """Fill the tables and the claims of the benchmark from what a folder keeps."""
    kept = Kept(folder)
    for about in kept.of("about"):
        bench.gpu = about["gpu"]
    ran = [{key: value for key, value in line.items() if key not in {"kind", "arm"}} for line in kept.of("about")]
    print(*dict.fromkeys(map(json.dumps, ran)), sep="\n", end="\n\n")
    bench.rows, bench.tables["overhead"] = side_by_side(bench, kept), overhead(kept)
    for cell in CELLS:
        same = [line["same"] for line in kept.of("alone", cell=cell)]
        for arm in same[0] if same else ():
            bench.claim(
                f"{cell}: one request at a time, all its tokens as stock's, {arm}",
                mean(each[arm] for each in same),
                "share",
            )
    if (folder / "steps-held-out.jsonl").exists():
        fitted = calibration.fit(step_log.load([folder / "steps-fitted.jsonl"]))
        bench.claim("steps that the law was fitted to", fitted.iterations, "")
        named = {Path(name).name.removesuffix(".json"): iteration_time(name) for name in shipped}
        compared = {"fitted": fitted.iteration_time} | named
        bench.tables["laws"] = laws(bench, kept, compared)
        bench.tables["simulated"] = simulated(kept, dict(list(compared.items())[:2]))
