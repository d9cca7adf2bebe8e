"""The page of a fleet's plan: the recommended fleet, the share in time against the GPUs, all that was simulated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wait_core.report.html.page import Figure, Page, Section, Table, in_force, reproduction
from wait_core.report.html.svg import Axis, Line, chart, number
from wait_core.report.tables import counted, left_out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wait_core.planning import FleetPlan, FleetTrial


def page_of_fleet_plan(plan: FleetPlan, *, command: str) -> Page:
    """Return the page of a plan; `command` is the command line that gives it again."""
    best, engine = plan.recommended, plan.engine
    verdict = "no fleet" if best is None else f"{counted(best.gpus, 'GPU')}, {best.split}, {best.router}"
    notes = [*plan.warnings, *left_out(plan.dropped), *(f"Assumed: {note}." for note in plan.notes)]
    kept = ("kv_blocks", "block_size", "max_num_seqs", "token_budget", "iteration_time", "policy")
    played = (
        f"{counted(len(plan.trials), 'fleet')}, {counted(plan.runs, 'run')} of {plan.num_prompts:,} requests"
        f" ({number(plan.span_s)} s) each; the first fifth of each is left out."
    )
    behind_one = []
    if plan.num_routers > 1:
        heading = f"The same behind one router instead of {plan.num_routers}"
        behind_one = [Section(heading=heading, tables=[_table(plan.one_router)])]
    sections = [
        Section(heading="Share in time", figures=[_figure(plan)], text=played),
        Section(heading="The smallest of each kind", tables=[_table(plan.found)]),
        *behind_one,
        Section(heading="All fleets simulated", tables=[_table(plan.trials)]),
        in_force({name: getattr(engine, name) for name in kept}),
        reproduction(command),
    ]
    return Page(
        title=f"{plan.workload} at {number(plan.request_rate)} requests/s: {verdict}",
        summary=f"For {plan.attainment:.4g} of the requests within {plan.objective} (ms).",
        notes=notes,
        sections=sections,
    )


def _figure(plan: FleetPlan) -> Figure:
    curves = plan.curves()
    lines = [Line(name=name, x=np.array(gpus, float), y=np.array(shares)) for name, (gpus, shares) in curves.items()]
    svg = chart(
        lines,
        Axis(label="GPUs"),
        Axis(label="share in time", least=0.0, most=1.0),
        title="Share of the requests that meet the objective against the number of GPUs",
        limit=("asked for", plan.attainment),
        marks=[] if plan.recommended is None else [float(plan.recommended.gpus)],
    )
    caption = (
        "At each number of GPUs the best split; the fluid bound is what no scheduler exceeds. The tick marks the"
        " recommended fleet."
    )
    return Figure(svg=svg, caption=caption)


def _table(trials: Sequence[FleetTrial]) -> Table:
    header = ["GPUs", "split", "router", "in time", "least", "most", "bound", "p99 TTFT, ms", "p99 TPOT, ms"]
    rows = [
        [
            f"{each.gpus:,}", each.split, each.router,
            *(f"{share:.2%}" for share in (each.goodput, each.least_goodput, each.most_goodput)),
            "-" if each.goodput_bound is None else f"{each.goodput_bound:.2%}",
            number(1e3 * each.p99_ttft_s), number(1e3 * each.p99_tpot_s),
        ]
        for each in trials
    ]  # fmt: skip
    return Table(header=header, rows=rows, text=(1, 2))
