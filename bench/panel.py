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

from contract import ROOT, TRACES, Bench, markdown, start
from panel_cells import FIXED, MAIN, SHOWN, Cell, Panel, available, jobs_of, judge, stock

from wait_core.report import table
from wait_core.report.plot_style import LIMIT, new_figure, styles

ENGINES = [name for name, engine in FIXED.engines.items() if not engine.prefix_caching]


def verdicts(bench: Bench) -> tuple[dict[str, str], list[list[str]]]:
    """Count the goals that hold by kind, and list those that miss."""
    held: dict[str, list[bool]] = {}
    misses = []
    for claim in bench.claims:
        cell, _, kind = claim.name.rpartition(": ")
        held.setdefault(kind, []).append(claim.holds is True)
        if not held[kind][-1]:
            misses.append([kind, cell, f"{claim.value:.3f} {claim.unit}".strip(), claim.goal])
    misses.sort(key=lambda miss: list(held).index(miss[0]))
    return {kind: f"{sum(each)} of {len(each)}" for kind, each in held.items()}, misses


def by_engine(bench: Bench) -> str:
    """Return a row an engine: geometric means of the ratios over its cells, and the best static pairs' budgets."""
    keys = [f"{key} / stock" for key in ("output_throughput", "mean_e2el_ms", "p99_ttft_ms")]
    keys += [f"{key} / best static" for key in ("output_throughput", "mean_e2el_ms")]
    rows: list[list[object]] = []
    for name in dict.fromkeys(row["engine"] for row in bench.rows):
        cells = [row for row in bench.rows if row["engine"] == name]
        ratios = ([float(cell[key].partition("+-")[0]) for cell in cells] for key in keys)
        budgets = sorted({int(cell["least E2E"].rpartition("/")[2]) for cell in cells})
        means = [f"{statistics.geometric_mean(each):.3f}" for each in ratios]
        rows.append([name, len(cells), *means, ", ".join(map(str, budgets))])
    return markdown(["engine", "cells", *keys, "budgets of the best static pairs"], rows)


def document(bench: Bench) -> str:
    """Return the tables of docs/panel.md: how many goals hold, the means by engine, and the goals that miss."""
    counts, misses = verdicts(bench)
    goals = {claim.name.rpartition(": ")[2]: claim.goal for claim in bench.claims}
    tables = [markdown(["figure", "goal", "holds"], [[kind, goals[kind], count] for kind, count in counts.items()])]
    tables.append(by_engine(bench))
    tables.append(markdown(["figure", "engine: workload, load", "measured", "goal"], misses))
    return "\n\n".join(tables)


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
        markdown={"action": "store_true", "help": "print the tables of docs/panel.md as well"},
        figures={"action": "store_true", "help": "draw docs/figures/panel-*.png"},
    )
    choose, compare, loads = FIXED.seeds["choose"][:3], FIXED.seeds["compare"], FIXED.loads
    names = set(bench.options.workloads)
    if bench.options.quick:
        choose, compare, loads = choose[:1], compare[:2], (0.9, 1.2)
        names &= {"chat", "lognormal-870", "p512d1000", "two-kinds", "lognormal-short"}
    engines = [FIXED.engines[name] for name in bench.options.engines]
    if missing := sorted(
        {name for on in engines for name in on.workloads} & names - {n for e in engines for n in available(e)}
    ):
        print(f"skipped, their traces are not in {TRACES} (set WAIT_CORE_TRACES): {', '.join(missing)}")
    cells = [
        Cell(on.name, name, load)
        for on in engines
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
    if bench.options.markdown:
        print(document(bench))
    counts, _ = verdicts(bench)
    print(table(["figure", "goals that hold"], [list(each) for each in counts.items()]))
    bench.finish()
    held = sum(claim.holds is True for claim in bench.claims)
    print(f"{held} of {len(bench.claims)} goals hold", file=sys.stderr)


if __name__ == "__main__":
    main()
