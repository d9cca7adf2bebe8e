"""`adaptive` against stock vLLM in worlds that nobody chose.

A world is an engine and its traffic, drawn from a seed: one of three laws, 32 to 1,024 seats, a token budget, prompts
and outputs that are lognormal (a quarter of the worlds have outputs that are nearly alike, a quarter a second kind of
them), memory for 4 to 600 requests of mean size, arrivals from regular to bursty, and half to twice what stock serves.
No world is left out. Each is simulated with three seeds, by stock, by `adaptive` that knows the law and by `adaptive`
that learns it; lengths are hidden. Figures are ratios to stock, geometric means over the seeds.

    python bench/worlds.py
"""

from __future__ import annotations

import math
import multiprocessing
import os
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from contract import start

from wait_core import simulate
from wait_core.workload import Requests

if TYPE_CHECKING:
    import numpy.typing as npt

LAWS = ("llama-2-7b-a100-80gb", "llama-3.1-8b-h100-sxm", "qwen3-32b-h100-sxm-tp2")
ARMS: dict[str, dict[str, Any]] = {
    "stock": {"policy": "vllm"},
    "law known": {"policy": "adaptive"},
    "law learned": {"policy": "adaptive", "iteration_time_knowledge": "learned"},
}
FIGURES = {
    "output_throughput": ("output tok/s", ">= 0.995"),
    "mean_e2el_ms": ("mean E2E", "<= 1.01"),
    "p99_ttft_ms": ("p99 TTFT", "<= 1.05"),
    "mean_ttft_ms": ("mean TTFT", ""),
}
"""Figures, their names, and their goals: those of the panel against stock."""
SEEDS = (1, 2, 3)
BLOCK = 16
LONGEST_PROMPT, LONGEST_OUTPUT = 16_000, 6_000


class World(NamedTuple):
    """An engine and its traffic.

    Attributes
    ----------
    prompt, output
        Median tokens, and the standard deviation of their logarithm.
    others
        A second kind of outputs: median tokens, and the share of requests that have them.
    memory
        KV cache, in requests of mean size.
    burstiness
        Shape of the gamma-distributed gaps between arrivals: 1 is Poisson, below is burstier.
    load
        Requests/s, relative to what stock serves if all arrive at once.
    """

    law: str
    seats: int
    token_budget: int
    prompt: tuple[float, float]
    output: tuple[float, float]
    others: tuple[float, float]
    memory: float
    burstiness: float
    load: float

    def __str__(self) -> str:
        """Return it in a line."""
        (prompt, prompt_sd), (output, output_sd) = self.prompt, self.output
        others = f" ({self.others[1]:.0%} {self.others[0]:.0f})" if self.others[1] else ""
        return (
            f"{self.law}, {self.seats} seats, budget {self.token_budget}, prompts {prompt:.0f} (sd {prompt_sd:.2f}), "
            f"outputs {output:.0f} (sd {output_sd:.2f}){others}, memory for {self.memory:.0f}, "
            f"burstiness {self.burstiness:g}, load {self.load:g}"
        )


def drawn(number: int) -> World:
    """Draw a world."""
    draw = np.random.default_rng(number)

    def between(low: float, high: float) -> float:
        return float(np.exp(draw.uniform(np.log(low), np.log(high))))

    seats = int(draw.choice([32, 64, 128, 256, 512, 1024]))
    output_sd = draw.uniform(0.0, 0.2) if draw.random() < 0.25 else draw.uniform(0.2, 1.6)
    return World(
        law=LAWS[draw.integers(len(LAWS))],
        seats=seats,
        token_budget=max(seats, int(draw.choice([1024, 2048, 4096, 8192]))),
        prompt=(between(30, 4000), float(draw.uniform(0.0, 1.5))),
        output=(between(10, 2000), float(output_sd)),
        others=(between(10, 2000), float(draw.uniform(0.05, 0.5)) if draw.random() < 0.25 else 0.0),
        memory=between(4, 600),
        burstiness=float(draw.choice([0.05, 0.3, 1, 4])),
        load=float(draw.choice([0.5, 0.8, 0.95, 1.1, 1.6, 2.0])),
    )


def lengths(draw: np.random.Generator, kind: tuple[float, float], most: int, count: int) -> npt.NDArray[np.uint32]:
    """Draw lognormal lengths."""
    median, sd = kind
    return np.clip(median * np.exp(sd * draw.standard_normal(count)), 1, most).astype(np.uint32)


def offered(world: World, seed: int, count: int, rate: float) -> Requests:
    """Make the requests of a run; an infinite rate offers all at once."""
    draw = np.random.default_rng([seed, count])
    prompt = lengths(draw, world.prompt, LONGEST_PROMPT, count)
    output = lengths(draw, world.output, LONGEST_OUTPUT, count)
    others = lengths(draw, (world.others[0], 0.3), LONGEST_OUTPUT, count)
    output = np.where(draw.random(count) < world.others[1], others, output)
    gaps = draw.gamma(world.burstiness, 1 / world.burstiness, count) / rate
    return Requests(
        name=str(world), arrival_ns=(1e9 * np.cumsum(gaps)).astype(np.uint64), prompt=prompt, output=output, rate=rate
    )


def compared(world: World, count: int) -> dict[str, dict[str, float]]:
    """Simulate a world; return the figures of `adaptive` relative to stock's, by arm."""
    at_once = offered(world, 0, count, math.inf)
    mean = float((at_once.prompt + 0.5 * at_once.output).mean())
    largest = max(
        int((each.prompt + each.output).max()) for each in (offered(world, seed, count, 1.0) for seed in (0, *SEEDS))
    )
    run = partial(
        simulate,
        iteration_time=world.law,
        kv_blocks=1 + math.ceil(max(world.memory * mean, largest) / BLOCK),
        block_size=BLOCK,
        max_num_seqs=world.seats,
        token_budget=world.token_budget,
    )
    rate = world.load * count / run(**ARMS["stock"], requests=at_once).summary()["duration"]
    logs: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    for seed in SEEDS:
        requests = offered(world, seed, count, rate)
        for arm, settings in ARMS.items():
            summary = run(**settings, requests=requests).summary()
            logs[arm].append([math.log(summary[figure]) for figure in FIGURES])
    means = {arm: np.mean(each, axis=0) for arm, each in logs.items()}
    return {
        arm: dict(zip(FIGURES, map(float, np.exp(means[arm] - means["stock"])), strict=True))
        for arm in ARMS
        if arm != "stock"
    }


def main() -> None:
    """Run the benchmark."""
    bench = start(
        "worlds",
        "adaptive against stock in worlds drawn at random",
        worlds={"type": int, "default": 500},
        requests={"type": int, "default": 1500},
    )
    options = bench.options
    if options.quick:
        options.worlds, options.requests = 20, 300
    worlds = [drawn(number) for number in range(options.worlds)]
    with multiprocessing.Pool(os.cpu_count()) as pool:
        results = pool.map(partial(compared, count=options.requests), worlds, chunksize=4)
    worst = []
    for arm in (arm for arm in ARMS if arm != "stock"):
        for figure, (name, goal) in FIGURES.items():
            ratios = np.array([result[arm][figure] for result in results])
            high = goal.startswith(">")
            ends = np.quantile(ratios, [0.0, 0.05, 0.5] if high else [1.0, 0.95, 0.5])
            row = {"relative to stock": f"{name}, {arm}", "geometric mean": f"{np.exp(np.log(ratios).mean()):.3f}"}
            row |= {key: f"{value:.3f}" for key, value in zip(("worst", "worst 5 %", "median"), ends, strict=True)}
            if goal:
                met = ratios >= float(goal.split()[1]) if high else ratios <= float(goal.split()[1])
                row |= {"goal": goal, "worlds that meet it": f"{met.sum()} of {met.size}"}
                bench.claim(f"{name}, {arm}: worlds with {goal}", met.mean(), "share", ">= 0.95")
                bench.claim(f"{name}, {arm}: worst", ends[0], "")
            bench.rows.append(row)
        by_e2e = sorted(zip(worlds, results, strict=True), key=lambda each: -each[1][arm]["mean_e2el_ms"])
        for world, result in by_e2e[:5]:
            figures = {name: f"{result[arm][figure]:.3f}" for figure, (name, _) in FIGURES.items()}
            worst.append({"arm": arm, "world": str(world)} | figures)
    bench.tables["worst"] = worst
    bench.finish()


if __name__ == "__main__":
    main()
