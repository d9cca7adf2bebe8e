"""Every policy on three of the panel's workloads: what each carries, how long requests take, how often it preempts."""

from __future__ import annotations

import os

from contract import start
from panel_cells import FIXED, MAIN, SHOWN, Cell, Panel, stock

WORKLOADS = ("p512d1000", "chat", "lognormal-870")
LOADS = (0.9, 1.2)
FIGURES = {
    "output tok/s": ("output_throughput", 1.0, ".0f"),
    "mean E2E s": ("mean_e2el_ms", 1e-3, ".1f"),
    "p99 TTFT s": ("p99_ttft_ms", 1e-3, ".1f"),
    "mean TPOT ms": ("mean_tpot_ms", 1.0, ".1f"),
    "preemptions": ("preemptions", 1.0, ".1f"),
    "goodput": ("goodput", 1.0, ".3f"),
}
"""Columns: the figure of a run, what its unit is worth in the column's, and the digits of its mean."""


def main() -> None:
    """Make the runs, print the table."""
    bench = start(
        "policies",
        str(__doc__),
        processes={"type": int, "default": os.cpu_count() or 1, "help": "(%(default)s)"},
    )
    quick = bench.options.quick
    seeds = FIXED.seeds["compare"][: 2 if quick else None]
    cells = [Cell(MAIN.name, name, load) for name in WORKLOADS[: 1 if quick else None] for load in LOADS]
    policies = (stock(MAIN), *SHOWN, "adaptive")
    made = Panel()
    made.complete(
        [(*cell, policy, seed) for cell in cells for policy in policies for seed in seeds], bench.options.processes
    )
    for cell in cells:
        for policy in policies:
            figures = {
                title: f"{made.mean(cell, policy, key, seeds) * unit:{digits}}"
                for title, (key, unit, digits) in FIGURES.items()
            }
            bench.rows.append({"workload": cell.workload, "load": cell.load, "policy": policy} | figures)
        throughput = {policy: made.mean(cell, policy, "output_throughput", seeds) for policy in policies}
        best = max(throughput, key=throughput.__getitem__)
        ratio, _ = made.ratio(cell, "adaptive", best, "output_throughput", seeds)
        bench.claim(f"{cell}: output tok/s, adaptive / the best of all", ratio, "")
    bench.finish()


if __name__ == "__main__":
    main()
