"""What the parts of `adaptive` gain, what hints are worth, how well it predicts waits: on the panel's workloads.

Ablation: one part left out, relative to the whole, same arrivals: output throughput from capacity on, mean
latency below (geometric means over workloads and seeds), and preemptions. Hints: lengths hidden, labelled (one of two
classes), predicted with lognormal errors, known. Order: shortest expected first against first come first served. Wait:
the wait predicted at arrival against the actual one.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from contract import start
from pages import Row, markdown, shown
from panel_cells import FIXED, available, capacity, offered
from tqdm import tqdm

from wait_core import simulate
from wait_core.workload import Hints

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wait_core.workload import Requests

PARTS = ("token-budget", "pacing", "forgetting", "buffer", "horizons")
ERRORS = (0.0, 0.25, 0.5, 1.0, 2.0)
AGEING = (30.0, 300.0, 1e6)
RATIOS = ("output tok/s, load >= 1", "mean E2E, below", "mean E2E, load >= 1", "p99 E2E, load >= 1")
"""Of the tables: to `adaptive` as it is, geometric means over workloads and seeds."""
Figures = dict[str, float]
Job = tuple[str, float, float, int, str]


def labels(requests: Requests) -> Hints:
    """Label the shorter half of the outputs and the longer one."""
    return Hints(label=(requests.output > np.median(requests.output)).astype(np.uint16))


def variants() -> dict[str, tuple[dict[str, Any], Callable[[Requests], Hints] | None]]:
    """Return settings and hints of every run, by name."""
    made: dict[str, tuple[dict[str, Any], Callable[[Requests], Hints] | None]] = {"adaptive": ({}, None)}
    made |= {f"without {part}": ({"without": [part]}, None) for part in PARTS}
    made["labelled"] = ({}, labels)
    for error in ERRORS:
        made[f"predicted, error {error:g}"] = ({}, partial(Hints.predicting, log_error=error, seed=1))
    made["known"] = ({"lengths": "known"}, None)
    for ageing in AGEING:
        made[f"srpt, ageing {ageing:g} s"] = ({"order": "srpt", "ageing": ageing}, None)
        made[f"srpt known, ageing {ageing:g} s"] = ({"order": "srpt", "ageing": ageing, "lengths": "known"}, None)
    return made


def run(job: Job) -> tuple[Job, Figures]:
    """Simulate one variant on one cell and seed."""
    name, load, bound, seed, variant = job
    requests = offered(name, load * bound, seed)
    settings, hints = variants()[variant]
    report = simulate(
        "adaptive",
        requests=requests,
        hints=hints and hints(requests),
        seed=seed,
        kv_blocks=FIXED.kv_blocks,
        max_num_seqs=FIXED.max_num_seqs,
        **settings,
    )
    summary = report.summary()
    if summary["completed"] != len(requests):
        raise RuntimeError(f"{job}: {summary['completed']} of {len(requests)} requests finished")
    predicted = report.run.predicted_wait_ns * 1e-9
    waited = (report.run.admitted_ns - report.run.arrival_ns) * 1e-9
    long = waited > 1.0
    ratio = np.percentile(predicted[long] / waited[long], (10, 50, 90)) if long.sum() >= 100 else np.full(3, math.nan)
    figures = {key: float(summary[key]) for key in ("output_throughput", "mean_e2el_ms", "p99_e2el_ms", "preemptions")}
    return job, figures | dict(zip(("p10", "p50", "p90"), map(float, ratio), strict=True))


class Runs:
    """All runs, and their ratios to a baseline."""

    def __init__(self, done: dict[Job, Figures]) -> None:
        self.done = done

    def ratio(self, variant: str, key: str, loads: tuple[float, ...]) -> tuple[float, float, str]:
        """Geometric mean over the cells and seeds, and the worst workload's with its name."""
        by_name: dict[str, list[float]] = {}
        for (name, load, bound, seed, other), figures in self.done.items():
            if other == variant and load in loads:
                whole = self.done[name, load, bound, seed, "adaptive"]
                by_name.setdefault(name, []).append(math.log(figures[key] / whole[key]))
        means = {name: float(np.mean(logs)) for name, logs in by_name.items()}
        sign = -1.0 if key == "output_throughput" else 1.0
        worst = max(means, key=lambda name: sign * means[name])
        return math.exp(float(np.mean(list(means.values())))), math.exp(means[worst]), worst

    def total(self, variant: str, key: str) -> float:
        """Sum over all runs of a variant."""
        return sum(figures[key] for job, figures in self.done.items() if job[4] == variant)


def compared(runs: Runs, loads: tuple[float, ...]) -> list[dict[str, Any]]:
    """Return a row for each variant: ratios to `adaptive`, the worst workload's, and preemptions."""
    below, above = tuple(load for load in loads if load < 1.0), tuple(load for load in loads if load >= 1.0)
    figures = dict(zip(RATIOS, (("output_throughput", above), ("mean_e2el_ms", below), ("mean_e2el_ms", above),
                                ("p99_e2el_ms", above)), strict=True))  # fmt: skip
    rows = []
    for variant in variants():
        row: dict[str, Any] = {"variant": variant}
        for title, (key, chosen) in figures.items():
            mean, worst, where = runs.ratio(variant, key, chosen)
            row |= {title: mean, f"{title}: worst": worst, f"{title}: workload": where}
        rows.append(row | {"preemptions": round(runs.total(variant, "preemptions"))})
    return rows


def _table(rows: Sequence[Row], *prefixes: str) -> str:
    """Return the table of variants whose names begin so: ratios, the worst workload's in brackets."""
    whole = next(row for row in rows if row["variant"] == "adaptive")
    lines = []
    for row in rows:
        if row["variant"].startswith(prefixes):
            ratios = [
                f"{float(row[title]):.3f} ({float(row[f'{title}: worst']):.3f} {row[f'{title}: workload']})"
                for title in RATIOS
            ]
            lines.append([row["variant"], *ratios, shown(row["preemptions"])])
    return markdown([f"whole: {shown(whole['preemptions'])} preemptions", *RATIOS, "preemptions"], lines)


def parts(rows: Sequence[Row]) -> str:
    """Return the table of docs/adaptive.md: one part left out."""
    return _table(rows, "without")


def hints(rows: Sequence[Row]) -> str:
    """Return the table of docs/adaptive.md: what is known of the lengths."""
    return _table(rows, "labelled", "predicted", "known")


def order(rows: Sequence[Row]) -> str:
    """Return the table of docs/adaptive.md: the shortest expected work first."""
    return _table(rows, "srpt")


def waits(runs: Runs) -> list[dict[str, str]]:
    """Return a row for each workload and load: the ratio of the predicted to the true wait."""
    cells: dict[tuple[str, float], list[Figures]] = {}
    for (name, load, _, _, variant), figures in runs.done.items():
        if variant == "adaptive" and not math.isnan(figures["p50"]):
            cells.setdefault((name, load), []).append(figures)
    columns = {"p10": "p10", "median": "p50", "p90": "p90"}
    return [
        {"workload": name, "load": f"{load:g}"}
        | {title: f"{np.mean([each[key] for each in found]):.2f}" for title, key in columns.items()}
        for (name, load), found in sorted(cells.items())
    ]


def main() -> None:
    """Make the runs, print the tables and the claims."""
    bench = start(
        "adaptive",
        str(__doc__).splitlines()[0],
        processes={"type": int, "default": os.cpu_count() or 1, "help": "(%(default)s)"},
    )
    names = available()
    loads: tuple[float, ...] = (0.9, 1.2, 2.0)
    seeds = FIXED.seeds["compare"][:3]
    if bench.options.quick:
        names, loads, seeds = ["chat", "lognormal-870", "p512d1000"], (0.9, 1.2), seeds[:1]
    bounds = {name: capacity(name) for name in names}
    jobs = [
        (name, load, bounds[name], seed, variant)
        for name in names
        for load in loads
        for seed in seeds
        for variant in variants()
    ]
    with multiprocessing.Pool(bench.options.processes) as pool:
        progress = tqdm(pool.imap_unordered(run, jobs, 4), total=len(jobs), disable=not sys.stderr.isatty())
        runs = Runs(dict(progress))
    overload = tuple(load for load in loads if load >= 1.0)
    for part in PARTS:
        bench.claim(
            f"throughput without {part} / whole", runs.ratio(f"without {part}", "output_throughput", overload)[0], ""
        )
    worth = {error: runs.ratio(f"predicted, error {error:g}", "output_throughput", overload)[0] for error in ERRORS}
    bench.claim("throughput with exact predictions / hidden lengths", worth[0.0], "", ">= 1")
    bench.claim("throughput with useless predictions / hidden lengths", worth[2.0], "", ">= 0.99")
    srpt = runs.ratio("srpt known, ageing 1e+06 s", "mean_e2el_ms", overload)[0]
    bench.claim("mean latency in overload, shortest first with known lengths / FCFS", srpt, "", "<= 0.8")
    rows = waits(runs)
    medians = [float(row["median"]) for row in rows if float(row["load"]) >= 1.0]
    bench.claim("smallest median of predicted / true wait in overload", min(medians), "", ">= 0.7")
    bench.claim("largest median of predicted / true wait in overload", max(medians), "", "<= 1.4")
    bench.tables |= {"variants": compared(runs, loads), "waits": rows}
    bench.finish()


if __name__ == "__main__":
    main()
