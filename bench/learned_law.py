"""The iteration-time law as `adaptive` learns it, against the same policy given the law.

For every law of the panel, and two made-up ones without stairs (the paper's linear law; a mixture of experts
bound by memory), with iterations as the law says and with 10 % noise (`step_jitter`): a server learns for its first
2,000 iterations, then starts again with what it has learned and serves a whole workload. Ratios to the same policy that
knows the law, with the same lengths learned and the same arrivals, pooled over seeds. `cold` is the mean latency of the
whole workload where nothing is known at its start, learning included; `hidden` that of a policy that never has a law:
what the law is worth. The error is that of iterations predicted before they are learned from; 10 % noise alone makes it
0.080. Last, what learning costs an iteration in instructions (callgrind), if valgrind is installed.
`--markdown` prints the table of docs/adaptive.md.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from typing import TYPE_CHECKING, Any

import instructions
import numpy as np
from contract import markdown, start
from panel_cells import FIXED
from tqdm import tqdm

from wait_core import hardware, plan, simulate
from wait_core.workload import Dataset, Requests, sampled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MADE_UP: dict[str, dict[str, Any]] = {
    "linear, no stairs": {"law": "linear", "d0": 0.01, "d1": 2e-7},
    "memory-bound MoE": {
        "law": "measured",
        "round_to": 1,
        "steps": [
            {"up_to": 16, "base_ns": 4.0e6, "per_token_ns": 250e3},
            {"up_to": 128, "base_ns": 7.6e6, "per_token_ns": 25e3},
            {"up_to": 1024, "base_ns": 10.2e6, "per_token_ns": 4.5e3},
            {"up_to": 8192, "base_ns": 5.6e6, "per_token_ns": 9e3},
        ],
        "attention": {"per_decode_kv_ns": 18.0, "per_prefill_attention_ns": 0.4},
    },
}
WORKLOADS = ("chat", "long-prefill", "lognormal-870")
LOADS = (0.9, 1.2)
JITTERS = (0.0, 0.1)
LEARNING = 2_000
"""Iterations that a server learns from."""
FEWEST = 50
"""Fewest requests that it learns from: some outputs alone take more iterations."""
CASES = ("adaptive, memory full", "adaptive, steps timed")
"""Of bench/instructions.py: the same decisions, without and with times reported and learned from."""

Cell = tuple[str, str, float, float]
Job = tuple[Cell, int, int, float]
Law = dict[str, Any]


def shipped() -> dict[str, Law]:
    """Return the laws of the package, by name."""
    return {engine.iteration_time: hardware.iteration_time(engine.iteration_time) for engine in FIXED.engines.values()}


def kv_blocks(name: str) -> int:
    """Return the KV blocks that go with a law; those of the A100 with one that is made up."""
    law = hardware.A100 if name in MADE_UP else name
    return hardware.kv_blocks_of(hardware.iteration_time(law), 16)


def offered(workload: str, rate: float, num_requests: int, seed: int) -> Requests:
    """Make the requests of a run."""
    dataset = FIXED.workloads[workload]
    if not isinstance(dataset, Dataset):
        raise TypeError(f"{workload} is no synthetic workload")
    return sampled(dataset, request_rate=rate, num_prompts=num_requests, seed=seed)


def capacity(cell: tuple[str, str]) -> tuple[tuple[str, str], float]:
    """Return the requests/s of a workload that no schedule exceeds under a law."""
    name, workload = cell
    settings: dict[str, Any] = {"kv_blocks": kv_blocks(name), "max_num_seqs": FIXED.max_num_seqs}
    law = (shipped() | MADE_UP)[name]
    requests = offered(workload, 1.0, 1_000, FIXED.seeds["choose"][0])
    return cell, float(plan(requests=requests, iteration_time=law, runs=1, **settings).bound.request_rate)


def run(job: Job) -> tuple[Cell, dict[str, float]]:
    """Learn, start again, and serve the workload with the law learned, known, and hidden."""
    cell, num_requests, seed, bound = job
    name, workload, load, jitter = cell
    requests = offered(workload, load * bound, num_requests, seed)
    settings: dict[str, Any] = {
        "iteration_time": (shipped() | MADE_UP)[name],
        "kv_blocks": kv_blocks(name),
        "max_num_seqs": FIXED.max_num_seqs,
        "step_jitter": jitter,
        "seed": seed,
    }
    cold = simulate("adaptive", requests=requests, iteration_time_knowledge="learned", **settings)
    learning, first = cold, num_requests
    # As many requests as take so many iterations; the last of them may go on for long.
    while learning.run.counts["iterations"] > 1.1 * LEARNING and first > FEWEST:
        first = max(FEWEST, int(first * LEARNING / learning.run.counts["iterations"]))
        learning = simulate(
            "adaptive", requests=requests.window(0.0, first), iteration_time_knowledge="learned", **settings
        )
    state = learning.run.learned
    arms = {
        arm: simulate("adaptive", requests=requests, iteration_time_knowledge=arm, learned=state, **settings)
        for arm in ("learned", "known", "hidden")
    }
    # A learned law is part of the state: it is removed where the law is hidden.
    arms["hidden"] = simulate(
        "adaptive",
        requests=requests,
        iteration_time_knowledge="hidden",
        learned=dict(state or {}) | {"iteration_time": None},
        **settings,
    )
    figures = {"learned from": float(learning.run.counts["iterations"])}
    figures["error"] = (arms["learned"].run.iteration_time or {})["error"]
    for arm, report in ({"cold": cold} | arms).items():
        figures[f"{arm} e2e"] = float(report.e2el_s.mean())
        figures[f"{arm} tokens"] = float(report.summary()["output_throughput"])
    return cell, figures


def per_iteration() -> dict[str, float]:
    """Instructions of an iteration, without and with a law learned from its time."""
    binary = instructions.build()
    return {case: instructions.per_iteration(binary, case, 256, 1_000) for case in CASES}


def by_law(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of docs/adaptive.md: the worst cell of each law, without and with noise."""
    header = ["law", "jitter", "tok/s, least", *(f"{key}, largest" for key in ("mean E2E", "cold", "hidden", "error"))]
    worst = []
    for law, jitter in dict.fromkeys((row["law"], row["jitter"]) for row in rows):
        cells = [row for row in rows if (row["law"], row["jitter"]) == (law, jitter)]
        largest = [max(float(cell[key]) for cell in cells) for key in ("mean E2E", "cold", "hidden", "error")]
        least = min(float(cell["tok/s"]) for cell in cells)
        worst.append([law, jitter, *(f"{value:.3f}" for value in (least, *largest))])
    return markdown(header, worst)


def main() -> None:
    """Print the tables."""
    bench = start(
        "learned_law",
        "The iteration-time law learned online, against the same policy given it.",
    )
    quick = bench.options.quick
    names = [*shipped(), *MADE_UP]
    workloads = WORKLOADS[:1] if quick else WORKLOADS
    seeds = FIXED.seeds["compare"][: 1 if quick else 5]
    num_requests = 1_500 if quick else 3_000
    results: dict[Cell, list[dict[str, float]]] = {}
    with multiprocessing.Pool(os.cpu_count()) as pool:
        pairs = [(name, workload) for name in names for workload in workloads]
        bounds = dict(tqdm(pool.imap_unordered(capacity, pairs), total=len(pairs), desc="bounds", leave=False))
        jobs: list[Job] = [
            ((*pair, load, jitter), num_requests, seed, bound)
            for pair, bound in bounds.items()
            for load in LOADS
            for jitter in JITTERS
            for seed in seeds
        ]
        for cell, figures in tqdm(pool.imap_unordered(run, jobs), total=len(jobs), desc="runs", leave=False):
            results.setdefault(cell, []).append(figures)
    for cell in sorted(results, key=lambda cell: (names.index(cell[0]), *cell[1:])):
        runs = results[cell]
        mean = {key: float(np.mean([figures[key] for figures in runs])) for key in runs[0]}
        name, workload, load, jitter = cell
        bench.rows.append(
            {
                "law": name,
                "workload": workload,
                "load": load,
                "jitter": jitter,
                "learned from": round(mean["learned from"]),
                "tok/s": round(mean["learned tokens"] / mean["known tokens"], 4),
                "mean E2E": round(mean["learned e2e"] / mean["known e2e"], 4),
                "cold": round(mean["cold e2e"] / mean["known e2e"], 4),
                "hidden": round(mean["hidden e2e"] / mean["known e2e"], 4),
                "error": round(mean["error"], 4),
            }
        )
    for jitter in JITTERS:
        rows = [row for row in bench.rows if row["jitter"] == jitter]
        noise = f"{100 * jitter:g} % jitter"
        bench.claim(f"least tok/s, learned / known, {noise}", min(row["tok/s"] for row in rows), "", ">= 0.99")
        bench.claim(f"most mean E2E, learned / known, {noise}", max(row["mean E2E"] for row in rows), "", "<= 1.02")
        bench.claim(f"most mean E2E from a cold start / known, {noise}", max(row["cold"] for row in rows), "")
        bench.claim(f"largest error, {noise}", max(row["error"] for row in rows), "")
    if shutil.which("valgrind") is not None:
        counts = per_iteration()
        silent, timed = (counts[case] for case in CASES)
        bench.claim("instructions of an iteration, learning / not", timed / silent, "", "<= 1.1")
        bench.claim("instructions of learning, a step", timed - silent, "instructions")
    bench.finish()


if __name__ == "__main__":
    main()
