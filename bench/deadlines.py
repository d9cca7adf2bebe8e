"""Late requests in an overload with a target for the first token, and a flood beside a steady tenant.

Goodput is the share of the requests OFFERED whose first token comes within 2 s and whose tokens follow at 0.1 s on
average, on the panel's GPU, at a load relative to the bound that no schedule exceeds. The oracle knows every length in
advance, refuses the requests whose work is largest (KV tokens times iterations, plus their prompts at the cost of a
token) up to the share that suits it best, and serves the others with `clairvoyant`: the best of a grid of shares,
alone at its share has a GPU of half the speed to itself, the reference of fair queueing; beside that, half of the
memory and slots at full speed, which serves half as much where memory binds.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
from contract import start

from wait_core import simulate
from wait_core.planning import goodput_bound, plan
from wait_core.workload import Requests, panel, sampled

FIXED = panel()
SLO = {"slo_ttft_ms": 1e3 * FIXED.slo["ttft_s"], "slo_tpot_ms": 1e3 * FIXED.slo["tpot_s"]}
ENGINE: dict[str, Any] = {"kv_blocks": FIXED.kv_blocks, "max_num_seqs": FIXED.max_num_seqs}
TARGET = {"policy": "adaptive", "ttft_target": FIXED.slo["ttft_s"]}
ARMS: dict[str, dict[str, Any]] = {
    "stock": {"policy": "vllm"},
    "adaptive": {"policy": "adaptive"},
    "park": TARGET,
    "park, lengths known": TARGET | {"lengths": "known"},
    "refuse": TARGET | {"late": "refuse"},
}
CELLS = [
    ("reasoning-2700", 1.2),
    ("lognormal-870", 1.2),
    ("two tenants", 1.2),
    ("chat", 1.2),
    ("chat", 2.0),
    ("rag", 1.2),
]
BELOW = [("reasoning-2700", 0.9), ("chat", 0.9), ("rag", 0.9)]
SHARES = np.linspace(0.6, 1.0, 11)
ORACLES = [{"order": order, "token_budget": budget} for order in ("fcfs", "srpt") for budget in (384, 2048)]
FIGURES = ("goodput", "output_throughput", "mean_e2el_ms", "completed")
rates: dict[str, float] = {}
"""Requests/s that no schedule exceeds, by workload."""

TENANTS = {"chat": 0.35, "lognormal-870": 0.35, "p512d20": 0.35}
"""The steady tenant's traffic, and its rate as a share of what the GPU carries of it: 0.7 of a half."""


def offered(name: str, rate: float, seed: int, count: int) -> Requests:
    """Make the requests of a cell; the two tenants are chat and lognormal-870 in equal numbers."""
    if name != "two tenants":
        return sampled(name, request_rate=rate, num_prompts=count, seed=seed)
    names = ("chat", "lognormal-870")
    return Requests.of_tenants(
        [sampled(each, request_rate=rate / 2, num_prompts=count // 2, seed=seed + i) for i, each in enumerate(names)]
    )


def capacity(name: str) -> float:
    """Requests/s that no schedule exceeds."""
    requests = replace(offered(name, 1.0, FIXED.seeds["choose"][0], 4000), tenant=None)
    return float(plan(requests=requests, runs=1, **ENGINE).bound.request_rate)


def served(requests: Requests, **settings: Any) -> dict[str, float]:
    """Simulate, and return the figures of the run."""
    summary = simulate(requests=requests, **ENGINE, **settings).summary(**SLO)
    return {key: float(summary[key]) for key in FIGURES}


def oracle(requests: Requests) -> float:
    """Goodput of the best oracle that rejects, over the requests offered."""
    prompt, output = requests.prompt.astype(float), requests.output.astype(float)
    # Most of the cost is memory; the prompt counts as what it delays, a few hundred tokens of a full batch.
    work = output * (prompt + output / 2) + 300.0 * prompt
    best = 0.0
    for share in SHARES:
        kept = work <= np.quantile(work, share)
        part = replace(
            requests, arrival_ns=requests.arrival_ns[kept], prompt=requests.prompt[kept], output=requests.output[kept],
            tenant=None,
        )  # fmt: skip
        for settings in ORACLES:
            found = served(part, policy="clairvoyant", **settings)
            best = max(best, found["goodput"] * len(part) / len(requests))
    return best


def cell(job: tuple[str, float, float, int, int]) -> dict[str, Any]:
    """Run every arm, and the references, on the same requests."""
    name, load, rate, seed, count = job
    requests = offered(name, load * rate, seed, count)
    found: dict[str, Any] = {arm: served(requests, **settings) for arm, settings in ARMS.items()}
    found["oracle"] = oracle(requests) if load >= 1 else float("nan")
    found["bound"] = goodput_bound(replace(requests, tenant=None), SLO["slo_ttft_ms"], SLO["slo_tpot_ms"], **ENGINE)
    return found


def tenants(job: tuple[str, float, int, int]) -> dict[str, float]:
    """p99 TTFT (s) of a steady tenant: alone at its share, beside a flood by weight, and beside it without."""
    name, rate, seed, count = job
    steady = sampled(name, request_rate=rate, num_prompts=count, seed=seed)
    # Twice what the GPU carries, for as long as the steady tenant's requests come.
    total = max(1, round(2.0 * rates["chat"] * count / rate))
    flood = sampled("chat", request_rate=2.0 * rates["chat"], num_prompts=total, seed=seed)
    both = Requests.of_tenants([steady, flood])
    assert both.tenant is not None  # noqa: S101 - two tenants were merged
    mine = both.tenant == 0

    def p99(requests: Requests, of: Any, **settings: Any) -> float:
        run = simulate("adaptive", requests=requests, **(ENGINE | settings)).run
        return float(np.quantile((run.first_token_ns - run.arrival_ns)[of] * 1e-9, 0.99))

    half = {key: value // 2 for key, value in ENGINE.items()}
    # A GPU of half the speed is the same GPU with twice the rate, and all times doubled.
    return {
        "alone at half the speed": 2.0 * p99(steady.scaled(2.0 * steady.rate), slice(None)),
        "alone in half the memory": p99(steady, slice(None), **half),
        "beside a flood, by weight": p99(both, mine, tenant_weights=[1.0, 1.0]),
        "beside a flood, without": p99(both, mine),
    }


def main() -> None:
    """Run, and print the tables and the claims."""
    bench = start(
        "deadlines",
        str(__doc__).splitlines()[0],
        processes={"type": int, "default": os.cpu_count() or 1, "help": "(%(default)s)"},
    )
    seeds = FIXED.seeds["compare"][: 2 if bench.options.quick else 3]
    count = 1500 if bench.options.quick else FIXED.num_requests
    cells = CELLS + BELOW
    for name in {name for name, _ in cells} | set(TENANTS):
        rates[name] = capacity(name)
    with multiprocessing.Pool(bench.options.processes) as pool:
        jobs = [(name, load, rates[name], seed, count) for name, load in cells for seed in seeds]
        runs = dict(zip([(job[0], job[1], job[3]) for job in jobs], pool.map(cell, jobs, 1), strict=True))
        jobs_of_tenants = [
            (name, share * rates[name], seed, count // 4) for name, share in TENANTS.items() for seed in seeds
        ]
        waits = pool.map(tenants, jobs_of_tenants, 1)
    for name, load in cells:
        each = [runs[name, load, seed] for seed in seeds]

        def mean(arm: str, key: str, each: list[dict[str, Any]] = each) -> float:
            return float(statistics.mean(run[arm][key] for run in each))

        row: dict[str, Any] = {"workload": name, "load": load}
        row |= {f"goodput, {arm}": f"{mean(arm, 'goodput'):.3f}" for arm in ARMS}
        best, bound = (statistics.mean(run[key] for run in each) for key in ("oracle", "bound"))
        row |= {"oracle": f"{best:.3f}" if load >= 1 else "", "bound": f"{bound:.3f}"}
        throughput = mean("park", "output_throughput") / mean("adaptive", "output_throughput")
        latency = mean("park", "mean_e2el_ms") / mean("adaptive", "mean_e2el_ms")
        row |= {"tok/s, park / adaptive": f"{throughput:.3f}", "mean E2E": f"{latency:.3f}"}
        bench.rows.append(row)
        where = f"{name}, load {load:g}"
        if load >= 1:
            bench.claim(f"{where}: goodput, park / oracle", mean("park", "goodput") / best, "", ">= 0.9")
            bench.claim(f"{where}: goodput, refuse / oracle", mean("refuse", "goodput") / best, "", ">= 0.9")
            bench.claim(f"{where}: output_throughput, park / adaptive", throughput, "", ">= 0.98")
        else:
            gained = mean("park", "goodput") / mean("adaptive", "goodput")
            bench.claim(f"{where}: goodput, park / adaptive", gained, "", ">= 1")
        bench.claim(f"{where}: requests that finish, park", mean("park", "completed") / count, "", ">= 1")
    rows = bench.tables["tenants"] = []
    for name in TENANTS:
        of = [wait for job, wait in zip(jobs_of_tenants, waits, strict=True) if job[0] == name]
        figures = {key: statistics.mean(wait[key] for wait in of) for key in of[0]}
        rows.append({"steady tenant": name} | {f"p99 TTFT s, {key}": value for key, value in figures.items()})
        ratio = figures["beside a flood, by weight"] / figures["alone at half the speed"]
        bench.claim(f"{name}: p99 TTFT beside a flood / alone at half the speed", ratio, "", "<= 1.5")
    bench.finish()


if __name__ == "__main__":
    main()
