"""The tables of bench/vllm_gpu.py, from the folder in which it keeps what was measured."""

from __future__ import annotations

import json
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
from contract import interval, markdown

from wait_core._core import iteration_seconds
from wait_core.hardware import calibration
from wait_core.hardware.iteration_time import iteration_time
from wait_core.logs import step_log

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

STOCK = "stock"


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


def side_by_side(kept: Kept, cells: list[str], arms: list[str]) -> str:
    """Return the table of the arms."""
    rows = []
    for cell in cells:
        stock = kept.rounds(cell, STOCK)
        for arm in arms:
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


def overhead(kept: Kept, cells: list[str], arms: list[str]) -> str:
    """Return the table of what the schedulers cost."""
    rows = []
    for cell in cells:
        for arm in arms:
            if runs := list(kept.rounds(cell, arm).values()):
                step_ms = mean(1e3 * run["duration"] / run["steps"] for run in runs)
                costs = [f"{mean(run[key] for run in runs):.0f}" for key in ("schedule_us", "update_us")]
                share = mean(run["scheduler_s"] / run["duration"] for run in runs)
                rows.append([cell, arm, f"{mean(run['steps'] for run in runs):,.0f}", f"{step_ms:.2f}", *costs])
                rows[-1].append(f"{share:.1%}")
    header = ["cell", "arm", "steps a round", "time a step (ms)", "schedule (us)", "update_from_output (us)"]
    return markdown([*header, "both, share of the time"], rows)


def errors(law: dict[str, Any], file: Path) -> npt.NDArray[np.float64]:
    """Return the relative errors of a law on the steps of a log."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines()[1:]:
        step = json.loads(line)
        chunks = [tuple(chunk) for chunk in step["chunks"]]
        told = iteration_seconds(law, decodes=step["decodes"], decode_kv=step["decode_kv"], chunks=chunks)
        found.append(told / (step["ns"] * 1e-9) - 1.0)
    return np.array(found)


def laws(kept: Kept, shipped: list[str]) -> str:
    """Return the table of the laws: one fitted to half of the steps, and those shipped, on the other half."""
    fitted = calibration.fit(step_log.load([kept.folder / "steps-fitted.jsonl"]))
    rows = []
    held_out = kept.folder / "steps-held-out.jsonl"
    seconds = step_log.load([held_out]).seconds
    for name, law in {
        "fitted to other requests": fitted.law,
        **{name: iteration_time(name) for name in shipped},
    }.items():
        error = errors(law, held_out)
        size = np.abs(error)
        total = float(((1 + error) * seconds).sum() / seconds.sum()) - 1
        row = [name, f"{len(error):,}", f"{np.median(size):.1%}", f"{np.quantile(size, 0.9):.1%}"]
        rows.append([*row, f"{np.median(error):+.1%}", f"{total:+.1%}"])
    return markdown(["law", "steps", "median error", "90 % below", "median, signed", "sum of times"], rows)


def report(folder: Path, cells: list[str], arms: list[str], shipped: list[str]) -> str:
    """Return the tables."""
    kept = Kept(folder)
    ran = [{key: value for key, value in line.items() if key not in {"kind", "arm"}} for line in kept.of("about")]
    parts = list(dict.fromkeys(map(json.dumps, ran)))
    if kept.of("run"):
        parts += [side_by_side(kept, cells, arms), overhead(kept, cells, arms)]
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
        parts.append(laws(kept, shipped))
    return "\n\n".join(parts)
