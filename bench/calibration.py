"""How well `adaptive` knows what its residents will hold: overflows predicted and observed, peaks, and after a shift.

A decision's residents are replayed at their true lengths with no later admissions
(`wait_core.simulation.probe`). Decisions count where memory binds: the next request is held because the forecast leaves
no room for it. The panel's workloads and seeds, on two sizes of the A100: 80 GB, where memory binds for long outputs,
and 40 GB. `--figures` draws docs/figures/calibration.png.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from contract import ROOT, start
from pages import Row, markdown, shown
from panel_cells import FIXED, available, offered
from tqdm import tqdm

from wait_core.planning import plan
from wait_core.report.plot_style import LIMIT, new_figure, styles
from wait_core.simulation import Forecasts, probe

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCKS = {"80 GB": FIXED.kv_blocks, "40 GB": 2816}
LOADS = (0.9, 1.0, 1.2, 2.0)
SHOWN = (24, 96, 384, 1536, 6144)
"""Horizons of the table, iterations."""
ENOUGH = 100.0
"""Events that must be expected for a ratio to be judged."""
SHIFTED = 2000
"""Completions at which the requests of `shift` have changed (half of the panel's 4,000)."""
AFTER = (0, 50, 100, 200, 400, 800, 2000)
"""Completions after the shift, at which its table is cut."""
AHEAD = 256
"""Horizon at which the forecast is judged after a shift, iterations."""
Job = tuple[str, str, float, int]


def look(job: Job) -> tuple[Job, Forecasts]:
    """Probe one cell and seed."""
    name, size, load, seed = job
    blocks = BLOCKS[size]
    ones = offered(name, 1.0, FIXED.seeds["choose"][0])
    bound = plan(requests=ones, kv_blocks=blocks, max_num_seqs=FIXED.max_num_seqs).bound.request_rate
    requests = offered(name, load * bound, seed)
    return job, probe(requests, every=64, kv_blocks=blocks, max_num_seqs=FIXED.max_num_seqs)


def overflows(found: list[Forecasts]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int]:
    """Sum overflows, predicted and observed, by horizon over the decisions at which memory binds; count these."""
    predicted = np.sum([each.overflow[each.held].sum(axis=0) for each in found], axis=0)
    observed = np.sum([each.overflowed[each.held].sum(axis=0) for each in found], axis=0)
    return predicted, observed, sum(int(each.held.sum()) for each in found)


def overflow(rows: Sequence[Row]) -> str:
    """Return the table of docs/adaptive.md: decisions that overflowed, as a share, and predicted."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if int(row["iterations"]) in SHOWN:
            count, expected = int(row["decisions"]), float(row["predicted"])
            judged = "" if expected >= ENOUGH else " *"
            cell = f"{int(row['observed']) / count:.3f} / {expected / count:.3f}{judged}"
            lines.setdefault((row["workload"], row["A100"], shown(row["decisions"])), []).append(cell)
    header = ["workload", "A100", "decisions", *(f"{horizon:,} iterations" for horizon in SHOWN)]
    return markdown(header, [[*name, *cells] for name, cells in lines.items()])


def after_shift(found: list[Forecasts]) -> list[tuple[str, int, float, float]]:
    """KV forecast / truth some hundred iterations ahead, by completions since the shift: median and median error."""
    at = int(np.flatnonzero(found[0].horizon == AHEAD)[0])
    ratio = np.concatenate([each.mean[:, at] / np.maximum(each.truth[:, at], 1) for each in found])
    since = np.concatenate([each.completed.astype(np.int64) - SHIFTED for each in found])
    # Fewer residents than these say little about an estimator.
    many = np.concatenate([each.residents for each in found]) >= 20
    rows = []
    for first, last in [(-500, 0), *pairwise(AFTER)]:
        inside = ratio[many & (since >= first) & (since < last)]
        if len(inside):
            error = float(np.median(np.abs(inside - 1.0)))
            rows.append((f"{first} to {last}", len(inside), float(np.median(inside)), error))
    return rows


def draw(points: dict[str, list[tuple[float, float]]]) -> None:
    """Draw docs/figures/calibration.png: observed against predicted frequency, a point a horizon."""
    looks = styles(["vllm", "wait", "nested-wait", "sarathi", "clairvoyant", "adaptive", "prefill-first"])
    with new_figure(ROOT / "docs" / "figures" / "calibration.png", (6.4, 5.0)) as figure:
        axis = figure.subplots()
        for i, (label, pairs) in enumerate(points.items()):
            colour, _, marker = list(looks.values())[i % len(looks)]
            predicted, observed = zip(*pairs, strict=True)
            hollow = "none" if i >= len(looks) else colour
            axis.loglog(
                predicted, observed, color=colour, marker=marker, markerfacecolor=hollow, linestyle="", label=label
            )
        line = np.array([0.005, 0.6])
        axis.loglog(line, line, color=LIMIT, label="as predicted")
        axis.loglog(line, 2 * line, color=LIMIT, linestyle="--", label="twice, a tenth")
        axis.loglog(line, line / 10, color=LIMIT, linestyle="--")
        axis.set_xlabel("predicted probability of an overflow up to a horizon")
        axis.set_ylabel("observed frequency")
        axis.legend(fontsize=8, ncols=2)


def main() -> None:
    """Probe the panel, print the tables and the claims."""
    bench = start(
        "calibration",
        str(__doc__).splitlines()[0],
        processes={"type": int, "default": os.cpu_count() or 1, "help": "(%(default)s)"},
        figures={"action": "store_true", "help": "draw docs/figures/calibration.png"},
    )
    names = available()
    seeds = FIXED.seeds["compare"]
    if bench.options.quick:
        names, seeds = ["chat", "reasoning-2700", "shift"], seeds[:2]
    jobs = [(name, size, load, seed) for name in names for size in BLOCKS for load in LOADS for seed in seeds]
    with multiprocessing.Pool(bench.options.processes) as pool:
        progress = tqdm(pool.imap_unordered(look, jobs, 2), total=len(jobs), disable=not sys.stderr.isatty())
        done = dict(sorted(progress))
    by_horizon: list[dict[str, Any]] = []
    peaks: list[dict[str, Any]] = []
    ratios: dict[tuple[str, str, int], float] = {}
    points: dict[str, list[tuple[float, float]]] = {}
    for name in names:
        for size in BLOCKS:
            found = [each for job, each in done.items() if job[:2] == (name, size)]
            predicted, observed, decisions = overflows(found)
            if not decisions:
                continue
            for horizon, expected, seen in zip(found[0].horizon, predicted, observed, strict=True):
                if expected >= ENOUGH:
                    ratios[name, size, int(horizon)] = seen / expected
                    if seen:
                        points.setdefault(f"{name}, {size}", []).append((expected / decisions, seen / decisions))
                cell = {"workload": name, "A100": size, "decisions": decisions, "iterations": int(horizon)}
                by_horizon.append(cell | {"observed": int(seen), "predicted": float(expected)})
            ratio = np.concatenate([each.peak_ratio[each.held] for each in found])
            quantiles = np.percentile(ratio, (5, 25, 50, 75, 95))
            ends = zip(("5 %", "25 %", "median", "75 %", "95 %"), quantiles, strict=True)
            peaks.append({"workload": name, "A100": size} | {title: f"{each:.3f}" for title, each in ends})
    bench.claim("largest overflows observed / predicted", max(ratios.values()), "", "<= 2")
    low = [cell for cell, ratio in ratios.items() if ratio < 0.1]
    bench.claim("horizons with fewer than a tenth of those predicted", len(low), f"of {len(ratios)}", "<= 0")
    for name, size in dict.fromkeys(cell[:2] for cell in low):
        horizons = [cell[2] for cell in low if cell[:2] == (name, size)]
        bench.claim(f"{name}, {size}: such horizons", len(horizons), f"{min(horizons)} to {max(horizons)} iterations")
    shifts = after_shift([each for job, each in done.items() if job[:2] == ("shift", "80 GB")])
    span, _, _, error = next((row for row in shifts[1:] if row[3] <= 0.1), shifts[-1])
    bench.claim(
        f"shift: median error of the KV forecast in the first {AFTER[1]} completions after it", shifts[1][3], ""
    )
    bench.claim(f"shift: the same, {span} completions after it", error, "", "<= 0.1")
    if bench.options.figures:
        draw(points)
    columns = ("completions since the shift", "probes", "forecast / truth", "error")
    bench.tables |= {
        "overflows": by_horizon,
        "peaks": peaks,
        "shift": [
            dict(zip(columns, (span, count, f"{middle:.2f}", f"{error:.2f}"), strict=True))
            for span, count, middle, error in shifts
        ],
    }
    bench.finish()


if __name__ == "__main__":
    main()
