"""The panel: every workload x load x policy on the simulated A100, and what is claimed of `adaptive` there.

Everything fixed is in python/wait_core/panel.json: memory, seats, number of requests, seeds, loads relative to the
bound that no schedule exceeds, the grid of static settings. In each cell the reference is the best static pair of
watermark and token budget of vLLM, chosen on one half of the seeds (by mean latency below capacity, by throughput from
capacity on) and compared with on the other, by paired ratios with 95 % intervals. The runs of a build are kept in
bench/results and not repeated. `adaptive` is judged as it is, and once more, not counted, with the SLO's TTFT stated
(`ttft_target`). Held-out workloads were never used for tuning; they are marked with a star. `--markdown`
prints the tables of docs/panel.md.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import statistics
import sys
from functools import cache
from pathlib import Path
from typing import Any

from contract import ROOT, TRACES, Bench, interval, markdown, start
from tqdm import tqdm

from wait_core import _core, simulate
from wait_core.datasets import Dataset, panel
from wait_core.planning import plan
from wait_core.plot_style import LIMIT, new_figure, styles
from wait_core.requests import Requests, replayed, sampled
from wait_core.tables import table
from wait_core.traces import Trace
from wait_core.traces import load as load_trace

FIXED = panel()
KEEP: tuple[str, ...] = (
    "output_throughput",
    "duration",
    "mean_e2el_ms",
    "p99_e2el_ms",
    "mean_ttft_ms",
    "p99_ttft_ms",
    "mean_tpot_ms",
)
KEEP += ("preemptions", "recomputed_tokens", "goodput", "completed")
STATIC = {
    f"vllm {watermark:g}/{budget}": {"policy": "vllm", "watermark": watermark, "token_budget": budget}
    for watermark in FIXED.watermarks
    for budget in FIXED.token_budgets
}
STATED = "adaptive, SLO stated"
"""`adaptive` that is told the SLO's TTFT, which is what an overload misses; its TPOT is left alone (`tpot_target`)."""

OTHERS: dict[str, dict[str, Any]] = {
    "sarathi": {"policy": "sarathi", "token_budget": 512},
    "wait": {"policy": "wait"},
    "nested-wait": {"policy": "nested-wait"},
    "adaptive": {"policy": "adaptive"},
    STATED: {"policy": "adaptive", "ttft_target": FIXED.slo["ttft_s"]},
    "clairvoyant": {"policy": "clairvoyant"},
    "clairvoyant 384": {"policy": "clairvoyant", "token_budget": 384},
}
Job = tuple[str, float, str, int]


@cache
def trace(name: str) -> Trace:
    """Read a trace once."""
    return load_trace(TRACES / name)


def available() -> list[str]:
    """Return the workloads that can be made here: those of traces need the trace."""
    return [
        name
        for name, workload in FIXED.workloads.items()
        if isinstance(workload, Dataset) or (TRACES / workload.trace).is_file()
    ]


def results() -> Path:
    """Where the runs of this build are kept: another build may decide otherwise, and its runs are not ours."""
    build = hashlib.sha256()
    for file in (Path(_core.__file__), ROOT / "python" / "wait_core" / "panel.json"):
        build.update(file.read_bytes())
    return ROOT / "bench" / "results" / f"panel-{build.hexdigest()[:12]}.jsonl"


def offered(name: str, rate: float, seed: int) -> Requests:
    """Make the requests of a cell; a trace gives each seed a stretch of its own (they overlap)."""
    workload = FIXED.workloads[name]
    if isinstance(workload, Dataset):
        return sampled(workload, request_rate=rate, num_prompts=FIXED.num_requests, seed=seed)
    return replayed(trace(workload.trace), request_rate=rate).window((seed - 1) / 9.0, FIXED.num_requests)


def capacity(name: str) -> float:
    """Requests/s that no schedule exceeds."""
    requests = offered(name, 1.0, FIXED.seeds["choose"][0])
    return float(plan(requests=requests, kv_blocks=FIXED.kv_blocks, max_num_seqs=FIXED.max_num_seqs).bound["requests"])


def run(job: tuple[Job, float]) -> tuple[Job, dict[str, float]]:
    """Simulate one cell, policy and seed."""
    (name, load, policy, seed), bound = job
    settings = (STATIC | OTHERS)[policy]
    report = simulate(
        requests=offered(name, load * bound, seed),
        seed=seed,
        kv_blocks=FIXED.kv_blocks,
        max_num_seqs=FIXED.max_num_seqs,
        **settings,
    )
    slo = FIXED.slo
    summary = report.summary(slo_ttft_ms=1e3 * slo["ttft_s"], slo_tpot_ms=1e3 * slo["tpot_s"])
    if summary["completed"] != FIXED.num_requests:
        raise RuntimeError(f"{job}: {summary['completed']} of {FIXED.num_requests} requests finished")
    return job[0], {key: float(summary[key]) for key in KEEP}


class Panel:
    """The runs made so far, on disk and in memory."""

    def __init__(self, bounds: dict[str, float]) -> None:
        self.bounds = bounds
        self.file = results()
        self.runs: dict[Job, dict[str, float]] = {}
        if self.file.exists():
            for line in self.file.read_text(encoding="utf-8").splitlines():
                key, figures = json.loads(line)
                self.runs[tuple(key)] = figures

    def complete(self, jobs: list[Job], processes: int) -> None:
        """Make the runs that are missing."""
        missing = [(job, self.bounds[job[0]]) for job in jobs if job not in self.runs]
        self.file.parent.mkdir(exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file, multiprocessing.Pool(processes) as pool:
            progress = tqdm(pool.imap_unordered(run, missing, 4), total=len(missing), disable=not sys.stderr.isatty())
            for job, figures in progress:
                self.runs[job] = figures
                file.write(json.dumps([job, figures]) + "\n")

    def mean(self, name: str, load: float, policy: str, key: str, seeds: tuple[int, ...]) -> float:
        """Mean of a figure over seeds."""
        return statistics.mean(self.runs[name, load, policy, seed][key] for seed in seeds)

    def ratio(  # noqa: PLR0917
        self, name: str, load: float, policy: str, against: str, key: str, seeds: tuple[int, ...]
    ) -> tuple[float, float]:
        """Paired ratio of one policy to another."""
        pairs = [(self.runs[name, load, policy, seed], self.runs[name, load, against, seed]) for seed in seeds]
        return interval([(mine[key] + 1e-12) / (theirs[key] + 1e-12) for mine, theirs in pairs])

    def reference(self, name: str, load: float, seeds: tuple[int, ...]) -> str:
        """Find the best static pair of a cell."""
        if load < 1.0:
            return min(STATIC, key=lambda pair: self.mean(name, load, pair, "mean_e2el_ms", seeds))
        return max(STATIC, key=lambda pair: self.mean(name, load, pair, "output_throughput", seeds))


def judge(  # noqa: PLR0917
    bench: Bench, policy: str, made: Panel, name: str, load: float, choose: tuple[int, ...], compare: tuple[int, ...]
) -> None:
    """Compare `adaptive`, or the same with the SLO stated, with the reference of one cell."""
    reference = made.reference(name, load, choose)
    best = max(
        ("clairvoyant", "clairvoyant 384"),
        key=lambda known: made.mean(name, load, known, "output_throughput", compare),
    )
    star = "*" if name in FIXED.held_out else ""
    cell = f"{name}{star}, load {load:g}"
    goals = [("goodput", reference, ">= 1")]
    if load < 1.0:
        goals += [("mean_e2el_ms", reference, "<= 1.02"), ("p99_ttft_ms", reference, "<= 1.02")]
    else:
        goals += [("output_throughput", reference, ">= 0.99"), ("duration", reference, "<= 1.01")]
        goals += [("output_throughput", best, ">= 0.98")]
    row: dict[str, Any] = {"workload": name + star, "load": load, "reference": reference}
    if policy == STATED:
        for who, its in ((reference, "the reference's"), ("adaptive", "adaptive's"), (STATED, "with the SLO stated")):
            row[f"goodput, {its}"] = f"{made.mean(name, load, who, 'goodput', compare):.3f}"
    for key, against, goal in goals:
        mean, half = made.ratio(name, load, policy, against, key, compare)
        bench.claim(f"{cell}: {key} / {against}", mean, f"+-{half:.3f}", goal)
        row[f"{key} / {'reference' if against == reference else 'clairvoyant'}"] = f"{mean:.3f}+-{half:.3f}"
    mine, stock, best_static = (
        sum(made.runs[name, load, who, seed]["preemptions"] for seed in compare)
        for who in (policy, "vllm 0/2048", reference)
    )
    offered_total = len(compare) * FIXED.num_requests
    allowed = max(0.01 * stock, offered_total / 1_000)
    bench.claim(f"{cell}: preemptions / allowed", mine / allowed, "", "<= 1")
    row |= {"preemptions": int(mine), "stock's": int(stock), "reference's": int(best_static)}
    rate = made.mean(name, load, policy, "output_throughput", compare)
    outputs = offered(name, 1.0, compare[0]).output.mean()
    row["of the bound"] = f"{rate / (made.bounds[name] * float(outputs)):.3f}"
    bench.rows.append(row)


def verdicts(bench: Bench) -> tuple[dict[str, str], list[list[str]]]:
    """Count the goals that hold by kind, and list those that miss."""
    held: dict[str, list[bool]] = {}
    misses = []
    for claim in bench.claims:
        cell, _, goal = claim.name.partition(": ")
        figure, _, against = goal.partition(" / ")
        kind = f"{figure} / clairvoyant" if against.startswith("clairvoyant") else figure
        held.setdefault(kind, []).append(claim.holds is True)
        if not held[kind][-1]:
            misses.append([kind, cell, f"{claim.value:.4f} {claim.unit}".strip(), claim.goal])
    misses.sort(key=lambda miss: list(held).index(miss[0]))
    return {kind: f"{sum(each)} of {len(each)}" for kind, each in held.items()}, misses


def counts(bench: Bench, stated: Bench) -> list[list[str]]:
    """Rows of a table: how many goals hold, without and with the SLO stated."""
    with_slo = verdicts(stated)[0]
    return [[kind, count, with_slo[kind]] for kind, count in verdicts(bench)[0].items()]


def document(bench: Bench, stated: Bench) -> str:
    """Return the tables of docs/panel.md: how many goals hold; which miss, and all cells, without and with the SLO."""
    tables = [markdown(["goal", "adaptive", STATED], counts(bench, stated))]
    misses = (verdicts(each)[1] for each in (bench, stated))
    tables += [markdown(["goal", "workload, load", "measured", "goal is"], missed) for missed in misses]
    for each in (bench, stated):
        header = list(dict.fromkeys(key for row in each.rows for key in row))
        tables.append(markdown(header, [[row.get(key, "") for key in header] for row in each.rows]))
    return "\n\n".join(tables)


def draw(made: Panel, cells: list[tuple[str, float]], choose: tuple[int, ...], compare: tuple[int, ...]) -> None:
    """Draw docs/figures/panel-*.png: every policy relative to the reference, cell by cell."""
    names = list(dict.fromkeys(name for name, _ in cells))
    loads = sorted({load for _, load in cells})
    policies = ["vllm 0/2048", *(policy for policy in OTHERS if policy not in {"clairvoyant 384", STATED})]
    looks = styles([policy.split()[0] for policy in policies])
    figures = {"output_throughput": "output throughput", "mean_e2el_ms": "mean end-to-end latency"}
    for key, label in figures.items():
        with new_figure(
            ROOT / "docs" / "figures" / f"panel-{key.replace('_', '-')}.png", (9.5, 2.0 * len(loads))
        ) as figure:
            for axis, load in zip(figure.subplots(len(loads), 1, sharex=True, squeeze=False)[:, 0], loads, strict=True):
                for i, policy in enumerate(policies):
                    colour, _, marker = looks[policy.split()[0]]
                    ratios = [
                        made.mean(name, load, policy, key, compare)
                        / made.mean(name, load, made.reference(name, load, choose), key, compare)
                        for name in names
                    ]
                    at = [x + 0.1 * (i - (len(policies) - 1) / 2) for x in range(len(names))]
                    axis.plot(at, ratios, color=colour, marker=marker, markersize=4.5, linestyle="", label=policy)
                axis.axhline(1.0, color=LIMIT, linewidth=1.2)
                axis.set_title(f"load {load:g}")
                if key == "mean_e2el_ms":
                    axis.set_yscale("log")
                    axis.set_yticks(ticks := [0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0], [f"{tick:g}" for tick in ticks])
                    axis.minorticks_off()
                    axis.set_ylim(0.6, 4.5)
                axis.set_xticks(range(len(names)), names, rotation=25, ha="right")
            figure.supylabel(f"{label} / best static pair's", fontsize=10)
            handles, labels = axis.get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper center", ncols=len(policies), fontsize=8)


def main() -> None:
    """Make the runs, print the table and the claims."""
    bench = start(
        "panel",
        str(__doc__).splitlines()[0],
        workloads={"nargs": "+", "default": list(FIXED.workloads), "help": "(all)"},
        processes={"type": int, "default": os.cpu_count() or 1, "help": "(%(default)s)"},
        markdown={"action": "store_true", "help": "print the tables of docs/panel.md as well"},
        figures={"action": "store_true", "help": "draw docs/figures/panel-*.png"},
        policies={"action": "store_true", "help": "print the figures of every policy as well"},
    )
    choose, compare = FIXED.seeds["choose"], FIXED.seeds["compare"]
    names, loads = bench.options.workloads, FIXED.loads
    if bench.options.quick:
        choose, compare, loads = choose[:1], compare[:2], (0.9, 1.2)
        names = [name for name in names if name in {"chat", "lognormal-870", "p512d1000"}]
    for name in (name for name in names if name not in available()):
        print(f"{name}: skipped, its trace is not in {TRACES} (set WAIT_CORE_TRACES)")
    names = [name for name in names if name in available()]
    made = Panel({name: capacity(name) for name in names})
    for name in names:
        print(f"{name}: at most {made.bounds[name]:.4g} requests/s")
    cells = [(name, load) for name in names for load in loads]
    jobs = [(*cell, policy, seed) for cell in cells for policy in STATIC for seed in (*choose, *compare)]
    jobs += [(*cell, policy, seed) for cell in cells for policy in OTHERS for seed in compare]
    made.complete(jobs, bench.options.processes)
    # What is stated is a setting, and the goals are for none: collected, and not counted.
    stated = Bench(bench.name, bench.options)
    for cell in cells:
        judge(bench, "adaptive", made, *cell, choose, compare)
        judge(stated, STATED, made, *cell, choose, compare)
        if bench.options.policies:
            for policy in ("vllm 0/2048", *OTHERS):
                figures = {key: f"{made.mean(*cell, policy, key, compare):.4g}" for key in KEEP}
                print(json.dumps({"workload": cell[0], "load": cell[1], "policy": policy} | figures))
    missed = [claim for claim in bench.claims if claim.holds is False]
    if bench.options.figures:
        draw(made, cells, choose, compare)
    if bench.options.markdown:
        print(document(bench, stated))
    print(f"{STATED}:")
    print(table(list(stated.rows[0]), [list(row.values()) for row in stated.rows if row["load"] < 1.0]))
    print(table(list(stated.rows[-1]), [list(row.values()) for row in stated.rows if row["load"] >= 1.0]))
    print(table(["goals that hold", "adaptive", STATED], counts(bench, stated)))
    bench.finish()
    print(f"{len(bench.claims) - len(missed)} of {len(bench.claims)} goals hold", file=sys.stderr)


if __name__ == "__main__":
    main()
