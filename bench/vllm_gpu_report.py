"""The tables of bench/vllm_gpu.py, from the folder in which it keeps what was measured."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
from contract import interval, markdown
from vllm_gpu_cells import ARMS, CELLS, FIXED, OURS, STOCK, drawn

from wait_core import simulate
from wait_core._core import iteration_seconds
from wait_core.hardware import calibration
from wait_core.hardware.iteration_time import iteration_time
from wait_core.logs import step_log
from wait_core.workload import Requests

if TYPE_CHECKING:
    import numpy.typing as npt


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
    return f"{found:.3f} +-{half:.3f}"


def side_by_side(kept: Kept) -> str:
    """Return the table of the arms."""
    rows = []
    for cell in CELLS:
        stock = kept.rounds(cell, STOCK)
        for arm in ARMS:
            runs = kept.rounds(cell, arm)
            if not runs:
                continue

            def of(key: str, runs: dict[int, dict[str, Any]] = runs) -> float:
                return mean(float(run[key]) for run in runs.values())

            pairs = [(run["digests"], stock[number]["digests"]) for number, run in runs.items()]
            same = mean(mine == theirs for pair in pairs for mine, theirs in zip(*pair, strict=True))
            row = [cell, arm, len(runs), f"{of('output_throughput'):,.0f}"]
            row += [f"{of(key) / 1e3:.2f}" for key in ("mean_ttft_ms", "p99_ttft_ms", "mean_e2el_ms", "p99_e2el_ms")]
            row += [f"{of('mean_tpot_ms'):.2f}", f"{of('p99_itl_ms'):.1f}", f"{of('preemptions'):,.0f}"]
            ratios = [ratio(runs, stock, key) for key in ("output_throughput", "mean_ttft_ms", "mean_e2el_ms")]
            rows.append([*row, *(ratios if arm != STOCK else [""] * 3), f"{same:.1%}"])
    header = ["cell", "arm", "rounds", "tok/s", "mean TTFT (s)", "p99 TTFT (s)", "mean E2E (s)", "p99 E2E (s)"]
    header += ["mean TPOT (ms)", "p99 ITL (ms)", "preemptions", "tok/s / stock's", "TTFT / stock's", "E2E / stock's"]
    return markdown([*header, "same tokens as stock's"], rows)


def overhead(kept: Kept) -> str:
    """Return the table of what the schedulers cost."""
    rows = []
    for cell in CELLS:
        for arm in ARMS:
            if runs := list(kept.rounds(cell, arm).values()):
                step_ms = mean(1e3 * run["duration"] / run["steps"] for run in runs)
                costs = [f"{mean(run[key] for run in runs):.0f}" for key in ("schedule_us", "update_us")]
                share = mean(run["scheduler_s"] / run["duration"] for run in runs)
                rows.append([cell, arm, f"{mean(run['steps'] for run in runs):,.0f}", f"{step_ms:.2f}", *costs])
                rows[-1].append(f"{share:.1%}")
    header = ["cell", "arm", "steps a round", "time a step (ms)", "schedule (us)", "update_from_output (us)"]
    return markdown([*header, "both, share of the time"], rows)


def predicted(law: dict[str, Any], file: Path) -> npt.NDArray[np.float64]:
    """Return the times of the steps of a log under a law, s."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines()[1:]:
        step = json.loads(line)
        chunks = [tuple(chunk) for chunk in step["chunks"]]
        found.append(iteration_seconds(law, decodes=step["decodes"], decode_kv=step["decode_kv"], chunks=chunks))
    return np.array(found)


def laws(kept: Kept, compared: dict[str, dict[str, Any]]) -> str:
    """Return the table of how well laws predict the steps that none was fitted to."""
    held_out = kept.folder / "steps-held-out.jsonl"
    steps = step_log.load([held_out])
    starts = calibration.starts_of(steps)  # a step with prefill may be taken together with the one before it
    took = np.add.reduceat(steps.seconds, starts)
    prefill = np.add.reduceat(steps.prefill_tokens, starts) > 0
    rows = []
    for name, law in compared.items():
        expected = np.add.reduceat(predicted(law, held_out), starts)
        row = [name]
        for part in (~prefill, prefill):
            error = expected[part] / took[part] - 1
            row += [f"{np.median(np.abs(error)):.1%}", f"{np.median(error):+.1%}"]
            row.append(f"{expected[part].sum() / took[part].sum() - 1:+.1%}")
        rows.append([*row, f"{expected.sum() / took.sum() - 1:+.1%}"])
    header = ["law"]
    header += [f"{kind}: {what}" for kind in ("decodes", "prefill") for what in ("median error", "signed", "sum")]
    share = f"{took[prefill].sum() / took.sum():.0%}"
    text = f"{len(steps):,} steps that the law was not fitted to; those with prefill took {share} of the time:"
    return f"{text}\n\n{markdown([*header, 'sum of all'], rows)}"


def simulated(kept: Kept, laws: dict[str, dict[str, Any]]) -> str:
    """Return the table of the arms, simulated with the same requests under each law, all just started."""
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
        runs = kept.rounds(cell, arm)
        if not runs:
            continue
        row = [cell, arm, f"{mean(run['preemptions'] for run in runs.values()):,.0f}"]
        row.append(f"{mean(run['output_throughput'] for run in runs.values()):,.0f}")
        policy = {"policy": "adaptive", "lengths": "hidden"} if arm == OURS else {"policy": "vllm", **ARMS[arm]}
        for i, law in enumerate(laws.values()):
            served = [requests(cell, run) for run in runs.values()]
            figures = [simulate(requests=each, iteration_time=law, **settings, **policy).summary() for each in served]
            if i == 0:
                row.insert(3, f"{mean(each['preemptions'] for each in figures):,.0f}")
            row.append(f"{mean(each['output_throughput'] for each in figures):,.0f}")
        rows.append(row)
    header = ["cell", "arm", "preemptions", "simulated", "tok/s", *(f"simulated: {name}" for name in laws)]
    return markdown(header, rows)


def requests(cell: str, run: dict[str, Any]) -> Requests:
    """Return the requests of a round, as the simulator takes them."""
    count = len(run["digests"])
    prompt, output = np.array(drawn(CELLS[cell], run["number"], 1)[:count], np.uint32).T.copy()
    return Requests(name=cell, arrival_ns=np.zeros(count, np.uint64), prompt=prompt, output=output, rate=np.inf)


def report(folder: Path, shipped: list[str]) -> str:
    """Return the tables."""
    kept = Kept(folder)
    ran = [{key: value for key, value in line.items() if key not in {"kind", "arm"}} for line in kept.of("about")]
    parts = list(dict.fromkeys(map(json.dumps, ran)))
    if kept.of("run"):
        parts += [side_by_side(kept), overhead(kept)]
    alone = [[line["cell"], *line["same"].values()] for line in kept.of("alone")]
    if alone:
        parts.append("One request at a time, all its tokens as stock's:")
        names = list(kept.of("alone")[0]["same"])
        rows = []
        for cell in dict.fromkeys(row[0] for row in alone):
            answers = [row[1:] for row in alone if row[0] == cell]
            rows.append([cell, *(f"{sum(column)} of {len(column)}" for column in zip(*answers, strict=True))])
        parts.append(markdown(["cell", *names], rows))
    if (folder / "steps-held-out.jsonl").exists():
        fitted = calibration.fit(step_log.load([folder / "steps-fitted.jsonl"])).iteration_time
        named = {Path(name).name.removesuffix(".json"): iteration_time(name) for name in shipped}
        parts.append(laws(kept, {"fitted": fitted} | named))
        parts.append(simulated(kept, {"fitted": fitted} | named))
    return "\n\n".join(parts)
