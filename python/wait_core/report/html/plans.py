"""The page of a plan: the three rates, the stability region, thresholds, what to expect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wait_core.report.html.page import Figure, Page, Section, Table, in_force, reproduction
from wait_core.report.html.svg import Axis, Line, bars, chart, number
from wait_core.report.tables import left_out

if TYPE_CHECKING:
    from wait_core.planning import PlanReport


def page_of_plan(report: PlanReport, *, command: str) -> Page:
    """Return the page of a plan.

    Parameters
    ----------
    report : PlanReport
        What was found; its `region`, where it was asked for, is drawn.
    command : str
        The command line that gives it again.

    """
    engine, verdict = report.engine, "stable" if report.stable else "NOT STABLE"
    share = report.request_rate / report.engine_limit.request_rate
    notes = [*report.reasons, *report.warnings]
    notes += left_out(report.dropped)
    notes += [f"Assumed: {note}." for note in report.notes]
    sections = [_rates(report)]
    if report.region is not None:
        sections.append(_region(report))
    sections += [_expected(report), _thresholds(report)]
    if report.gpus is not None:
        gpus = report.gpus
        text = (
            f"{number(gpus.target_rate)} requests/s take {gpus.number} GPUs at {number(gpus.rate_each)}/s"
            f" each, {gpus.utilisation:.0%} of what a saturated one carries."
        )
        sections.append(Section(heading="GPUs for the target", text=text))
    kept = ("kv_blocks", "block_size", "max_num_seqs", "token_budget", "iteration_time", "policy")
    sections += [in_force({name: getattr(engine, name) for name in kept}), reproduction(command)]
    return Page(
        title=f"{report.workload} at {number(report.request_rate)} requests/s: {verdict}",
        summary=f"{share:.1%} of what the saturated engine serves under {engine.policy}, on {engine.capacity:,}"
        " KV tokens.",
        notes=notes,
        sections=sections,
    )


def _rates(report: PlanReport) -> Section:
    limits = {
        "this traffic": report.request_rate,
        "constant composition (fluid)": report.fluid_limit.request_rate,
        f"saturated engine, {report.engine.policy}": report.engine_limit.request_rate,
        "WAIT, thresholds as caps": report.wait.caps.saturated.request_rate,
        "any schedule (bound)": report.bound.request_rate,
    }
    figure = Figure(svg=bars({name: {"rate": rate} for name, rate in limits.items()}, title="Rates", unit="/s"))
    text = "The largest rate of this mix, in requests/s, by four measures; the traffic is stable below the engine's."
    return Section(heading="How much it can carry", text=text, figures=[figure])


def _region(report: PlanReport) -> Section:
    region = report.region
    assert region is not None  # noqa: S101  looked at before
    memory = np.array(region.capacity) / 1e3
    names = {"fluid": "fluid", "engine": f"engine, {report.engine.policy}", "bound": "any schedule"}
    lines = [Line(name=names[key], x=memory, y=np.array(getattr(region, key))) for key in names]
    own = report.engine.capacity / 1e3
    lines.append(Line(name="this traffic", x=np.array([own]), y=np.array([report.request_rate])))
    svg = chart(
        lines,
        Axis(label="KV cache, thousand tokens", least=0.0),
        Axis(label="requests/s", least=0.0, most=1.1 * max(*region.bound, report.request_rate)),
        title="The largest rates against the memory, and this traffic on this GPU",
        marks=[own],
    )
    return Section(
        heading="The stability region",
        figures=[Figure(svg=svg, caption="Below the lines is stable; the tick at the top is this GPU's memory.")],
    )


def _expected(report: PlanReport) -> Section:
    expected = report.expected
    rows = [
        [label, *(number(getattr(of, key) * factor) for of in (expected.mean, expected.least, expected.most))]
        for label, key, factor in (
            ("TTFT, ms", "ttft_s", 1e3), ("TPOT, ms", "tpot_s", 1e3), ("E2E, ms", "e2el_s", 1e3),
            ("peak KV, %", "peak_kv", 1e2), ("preemptions a request", "preemptions", 1.0),
        )
    ]  # fmt: skip
    text = f"Means of {expected.runs} runs of {expected.num_prompts:,} requests, played through the core."
    if not report.stable:
        text += " There is no steady state: the longer it runs, the longer the delays."
    return Section(heading="What to expect", text=text, tables=[Table(header=["", "mean", "least", "most"], rows=rows)])


def _thresholds(report: PlanReport) -> Section:
    wait = report.wait
    rows = [
        [f"{prompt:,}", f"{output:,}", number(rate), number(n), number(cap)]
        for (prompt, output, rate), n, cap in zip(report.types, wait.per_type, wait.caps.per_type, strict=True)
    ]
    header = ["prompt", "output", "requests/s", "gated", "as caps"]
    return Section(heading="WAIT's thresholds", tables=[Table(header=header, rows=rows, text=())])
