"""What the parts of `adaptive` gain, what hints are worth, how well it predicts waits: on the panel's workloads.

Four tables. Ablation: one part left out, relative to the whole, same arrivals: output throughput from capacity on, mean
latency below (geometric means over workloads and seeds), and preemptions. Hints: lengths hidden, labelled (one of two
classes), predicted with lognormal errors, known. Order: shortest expected first against first come first served. Wait:
the wait predicted at arrival against the actual one. `--markdown` prints the tables of docs/adaptive.md, `--figures`
draws docs/figures/predicted-lengths.png.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from contract import ROOT, markdown, start
from panel_cells import FIXED, available, capacity, offered
from tqdm import tqdm

from wait_core import simulate
from wait_core.report.plot_style import new_figure, styles
from wait_core.workload import Hints

if TYPE_CHECKING:
    from collections.abc import Callable

    from wait_core.workload import Requests

PARTS = ("token-budget", "pacing", "forgetting", "buffer", "horizons")
ERRORS = (0.0, 0.25, 0.5, 1.0, 2.0)
AGEING = (30.0, 300.0, 1e6)
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


def compared(runs: Runs, names: list[str], loads: tuple[float, ...], keys: tuple[str, ...]) -> list[list[str]]:
    """Rows of a table: one variant each, relative to `adaptive`."""
    below, above = tuple(load for load in loads if load < 1.0), tuple(load for load in loads if load >= 1.0)
    rows = []
    for variant in names:
        row = [variant]
        for key in keys:
            mean, worst, where = runs.ratio(variant, key, above if key == "output_throughput" else below)
            row.append(f"{mean:.3f} ({worst:.3f} {where})")
        for key in ("mean_e2el_ms", "p99_e2el_ms"):
            mean, worst, where = runs.ratio(variant, key, above)
            row.append(f"{mean:.3f} ({worst:.3f} {where})")
        rows.append([*row, f"{runs.total(variant, 'preemptions'):,.0f}"])
    return rows


def waits(runs: Runs) -> list[list[str]]:
    """Rows of the table of waits: the ratio of the predicted to the true one, by workload and load."""
    cells: dict[tuple[str, float], list[Figures]] = {}
    for (name, load, _, _, variant), figures in runs.done.items():
        if variant == "adaptive" and not math.isnan(figures["p50"]):
            cells.setdefault((name, load), []).append(figures)
    return [
        [name, f"{load:g}", *(f"{np.mean([each[key] for each in found]):.2f}" for key in ("p10", "p50", "p90"))]
        for (name, load), found in sorted(cells.items())
    ]


def draw(runs: Runs, loads: tuple[float, ...]) -> None:
    """Draw what predictions are worth as their error grows."""
    above = tuple(load for load in loads if load >= 1.0)
    colour, _, marker = styles(["adaptive"])["adaptive"]
    with new_figure(ROOT / "docs" / "figures" / "predicted-lengths.png", (8.6, 3.4)) as figure:
        panels = zip(figure.subplots(1, 2), ("output_throughput", "mean_e2el_ms"), strict=True)
        for axis, key in panels:
            values = [runs.ratio(f"predicted, error {error:g}", key, above)[0] for error in ERRORS]
            axis.plot(ERRORS, values, color=colour, marker=marker, label="predicted")
            axis.axhline(runs.ratio("known", key, above)[0], color="#000000", linestyle="--", label="known")
            axis.axhline(1.0, color="#8a8a8a", label="hidden")
            axis.set_xlabel("error of the prediction (deviation of its logarithm)")
            axis.set_ylabel(f"{'output throughput' if key == 'output_throughput' else 'mean latency'} / hidden")
        axis.legend(fontsize=9)


def main() -> None:
    """Make the runs, print the tables and the claims."""
    bench = start(
        "adaptive",
        str(__doc__).splitlines()[0],
        processes={"type": int, "default": os.cpu_count() or 1, "help": "(%(default)s)"},
        markdown={"action": "store_true", "help": "print the tables of docs/adaptive.md as well"},
        figures={"action": "store_true", "help": "draw docs/figures/predicted-lengths.png"},
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
    medians = [float(row[3]) for row in rows if float(row[1]) >= 1.0]
    bench.claim("smallest median of predicted / true wait in overload", min(medians), "", ">= 0.7")
    bench.claim("largest median of predicted / true wait in overload", max(medians), "", "<= 1.4")
    if bench.options.figures:
        draw(runs, loads)
    if bench.options.markdown:
        header = [
            "",
            "output tok/s, load >= 1",
            "mean E2E, below",
            "mean E2E, load >= 1",
            "p99 E2E, load >= 1",
            "preemptions",
        ]
        keys = ("output_throughput", "mean_e2el_ms")
        whole = f"whole: {runs.total('adaptive', 'preemptions'):,.0f} preemptions"
        groups = {"Ablation": ("without",), "Hints": ("labelled", "predicted", "known"), "Order": ("srpt",)}
        for title, prefix in groups.items():
            chosen = [variant for variant in variants() if variant.startswith(prefix)]
            print(f"## {title}\n\n{markdown([whole, *header[1:]], compared(runs, chosen, loads, keys))}\n")
        print(f"## Predicted waits\n\n{markdown(['workload', 'load', 'p10', 'median', 'p90'], rows)}\n")
    bench.finish()


if __name__ == "__main__":
    main()
