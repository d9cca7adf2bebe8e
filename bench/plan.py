"""The plan's predictions against the simulator, over the panel's workloads and loads.

A plan simulates the workload on its own seeds; its predictions are then compared with other seeds, and for a recorded
trace, planned from its first half, with its second half. Loads are relative to the capacity bound, the rate that no
schedule exceeds. `--markdown` prints the tables of docs/planning.md.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from contract import TRACES, markdown, start

from wait_core import simulate
from wait_core.planning import PlanReport, plan
from wait_core.report import table
from wait_core.simulation.trial import Figures, figures
from wait_core.workload import Requests, replayed, sampled
from wait_core.workload.datasets import Dataset, TraceWorkload, panel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from contract import Bench

FIGURES = {
    "output tok/s": "output_throughput",
    "TTFT s": "ttft_s",
    "TPOT s": "tpot_s",
    "latency s": "e2el_s",
    "peak KV": "peak_kv",
    "preemptions": "preemptions",
}
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
    """One row: predicted / simulated for each figure, and the error of the prediction."""
    share = report.request_rate / report.engine_limit.request_rate
    cells: dict[str, Any] = {"workload": name, "load": load, "of saturated": f"{share:.0%}"}
    for title, key in FIGURES.items():
        mean, planned = statistics.mean(getattr(run, key) for run in runs), getattr(report.expected.mean, key)
        cells[title] = f"{_short(planned)} / {_short(mean)}"
        cells[f"{title} error"] = f"{planned / mean - 1:+.0%}" if mean else ""
    spread = [(report.expected.least.ttft_s, report.expected.most.ttft_s)]
    spread.append((min(run.ttft_s for run in runs), max(run.ttft_s for run in runs)))
    cells["TTFT by run"] = " / ".join(f"{_short(least)}-{_short(most)}" for least, most in spread)
    return cells


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


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
        policy={"default": "clairvoyant", "help": "what is planned and simulated (%(default)s)"},
        markdown={"action": "store_true", "help": "print the tables for docs/planning.md"},
    )
    fixed, policy = panel(), bench.options.policy
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
            print(table(list(bench.rows[-1]), [list(bench.rows[-1].values())]).splitlines()[-1], flush=True)
            where = regime(workload, report)
            for key in FIGURES.values():
                mean = statistics.mean(getattr(run, key) for run in found)
                if mean and key != "preemptions":
                    errors[where][key].append(abs(getattr(report.expected.mean, key) / mean - 1))
            least, most = report.expected.least.ttft_s, report.expected.most.ttft_s
            inside[where] += [least <= run.ttft_s <= most for run in found]
    summary = claims(bench, errors, inside)
    thresholds = gated(bench, count)
    if bench.options.markdown:
        print(document(bench.rows, summary, thresholds))
    bench.finish()


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
) -> list[list[object]]:
    """Claim the median and the largest error by regime and figure; return them as a table."""
    lines: list[list[object]] = []
    for where, columns in errors.items():
        if not columns:
            continue
        cells = []
        for key, values in columns.items():
            middle, largest = statistics.median(values) * 100, max(values) * 100
            goals = [f"<= {goal}" for goal in GOALS.get(where, {}).get(key, ())] or ["", ""]
            bench.claim(f"{where}: median error of {key}", middle, "%", goals[0])
            bench.claim(f"{where}: largest error of {key}", largest, "%", goals[1])
            cells.append(f"{middle:.1f} / {largest:.0f}")
        share = 100 * statistics.mean(inside[where])
        bench.claim(f"{where}: runs whose TTFT lies between the least and the most of the plan", share, "%")
        lines.append([where, len(columns["ttft"]), *cells, f"{share:.0f}"])
    return lines


# Requests per second at which thresholds are planned, some way from and close to the 24.2/s and 21/s that are served.
GATED = {"p512d20": (18.0, 20.0, 22.0, 23.0), "two-type": (16.0, 18.0, 20.0, 21.0)}
FACTORS = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0)


def gated(bench: Bench, count: int) -> list[list[object]]:
    """Thresholds planned for the least latency, with gates, against the same thresholds times a factor."""
    fixed = panel()
    lines: list[list[object]] = []
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
                lines.append([name, f"{rate:g}", policy, each, _short(guess), _short(latency[1.0]),
                              f"{_short(latency[best])} at {best:g}"])  # fmt: skip
                what = f"{policy}, gated, {name} at {rate:g}/s: latency"
                bench.claim(f"{what} as planned / best multiple", latency[1.0] / latency[best], "", "<= 1.05")
                bench.claim(f"{what} predicted / simulated", guess / latency[1.0], "")
    return lines


def document(rows: list[dict[str, Any]], summary: list[list[object]], thresholds: list[list[object]]) -> str:
    """Return the tables for the documents, figures and errors in one cell."""
    lines = []
    for cells in rows:
        each = [f"{cells[title]} {cells[f'{title} error']}".strip() for title in FIGURES]
        lines.append([cells["workload"], f"{cells['load']:g}", cells["of saturated"], *each, cells["TTFT by run"]])
    gates = ["workload", "rate", "policy", "planned n", "predicted s", "simulated s", "least, at the multiple"]
    # Where nothing is ever preempted the column says nothing.
    shown = [title for title in FIGURES if title != "preemptions" or any(cells[f"{title} error"] for cells in rows)]
    keep = [0, 1, 2, *(3 + i for i, title in enumerate(FIGURES) if title in shown), 3 + len(FIGURES)]
    tables = [
        markdown(gates, thresholds),
        markdown(["regime", "cells", *list(FIGURES)[:5], "TTFT inside, %"], summary),
        markdown(
            ["workload", "load", "of saturated", *shown, "TTFT by run"], [[line[i] for i in keep] for line in lines]
        ),
    ]
    return "\n\n".join(tables)


if __name__ == "__main__":
    main()
