"""What the engines make of a router: `forecast` on chat, where they choose the tokens of an iteration and where not.

The first table has 16 replicas, as in bench/fleet.py, with the best other router of each row and figure: replicas run
`adaptive`, `adaptive` with iterations of a fixed size, or `vllm`. The second has one engine and the same requests in a
Poisson stream and evenly spaced, as from a router that spreads them well. `--markdown` prints the tables of
docs/fleet.md, `--data` writes them to docs/data.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from contract import interval, start
from fleet import A100, OURS, PAIRS, TOLD, Cell, capacity, offered, routers, run

from wait_core import simulate

FIXED_TOKENS: dict[str, Any] = {"policy": "adaptive", "without": ["token-budget"]}
ENGINES: dict[str, dict[str, Any]] = {
    "adaptive": {"policy": "adaptive"},
    "adaptive, 512 tokens": FIXED_TOKENS | {"token_budget": 512},
    "vllm, 1,024 tokens": {"policy": "vllm", "token_budget": 1024},
}
LOADS = (0.8, 0.9, 1.05, 1.2)
SEEDS = (2, 3, 4)
ALONE = 600
"""Requests of the one engine."""


def one_engine(engine: dict[str, Any], load: float, seed: int, share: float, *, even: bool) -> dict[str, float]:
    """Simulate one engine."""
    count = int(share * ALONE)
    requests = offered("chat", load * capacity(Cell("chat", 1, load, 0.0)), count, seed)
    if even:
        times = np.linspace(requests.arrival_ns[0], requests.arrival_ns[-1], count)
        requests = dataclasses.replace(requests, arrival_ns=times.astype(requests.arrival_ns.dtype))
    summary = simulate(requests=requests, seed=seed, **A100 | engine).summary()
    return {key: float(summary[key]) for key in PAIRS}


def main() -> None:
    """Run both."""
    bench = start("fleet_engines", __doc__ or "")
    seeds, share, loads = (SEEDS[:2], 0.1, LOADS[1:2]) if bench.options.quick else (SEEDS, 1.0, LOADS)
    cells = {load: Cell("chat", 16, load, 0.1) for load in loads}
    names = [name for name in routers(cells[loads[0]]) if name not in TOLD]
    capacity(cells[loads[0]])
    jobs = [(engine, load, name, seed) for engine in ENGINES for load in loads for name in names for seed in seeds]

    def of_fleet(job: tuple[str, float, str, int]) -> dict[str, float]:
        engine, load, name, seed = job
        return run(cells[load], name, seed, share, **ENGINES[engine])

    # The core runs without Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(jobs, pool.map(of_fleet, jobs), strict=True))
    for engine in ENGINES:
        for load in loads:
            made = {name: [found[engine, load, name, seed] for seed in seeds] for name in names}
            row: dict[str, Any] = {"engines": engine, "load": load}
            for key, figure in PAIRS.items():
                means = {name: statistics.mean(each[key] for each in made[name]) for name in names}
                best = min((name for name in names if name != OURS), key=means.__getitem__)
                value, half = interval([a[key] / b[key] for a, b in zip(made[OURS], made[best], strict=True)])
                row |= {f"best other, {figure}": best, f"{figure} / best other": f"{value:.3f}+-{half:.3f}"}
                row[f"{figure}, {OURS}, ms"] = f"{means[OURS]:.0f}"
                bench.claim(f"{engine}, load {load}: {figure} / {best}", value, f"+-{half:.3f}")
            bench.rows.append(row)
    alone = bench.tables["alone"] = []
    for engine, settings in ENGINES.items():
        for load in loads:
            row = {"engine": engine, "load": load}
            for arrivals in ("Poisson", "evenly spaced"):
                even = arrivals != "Poisson"
                made_alone = [one_engine(settings, load, seed, share, even=even) for seed in seeds]
                for key, figure in PAIRS.items():
                    row[f"{figure}, {arrivals}, ms"] = f"{statistics.mean(each[key] for each in made_alone):.0f}"
            alone.append(row)
    bench.finish()


if __name__ == "__main__":
    main()
