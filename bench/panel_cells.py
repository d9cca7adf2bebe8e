"""The cells of the panel, engine x workload x load, their runs, and how `adaptive` is judged in one.

Everything fixed is in python/wait_core/workload/datasets/panel.json: engines (law, memory, max_num_seqs), workloads,
number of requests, seeds, loads relative to each stream's capacity, the grid of static settings. The capacity is the
rate that no schedule exceeds; with a prefix cache, which has no such bound, what stock carries in overload. Two static
pairs of watermark and token budget of vLLM are chosen in each cell on one half of the seeds, in hindsight: the one with
the highest throughput, and the one with the least mean E2E latency among those whose p99 TTFT is within 1.1 times
stock's. `adaptive` is compared with them and with stock on the other half, by paired ratios with 95 % intervals. The
runs of a build are kept in bench/results and not repeated.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import statistics
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from contract import ROOT, TRACES, Bench, interval
from tqdm import tqdm

from wait_core import _core, simulate
from wait_core.hardware import iteration_time, kv_blocks_of
from wait_core.planning import goodput_bound
from wait_core.workload import Requests, Trace, replayed, sampled
from wait_core.workload import load as load_trace
from wait_core.workload.datasets import Dataset, Engine, panel

if TYPE_CHECKING:
    import numpy.typing as npt

    from wait_core.simulation import Report

FIXED = panel()
MAIN = next(iter(FIXED.engines.values()))
KEEP: tuple[str, ...] = (
    "output_throughput",
    "duration",
    "mean_e2el_ms",
    "p99_e2el_ms",
    "mean_ttft_ms",
    "p99_ttft_ms",
    "mean_tpot_ms",
)
KEEP += ("preemptions", "recomputed_tokens", "total_input_tokens", "goodput", "completed")
OVERLOAD = 4.0
"""Load, relative to the bound without a prefix cache, at which the capacity with one is measured."""
MIDDLE = (0.2, 0.8)
"""Shares of the completions between which they are counted, neither filling nor draining."""
STATED = "adaptive, SLO stated"
"""`adaptive` given the SLO's TTFT, which is what an overload misses; its TPOT is left alone (`tpot_target`)."""
KNOWN = "adaptive, lengths known"

GOALS = {
    "output_throughput / best static": ">= 0.99",
    "mean_e2el_ms / best static": "<= 1.02",
    "output_throughput / stock": ">= 0.995",
    "mean_e2el_ms / stock": "<= 1.01",
    "p99_ttft_ms / stock": "<= 1.05",
    "output_throughput / hidden": ">= 0.995",
    "mean_e2el_ms / hidden": "<= 1.01",
}
"""Of `adaptive` against the best static pair for that figure, against stock, and with lengths known against itself."""
DIGITS = 4
"""Decimal places of a ratio, with which it is judged and written; a page shows one fewer."""

OTHERS: dict[str, dict[str, Any]] = {
    "sarathi": {"policy": "sarathi", "token_budget": 512},
    "wait": {"policy": "wait"},
    "nested-wait": {"policy": "nested-wait"},
    "clairvoyant": {"policy": "clairvoyant"},
    "adaptive": {"policy": "adaptive"},
    KNOWN: {"policy": "adaptive", "lengths": "known"},
    STATED: {"policy": "adaptive", "ttft_target": FIXED.slo["ttft_s"]},
}
SHOWN = ("sarathi", "wait", "nested-wait", "clairvoyant")
"""Policies that are shown for comparison, on the first engine only: they have no goals."""


class Cell(NamedTuple):
    """One workload at one load on one engine."""

    engine: str
    workload: str
    load: float

    def __str__(self) -> str:
        """Return its name in the tables, a star for what was never used for tuning."""
        stars = ["*" if name in FIXED.held_out else "" for name in (self.engine, self.workload)]
        return f"{self.engine}{stars[0]}: {self.workload}{stars[1]}, load {self.load:g}"


Job = tuple[str, str, float, str, int]


def static(engine: Engine) -> dict[str, dict[str, Any]]:
    """Return the static pairs of an engine: stock, and the grid, as far as every slot gets a token."""
    budgets = sorted({*FIXED.token_budgets, engine.token_budget})
    return {
        f"vllm {watermark:g}/{budget}": {"policy": "vllm", "watermark": watermark, "token_budget": budget}
        for watermark in FIXED.watermarks
        for budget in budgets
        if budget >= engine.max_num_seqs
    }


def stock(engine: Engine) -> str:
    """Return the name of what vLLM does by default."""
    return f"vllm 0/{engine.token_budget}"


@cache
def trace(name: str) -> Trace:
    """Read a trace once."""
    return load_trace(TRACES / name)


def available(engine: Engine = MAIN) -> list[str]:
    """Return the workloads of an engine that can be made here: those of traces need the trace."""
    made = FIXED.workloads
    return [
        name
        for name in engine.workloads
        if isinstance(workload := made[name], Dataset) or (TRACES / workload.trace).is_file()
    ]


def results() -> Path:
    """Where the runs of this build are kept: another build may decide otherwise, and its runs are not ours."""
    build = hashlib.sha256()
    for file in (Path(_core.__file__), ROOT / "python" / "wait_core" / "workload" / "datasets" / "panel.json"):
        build.update(file.read_bytes())
    return ROOT / "bench" / "results" / f"panel-{build.hexdigest()[:12]}.jsonl"


def offered(name: str, rate: float, seed: int) -> Requests:
    """Make the requests of a stream; a trace gives each seed a stretch of its own (they overlap)."""
    workload = FIXED.workloads[name]
    if isinstance(workload, Dataset):
        return sampled(workload, request_rate=rate, num_prompts=FIXED.num_requests, seed=seed)
    return replayed(trace(workload.trace), request_rate=rate).window((seed - 1) / 9.0, FIXED.num_requests)


def memory(engine: Engine) -> int:
    """KV blocks of an engine."""
    return kv_blocks_of(iteration_time(engine.iteration_time), 16) if engine.kv_blocks is None else engine.kv_blocks


def carried(finished_ns: npt.NDArray[np.uint64]) -> float:
    """Requests/s that an engine completed in the middle of an overload."""
    low, high = np.quantile(finished_ns, MIDDLE)
    return float(np.count_nonzero((finished_ns > low) & (finished_ns <= high)) / (high - low) * 1e9)


@cache
def capacity(name: str, engine: Engine = MAIN, seed: int = FIXED.seeds["choose"][0]) -> float:
    """Requests/s of a stream that no schedule exceeds; with a prefix cache, those that stock carries in overload."""
    planner = _core.Planner(
        offered(name, 1.0, seed).types(FIXED.num_requests)[0],
        iteration_time(engine.iteration_time),
        capacity=memory(engine) * 16,
        max_running=engine.max_num_seqs,
        token_budget=engine.token_budget,
    )
    bound = float(planner.capacity_bound()["requests"])
    if not engine.prefix_caching:
        return bound
    return carried(simulated(engine, stock(engine), offered(name, OVERLOAD * bound, seed), seed).run.finished_ns)


def simulated(on: Engine, policy: str, requests: Requests, seed: int) -> Report:
    """Run a policy on an engine."""
    settings = {"token_budget": on.token_budget} | (static(on) | OTHERS)[policy]
    return simulate(
        requests=requests,
        seed=seed,
        iteration_time=on.iteration_time,
        kv_blocks=memory(on),
        max_num_seqs=on.max_num_seqs,
        prefix_caching=on.prefix_caching,
        **settings,
    )


def run(job: Job) -> tuple[Job, dict[str, float]]:
    """Simulate one cell, policy and seed, at a load relative to the stream's own bound."""
    engine, name, load, policy, seed = job
    on = FIXED.engines[engine]
    report = simulated(on, policy, offered(name, load * capacity(name, on, seed), seed), seed)
    slo = FIXED.slo
    summary = report.summary(slo_ttft_ms=1e3 * slo["ttft_s"], slo_tpot_ms=1e3 * slo["tpot_s"])
    if summary["completed"] != FIXED.num_requests:
        raise RuntimeError(f"{job}: {summary['completed']} of {FIXED.num_requests} requests finished")
    return job, {key: float(summary[key]) for key in KEEP}


class Panel:
    """The runs made so far, on disk and in memory."""

    def __init__(self) -> None:
        self.file = results()
        self.runs: dict[Job, dict[str, float]] = {}
        if self.file.exists():
            for line in self.file.read_text(encoding="utf-8").splitlines():
                key, figures = json.loads(line)
                self.runs[tuple(key)] = figures

    def complete(self, jobs: list[Job], processes: int) -> None:
        """Make the runs that are missing."""
        missing = [job for job in jobs if job not in self.runs]
        self.file.parent.mkdir(exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file, multiprocessing.Pool(processes) as pool:
            progress = tqdm(pool.imap_unordered(run, missing, 8), total=len(missing), disable=not sys.stderr.isatty())
            for job, figures in progress:
                self.runs[job] = figures
                file.write(json.dumps([job, figures]) + "\n")

    def mean(self, cell: Cell, policy: str, key: str, seeds: tuple[int, ...]) -> float:
        """Mean of a figure over seeds."""
        return statistics.mean(self.runs[*cell, policy, seed][key] for seed in seeds)

    def ratio(self, cell: Cell, policy: str, against: str, key: str, seeds: tuple[int, ...]) -> tuple[float, float]:
        """Paired ratio of one policy to another, and half its 95 % interval."""
        pairs = [(self.runs[*cell, policy, seed], self.runs[*cell, against, seed]) for seed in seeds]
        return interval([(mine[key] + 1e-12) / (theirs[key] + 1e-12) for mine, theirs in pairs])

    def references(self, cell: Cell, seeds: tuple[int, ...]) -> tuple[str, str]:
        """Find the static pairs of a cell: highest throughput, least mean E2E latency with stock's first tokens."""
        engine = FIXED.engines[cell.engine]
        pairs = list(static(engine))
        fastest = max(pairs, key=lambda pair: self.mean(cell, pair, "output_throughput", seeds))
        limit = 1.1 * self.mean(cell, stock(engine), "p99_ttft_ms", seeds)
        prompt = [pair for pair in pairs if self.mean(cell, pair, "p99_ttft_ms", seeds) <= limit]
        return fastest, min(prompt, key=lambda pair: self.mean(cell, pair, "mean_e2el_ms", seeds))


def jobs_of(cells: list[Cell], choose: tuple[int, ...], compare: tuple[int, ...]) -> list[Job]:
    """Return the runs of these cells: the static pairs on all seeds, the other policies on those compared."""
    jobs: list[Job] = []
    for cell in cells:
        others = [*(SHOWN if cell.engine == MAIN.name else ()), "adaptive", KNOWN]
        others += [policy for _, policy in stated_cells(cell)]
        jobs += [(*cell, policy, seed) for policy in static(FIXED.engines[cell.engine]) for seed in (*choose, *compare)]
        jobs += [(*cell, policy, seed) for policy in others for seed in compare]
    return jobs


def judge(bench: Bench, made: Panel, cell: Cell, choose: tuple[int, ...], compare: tuple[int, ...]) -> None:
    """Compare `adaptive` with the references of one cell."""
    engine = FIXED.engines[cell.engine]
    fastest, latency = made.references(cell, choose)
    best = {"output_throughput": fastest, "mean_e2el_ms": latency}
    names = dict(zip(("engine", "workload"), str(cell).rpartition(", load ")[0].split(": "), strict=True))
    row: dict[str, Any] = {**names, "load": cell.load, "fastest": fastest, "least E2E": latency}
    for figure, goal in GOALS.items():
        key, against = figure.split(" / ")
        policy = KNOWN if against == "hidden" else "adaptive"
        other = {"best static": best.get(key), "stock": stock(engine), "hidden": "adaptive"}[against]
        mean, half = made.ratio(cell, policy, str(other), key, compare)
        bench.claim(f"{cell}: {figure}", round(mean, DIGITS), f"+-{half:.3f}", goal)
        row[figure] = f"{mean:.{DIGITS}f}" + (f"+-{half:.{DIGITS}f}" if math.isfinite(half) else "")
    for policy in (stock(engine), "adaptive"):
        computed = made.mean(cell, policy, "recomputed_tokens", compare)
        prompts = made.mean(cell, policy, "total_input_tokens", compare)
        name = "stock" if policy == stock(engine) else policy
        row[f"recomputed / prompt tokens, {name}"] = f"{computed / prompts:.3f}"
    if (cell, STATED) in stated_cells(cell):
        for policy in (stock(engine), "adaptive", STATED):
            name = "stock" if policy == stock(engine) else policy
            row[f"goodput, {name}"] = f"{made.mean(cell, policy, 'goodput', compare):.3f}"
        row["goodput, bound"] = f"{statistics.mean(goodput_at_most(cell, seed) for seed in compare):.3f}"
    bench.rows.append(row)


def goodput_at_most(cell: Cell, seed: int) -> float:
    """Return the goodput of a stream on the first engine that no scheduler exceeds."""
    requests = offered(cell.workload, cell.load * capacity(cell.workload, MAIN, seed), seed)
    ttft_ms, tpot_ms = 1e3 * FIXED.slo["ttft_s"], 1e3 * FIXED.slo["tpot_s"]
    return goodput_bound(requests, ttft_ms, tpot_ms, kv_blocks=memory(MAIN), max_num_seqs=MAIN.max_num_seqs)


def stated_cells(cell: Cell) -> list[tuple[Cell, str]]:
    """Return the cell with the SLO stated, where it is run: on the first engine in overload."""
    return [(cell, STATED)] if cell.engine == MAIN.name and cell.load >= 1.0 else []
