"""The panel: every engine x workload x load x policy, simulated, and the claims about `adaptive` there.

`panel_cells` has the cells and how one is judged; those with a prefix cache are in bench/conversations.py. `adaptive`
is judged with one default and no setting of a cell; beside it stand the same with lengths known and, at load 1 and
above on the first engine, the same with the SLO's TTFT stated (`ttft_target`). A star marks what was never used for
tuning. `--markdown` prints the tables of docs/panel.md, `--data` writes every cell to docs/data/panel.csv.
"""

from __future__ import annotations

import os
import statistics
import sys
from typing import TYPE_CHECKING

from contract import ROOT, TRACES, Claim, markdown, start
from panel_cells import FIXED, GOALS, MAIN, SHOWN, Cell, Panel, available, jobs_of, judge, stock

from wait_core.report.plot_style import LIMIT, new_figure, styles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ENGINES = [name for name, engine in FIXED.engines.items() if not engine.prefix_caching]


def judged(row: Mapping[str, str], figure: str) -> Claim:
    """Return a ratio of a cell as a claim."""
    ratio, _, half = row[figure].partition("+-")
    cell = f"{row['engine']}: {row['workload']}, load {float(row['load']):g}"
    return Claim(cell, float(ratio), f"+-{float(half or 0):.3f}", GOALS[figure])


def goals(rows: Sequence[Mapping[str, str]]) -> str:
    """Return how many cells hold each goal."""
    held = {figure: sum(judged(row, figure).holds is True for row in rows) for figure in GOALS}
    lines = [[figure, goal, f"{held[figure]} of {len(rows)}"] for figure, goal in GOALS.items()]
    return markdown(["figure", "goal", "holds"], lines)


def engines(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a row an engine: geometric means of the ratios over its cells, and the best static pairs' budgets."""
    keys = [f"{key} / stock" for key in ("output_throughput", "mean_e2el_ms", "p99_ttft_ms")]
    keys += [f"{key} / best static" for key in ("output_throughput", "mean_e2el_ms")]
    lines: list[list[object]] = []
    for name in dict.fromkeys(row["engine"] for row in rows):
        cells = [row for row in rows if row["engine"] == name]
        means = [f"{statistics.geometric_mean(judged(cell, key).value for cell in cells):.3f}" for key in keys]
        budgets = sorted({int(cell["least E2E"].rpartition("/")[2]) for cell in cells})
        lines.append([name, len(cells), *means, ", ".join(map(str, budgets))])
    return markdown(["engine", "cells", *keys, "budgets of the best static pairs"], lines)


def missed(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the cells that miss a goal, goal by goal."""
    claims = [(figure, judged(row, figure)) for figure in GOALS for row in rows]
    lines = [[figure, it.name, f"{it.value:.3f} {it.unit}", it.goal] for figure, it in claims if not it.holds]
    return markdown(["figure", "engine: workload, load", "measured", "goal"], lines)


def draw(made: Panel, cells: list[Cell], compare: tuple[int, ...]) -> None:
    """Draw docs/figures/panel-*.png: policies relative to stock on the first engine, cell by cell."""
    cells = [cell for cell in cells if cell.engine == MAIN.name]
    names = list(dict.fromkeys(cell.workload for cell in cells))
    loads = sorted({cell.load for cell in cells})
    policies = [*SHOWN, "adaptive"]
    looks = styles(policies)
    figures = {"output_throughput": "output throughput", "mean_e2el_ms": "mean end-to-end latency"}
    for key, label in figures.items():
        file = ROOT / "docs" / "figures" / f"panel-{key.replace('_', '-')}.png"
        with new_figure(file, (9.5, 2.0 * len(loads))) as figure:
            for axis, load in zip(figure.subplots(len(loads), 1, sharex=True, squeeze=False)[:, 0], loads, strict=True):
                for i, policy in enumerate(policies):
                    colour, _, marker = looks[policy]
                    ratios = [
                        made.mean(cell, policy, key, compare) / made.mean(cell, stock(MAIN), key, compare)
                        for cell in (Cell(MAIN.name, name, load) for name in names)
                    ]
                    at = [x + 0.1 * (i - (len(policies) - 1) / 2) for x in range(len(names))]
                    axis.plot(at, ratios, color=colour, marker=marker, markersize=4.5, linestyle="", label=policy)
                axis.axhline(1.0, color=LIMIT, linewidth=1.2)
                axis.set_title(f"load {load:g}")
                if key == "mean_e2el_ms":
                    axis.set_yscale("log")
                    axis.set_yticks(ticks := [0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0], [f"{tick:g}" for tick in ticks])
                    axis.minorticks_off()
                    axis.set_ylim(0.25, 3.5)
                axis.set_xticks(range(len(names)), names, rotation=25, ha="right")
            figure.supylabel(f"{label} / stock vLLM's", fontsize=10)
            handles, labels = axis.get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper center", ncols=len(policies), fontsize=8)


def main() -> None:
    """Make the runs, print the table and the claims."""
    bench = start(
        "panel",
        str(__doc__).splitlines()[0],
        engines={"nargs": "+", "default": ENGINES, "choices": ENGINES, "help": "(all)"},
        workloads={"nargs": "+", "default": list(FIXED.workloads), "help": "(all)"},
        processes={"type": int, "default": os.cpu_count() or 1, "help": "(%(default)s)"},
        figures={"action": "store_true", "help": "draw docs/figures/panel-*.png"},
    )
    choose, compare, loads = FIXED.seeds["choose"][:3], FIXED.seeds["compare"], FIXED.loads
    names = set(bench.options.workloads)
    if bench.options.quick:
        choose, compare, loads = choose[:1], compare[:2], (0.9, 1.2)
        names &= {"chat", "lognormal-870", "p512d1000", "two-kinds", "lognormal-short"}
    chosen = [FIXED.engines[name] for name in bench.options.engines]
    if missing := sorted(
        {name for on in chosen for name in on.workloads} & names - {n for e in chosen for n in available(e)}
    ):
        print(f"skipped, their traces are not in {TRACES} (set WAIT_CORE_TRACES): {', '.join(missing)}")
    cells = [
        Cell(on.name, name, load)
        for on in chosen
        for name in available(on)
        if name in names
        for load in (on.loads or loads)
    ]
    made = Panel()
    made.complete(jobs_of(cells, choose, compare), bench.options.processes)
    for cell in cells:
        judge(bench, made, cell, choose, compare)
    if bench.options.figures:
        draw(made, cells, compare)
    bench.finish()
    print(goals(bench.rows), file=sys.stderr)


if __name__ == "__main__":
    main()
