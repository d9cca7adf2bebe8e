"""The page of one simulation, or of several on the same requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core.report.html.page import Figure, Page, Section, Table, in_force, reproduction
from wait_core.report.html.svg import Axis, Line, bars, chart, number
from wait_core.report.tables import counted, left_out

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from wait_core.simulation import Report

KEYS = {
    "completed": "completed",
    "failed": "failed",
    "output_throughput": "output tokens/s",
    "mean_ttft_ms": "mean TTFT, ms",
    "p99_ttft_ms": "p99 TTFT, ms",
    "mean_tpot_ms": "mean TPOT, ms",
    "mean_e2el_ms": "mean E2E, ms",
    "p99_e2el_ms": "p99 E2E, ms",
    "preemptions": "preemptions",
    "recomputed_tokens": "recomputed tokens",
    "goodput": "goodput",
}
QUANTILES = (50, 90, 99)


def page_of_simulations(
    reports: Sequence[Report], *, command: str, objective: Mapping[str, float | None] | None = None
) -> Page:
    """Return the page of simulations of the same requests, one a policy or router.

    Parameters
    ----------
    reports : sequence of Report
        At least one.
    command : str
        The command line that gives it again.
    objective : dict of str to float, optional
        slo_ttft_ms and slo_tpot_ms, ms, as for `Report.summary`.

    """
    first = reports[0]
    summaries = [report.summary(**(objective or {})) for report in reports]
    done = summaries[0]["completed"] + summaries[0]["failed"]
    names = ", ".join(report.name for report in reports)
    span = max(float(summary["duration"]) for summary in summaries)
    notes = left_out(first.dropped)
    notes += [f"Assumed: {note}." for note in first.notes]
    sections = [
        Section(heading="Figures", tables=[_figures(summaries)]),
        _kv(reports),
        _distributions(reports),
        _holds(reports),
        in_force(first.settings),
        reproduction(command),
    ]
    return Page(
        title=f"{first.workload}: {names}",
        summary=f"{done:,} requests on a simulated GPU, {number(span)} s of its time, seed {first.seed}.",
        notes=notes,
        sections=sections,
    )


def _figures(summaries: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [label, *(number(float(summary[key])) for summary in summaries)]
        for key, label in KEYS.items()
        if key in summaries[0]
    ]
    rows.append(["peak KV", *(f"{summary['peak_kv_blocks'] / summary['kv_blocks']:.1%}" for summary in summaries)])
    return Table(header=["", *(summary.get("router", summary["policy"]) for summary in summaries)], rows=rows)


def _kv(reports: Sequence[Report]) -> Section:
    capacity = max(report.run.counts["kv_blocks"] * report.settings["block_size"] for report in reports)
    end = max((float(report.kv_over_time[0][-1]) for report in reports if len(report.kv_over_time[0])), default=1.0)
    figures = []
    for report in reports:
        times, tokens = report.kv_over_time
        if len(times) == 0:
            continue
        lost = preempted_at(report)
        own = report.run.counts["kv_blocks"] * report.settings["block_size"]
        figures.append(
            Figure(
                heading=report.name,
                svg=chart(
                    [Line(name=report.name, x=times, y=tokens, steps=True)],
                    Axis(label="time, s", least=0.0, most=end),
                    Axis(label="KV tokens in use", least=0.0, most=1.08 * capacity),
                    title=f"KV tokens in use over time, {report.name}",
                    limit=(f"capacity {own:,} tokens", float(own)),
                    marks=lost.tolist(),
                    area=True,
                ),
                caption=_preempted(report.run.counts["preemptions"]),
            )
        )
    waiting = [
        Line(name=report.name, x=report.kv_over_time[0], y=report.run.series[3].astype(float), steps=True)
        for report in reports
        if len(report.kv_over_time[0])
    ]
    if waiting:
        figures.append(
            Figure(
                heading="Waiting",
                svg=chart(
                    waiting,
                    Axis(label="time, s", least=0.0, most=end),
                    Axis(label="requests that wait", least=0.0),
                    title="Requests that wait outside the KV cache, over time",
                ),
                caption="Requests that have arrived and hold no memory.",
            )
        )
    return Section(heading="The KV cache over time", figures=figures)


def _preempted(times: int) -> str:
    if times == 0:
        return "No preemption."
    return f"{counted(times, 'preemption')}; ticks above the curve show when."


def preempted_at(report: Report) -> npt.NDArray[np.float64]:
    """Return times in s after which fewer were resident than before, beyond those that finished: preemptions.

    Of a long run the series is thinned, and what was preempted and came back in between is not seen.
    """
    at_ns, _, residents, _ = report.run.series
    if len(at_ns) < 2:
        return np.empty(0)
    edges = at_ns
    never = np.iinfo(np.uint64).max
    # An iteration's sample still has those that finish with it, and has those that it admitted.
    left = np.histogram(report.run.finished_ns[report.run.finished_ns != never], edges)[0]
    came = np.histogram(report.run.admitted_ns[report.run.admitted_ns != never], edges)[0]
    change = np.diff(residents.astype(np.int64)) + left - came
    return np.asarray(at_ns[1:][change < 0] * 1e-9)


def _distributions(reports: Sequence[Report]) -> Section:
    columns = {
        "TTFT": ("time to first token, s", [report.ttft_s for report in reports]),
        "TPOT": ("time per output token, s", [tpot_s(report) for report in reports]),
        "E2E": ("arrival to completion, s", [report.e2el_s for report in reports]),
    }
    figures, rows = [], []
    for name, (label, values) in columns.items():
        known = [(report, each) for report, each in zip(reports, values, strict=True) if len(each)]
        if not known:
            continue
        share = np.linspace(0.0, 100.0, 201)
        lines = [
            Line(name=report.name, x=np.maximum(np.percentile(each, share), 1e-6), y=share) for report, each in known
        ]
        figures.append(
            Figure(
                heading=name,
                svg=chart(
                    lines,
                    Axis(label=label, log=True),
                    Axis(label="requests within, %", least=0.0, most=100.0),
                    title=f"Share of the requests within each {name}",
                ),
            )
        )
        rows += [
            [name, report.name, number(float(each.mean())), *map(number, np.percentile(each, QUANTILES).tolist())]
            for report, each in known
        ]
    header = ["s", "policy", "mean", *(f"p{quantile}" for quantile in QUANTILES)]
    return Section(heading="Latency", figures=figures, tables=[Table(header=header, rows=rows, text=(0, 1))])


def tpot_s(report: Report) -> npt.NDArray[np.float64]:
    """Return the time per output token after the first, s, of the completed requests with more than one."""
    run = report.run
    done = (run.finished_ns != np.iinfo(np.uint64).max) & (run.output > 1)
    return np.asarray((run.finished_ns[done] - run.first_token_ns[done]) * 1e-9 / (run.output[done] - 1))


def _holds(reports: Sequence[Report]) -> Section:
    by_reason: dict[str, dict[str, float]] = {}
    for report in reports:
        for reason, count in report.run.counts["holds"].items():
            if any(other.run.counts["holds"].get(reason, 0) for other in reports):
                by_reason.setdefault(reason, {})[report.name] = float(count)
    text = "Decisions that held a queue, by reason: once for each iteration and queue."
    if not by_reason:
        return Section(heading="Holds by reason", text="Nothing was held.")
    return Section(
        heading="Holds by reason", text=text,
        figures=[Figure(svg=bars(by_reason, title="Decisions that held a queue, by reason", unit=""))],
    )  # fmt: skip
