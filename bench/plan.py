"""The plan's predictions against the simulator, over the panel's workloads and loads.

A plan simulates the workload on its own seeds; its predictions are then compared with other seeds, and for a recorded
trace, planned from its first half, with its second half. Loads are relative to the capacity bound, the rate that no
schedule exceeds.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from contract import TRACES, start
from pages import Row, markdown

from wait_core import simulate
from wait_core.planning import PlanReport, plan
from wait_core.simulation.trial import Figures, figures
from wait_core.workload import Requests, replayed, sampled
from wait_core.workload.datasets import Dataset, TraceWorkload, panel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from contract import Bench

FIGURES = {
    "output tok/s": "output_throughput",
    "TTFT s": "ttft_s",
    "TPOT s": "tpot_s",
    "latency s": "e2el_s",
    "peak KV": "peak_kv",
    "preemptions": "preemptions",
}
DEFAULT = "clairvoyant"
PLAN_SEED = 1000
"""First seed that is planned on, never compared with."""
REGIMES = ("below 3/4 of saturation", "3/4 to 0.98 of it", "0.98 to 1.02 of it", "overload", "other half of a trace")


def planned(workload: Dataset | TraceWorkload, rate: float, count: int, runs: int, policy: str) -> PlanReport | None:
    """Plan a workload at a rate; None where its trace is absent."""
    fixed = panel()
    engine: dict[str, Any] = {
        "kv_blocks": fixed.kv_blocks, "block_size": fixed.block_size, "max_num_seqs": fixed.max_num_seqs,
        "policy": policy, "request_rate": rate,
    }  # fmt: skip
    if isinstance(workload, Dataset):
        return plan(dataset_name=workload, num_prompts=count, seed=PLAN_SEED, runs=runs, **engine)
    trace = recorded(workload)
    return None if trace is None else plan(requests=trace.window(0.0, len(trace) // 2), **engine)


def recorded(workload: TraceWorkload) -> Requests | None:
    """Return a trace at its own times, if it is there."""
    path = TRACES / workload.trace
    return replayed(path) if path.is_file() else None


def others(workload: Dataset | TraceWorkload, rate: float, count: int, seeds: Sequence[int]) -> list[Requests]:
    """Return requests that the plan has not seen: other seeds, or the second half of the trace."""
    if isinstance(workload, Dataset):
        return [sampled(workload, request_rate=rate, num_prompts=count, seed=seed) for seed in seeds]
    trace = recorded(workload)
    assert trace is not None  # noqa: S101 - it was planned for
    return [trace.window(1.0, len(trace) // 2).scaled(rate)]


def measured(policy: str, requests: Requests) -> Figures:
    """Simulate and return the figures of the run."""
    fixed = panel()
    return figures(simulate(policy, requests=requests, kv_blocks=fixed.kv_blocks, max_num_seqs=fixed.max_num_seqs))


def row(name: str, load: float, report: PlanReport, runs: list[Figures]) -> dict[str, Any]:
    """One row: each figure planned and simulated, and the range of the TTFT from run to run."""
    share = report.request_rate / report.engine_limit.request_rate
    cells: dict[str, Any] = {"workload": name, "load": load, "of saturated, %": round(100 * share)}
    for title, key in FIGURES.items():
        cells[f"{title}: planned"] = float(getattr(report.expected.mean, key))
        cells[f"{title}: simulated"] = float(statistics.mean(getattr(run, key) for run in runs))
    least, most = report.expected.least.ttft_s, report.expected.most.ttft_s
    cells |= {"TTFT s: planned, least": least, "TTFT s: planned, most": most}
    times = [run.ttft_s for run in runs]
    return cells | {"TTFT s: simulated, least": min(times), "TTFT s: simulated, most": max(times)}


def _short(value: str) -> str:
    return f"{float(value):,.0f}" if float(value) >= 99.95 else f"{float(value):.3g}"


def cell(row: Row, title: str) -> str:
    """Return planned / simulated, and the error of the plan."""
    planned, mean = row[f"{title}: planned"], row[f"{title}: simulated"]
    error = f" {float(planned) / float(mean) - 1:+.0%}" if float(mean) else ""
    return f"{_short(planned)} / {_short(mean)}{error}"


def _cells(rows: Sequence[Row], columns: Mapping[str, str], *more: str) -> str:
    lines = []
    for row in rows:
        line = [row["workload"], f"{float(row['load']):g}", f"{row['of saturated, %']}%"]
        line += [cell(row, title) for title in columns.values()]
        if more:
            ends = ((row[f"TTFT s: {kind}, {end}"] for end in ("least", "most")) for kind in ("planned", "simulated"))
            line.append(" / ".join("-".join(map(_short, each)) for each in ends))
        lines.append(line)
    return markdown(["workload", "load", "of saturated", *columns, *more], lines)


def cells(rows: Sequence[Row]) -> str:
    """Return the table of docs/planning.md of all cells, where nothing is ever preempted."""
    return _cells(rows, {title: title for title in list(FIGURES)[:5]}, "TTFT by run")


def preempting(rows: Sequence[Row]) -> str:
    """Return the table of docs/planning.md with preemptions."""
    columns = {"output tok/s": "output tok/s", "latency s": "latency s", "preemptions a request": "preemptions"}
    return _cells(rows, columns)


def regimes(rows: Sequence[Row]) -> str:
    """Return the table of docs/planning.md of errors, median / largest, by regime."""
    header = ["regime", "cells", *list(FIGURES)[:5], "TTFT inside, %"]
    lines = [
        [row["regime"], row["cells"]]
        + [f"{float(row[f'{title}: median']):.1f} / {float(row[f'{title}: largest']):.0f}" for title in header[2:-1]]
        + [row["TTFT inside, %"]]
        for row in rows
    ]
    return markdown(header, lines)


def regime(workload: Dataset | TraceWorkload, report: PlanReport) -> str:
    """In which of the regimes the errors of a cell are counted."""
    if isinstance(workload, TraceWorkload):
        return REGIMES[4]
    share = report.request_rate / report.engine_limit.request_rate
    return REGIMES[sum(share > edge for edge in (0.75, 0.98, 1.02))]


def main() -> None:
    """Print the tables and the claims."""
    bench = start(
        "plan",
        str(__doc__).splitlines()[0],
        policy={"default": DEFAULT, "help": "what is planned and simulated (%(default)s)"},
    )
    fixed, policy = panel(), bench.options.policy
    bench.variant = policy
    count, runs, seeds = (4_000, 5, 2) if bench.options.quick else (20_000, 20, 5)
    errors: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in REGIMES}
    inside: dict[str, list[bool]] = defaultdict(list)
    for name, workload in fixed.workloads.items():
        sample = planned(workload, 1.0, count, 1, policy)
        if sample is None:
            print(f"{name}: skipped, its trace is not in {TRACES} (set WAIT_CORE_TRACES)")
            continue
        for load in fixed.loads:
            rate = load * sample.bound.request_rate
            report = planned(workload, rate, count, runs, policy)
            assert report is not None  # noqa: S101 - it was there a moment ago
            found = [measured(policy, each) for each in others(workload, rate, count, fixed.seeds["compare"][:seeds])]
            bench.rows.append(row(name, load, report, found))
            print(
                name,
                f"load {load:g}",
                *(f"{title} {cell(_text(bench.rows[-1]), title)}" for title in FIGURES),
                flush=True,
            )
            where = regime(workload, report)
            for key in FIGURES.values():
                mean = statistics.mean(getattr(run, key) for run in found)
                if mean and key != "preemptions":
                    errors[where][key].append(abs(getattr(report.expected.mean, key) / mean - 1))
            least, most = report.expected.least.ttft_s, report.expected.most.ttft_s
            inside[where] += [least <= run.ttft_s <= most for run in found]
    bench.tables[f"{policy}-regimes"] = claims(bench, errors, inside)
    if policy == DEFAULT:
        bench.tables["thresholds"] = gated(bench, count)
    bench.finish()


def _text(row: dict[str, Any]) -> Row:
    return {key: str(value) for key, value in row.items()}


# Bounds in percent on the median and the largest error; what has none is a figure without a goal.
GOALS = {
    REGIMES[0]: {
        "output_throughput": (2, 5),
        "tpot_s": (2, 10),
        "e2el_s": (3, 15),
        "ttft_s": (5, 20),
        "peak_kv": (5, 20),
    },
    REGIMES[3]: {
        "output_throughput": (2, 10),
        "tpot_s": (2, 10),
        "e2el_s": (5, 15),
        "ttft_s": (5, 15),
        "peak_kv": (2, 10),
    },
}


def claims(
    bench: Bench, errors: dict[str, dict[str, list[float]]], inside: dict[str, list[bool]]
) -> list[dict[str, Any]]:
    """Claim the median and the largest error by regime and figure; return them as a table."""
    titles = {key: title for title, key in FIGURES.items()}
    rows = []
    for where, columns in errors.items():
        if not columns:
            continue
        row: dict[str, Any] = {"regime": where, "cells": len(columns["ttft_s"])}
        for key, values in columns.items():
            middle, largest = statistics.median(values) * 100, max(values) * 100
            goals = [f"<= {goal}" for goal in GOALS.get(where, {}).get(key, ())] or ["", ""]
            bench.claim(f"{where}: median error of {key}", middle, "%", goals[0])
            bench.claim(f"{where}: largest error of {key}", largest, "%", goals[1])
            row |= {f"{titles[key]}: median": middle, f"{titles[key]}: largest": largest}
        share = 100 * statistics.mean(inside[where])
        bench.claim(f"{where}: runs whose TTFT lies between the least and the most of the plan", share, "%")
        rows.append(row | {"TTFT inside, %": round(share)})
    return rows


# Requests per second at which thresholds are planned, some way from and close to the 24.2/s and 21/s that are served.
GATED = {"p512d20": (18.0, 20.0, 22.0, 23.0), "two-type": (16.0, 18.0, 20.0, 21.0)}
FACTORS = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0)


def gated(bench: Bench, count: int) -> list[dict[str, Any]]:
    """Thresholds planned for the least latency, with gates, against the same thresholds times a factor."""
    fixed = panel()
    rows: list[dict[str, Any]] = []
    for name, rates in GATED.items():
        for rate in rates:
            requests = sampled(name, request_rate=rate, num_prompts=count, seed=fixed.seeds["compare"][0])
            report = plan(requests=requests, kv_blocks=fixed.kv_blocks, max_num_seqs=fixed.max_num_seqs)
            shares = [each / rate for _, _, each in report.types]
            wait = zip(shares, report.wait.delays, strict=True)
            planned = {
                "wait": (report.wait.per_type, sum(share * delay.e2el_s for share, delay in wait)),
                "nested-wait": (report.nested_wait.per_segment, report.nested_wait.e2el_s),
            }
            for policy, (thresholds, guess) in planned.items():
                latency = {}
                for factor in FACTORS:
                    scaled = [factor * n for n in thresholds]
                    run = simulate(policy, requests=requests, thresholds=scaled, work_conserving=False,
                                   kv_blocks=fixed.kv_blocks, max_num_seqs=fixed.max_num_seqs)  # fmt: skip
                    latency[factor] = float(run.e2el_s.mean())
                best = min(latency, key=lambda factor: latency[factor])
                each = ", ".join(f"{n:.3g}" for n in thresholds)
                rows.append(
                    {
                        "workload": name,
                        "rate": f"{rate:g}",
                        "policy": policy,
                        "planned n": each,
                        "predicted s": guess,
                        "simulated s": latency[1.0],
                        "least s": latency[best],
                        "at the multiple": f"{best:g}",
                    }
                )
                what = f"{policy}, gated, {name} at {rate:g}/s: latency"
                bench.claim(f"{what} as planned / best multiple", latency[1.0] / latency[best], "", "<= 1.05")
                bench.claim(f"{what} predicted / simulated", guess / latency[1.0], "")
    return rows


if __name__ == "__main__":
    main()
