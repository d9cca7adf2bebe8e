"""The fluid equilibrium: the paper's table of M*, and WAIT in the simulator against what the formulas promise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from reproduce import published
from reproduce.figures import memory_curve
from reproduce.runs import Outcome
from reproduce.workloads import BLOCK, D0, D1, KV_BLOCKS, LINEAR, LMSYS, word_counts
from wait_core import simulate
from wait_core.workload import sampled
from wait_core.workload.datasets import Component, Constant, Dataset, Phase, Poisson

if TYPE_CHECKING:
    from reproduce.study import Study

CAPACITY = KV_BLOCKS * BLOCK

# Types as (prompt, output, rate) of the paper's first version, and integer thresholds n = rate x spacing. The rates of
# the second and third are scaled down into the stability region of the law used here.
CASES: dict[str, tuple[tuple[tuple[int, int, float], ...], tuple[int, ...]]] = {
    "(10,10)@2000 + (10,20)@1000": (((10, 10, 2000.0), (10, 20, 1000.0)), (40, 20)),
    "20/{100,200,300}@36:24:12": (((20, 100, 36.0), (20, 200, 24.0), (20, 300, 12.0)), (3, 2, 1)),
    "10/{20,40,80,160}@10:20:40:80": (((10, 20, 10.0), (10, 40, 20.0), (10, 80, 40.0), (10, 160, 80.0)), (1, 2, 4, 8)),
}


def token_iterations(prompt: Any, output: Any) -> Any:
    """Return A = (l' + 1)(l + l'/2): KV tokens x iterations of a request (§3)."""
    return (output + 1.0) * (prompt + output / 2.0)


def memory(rate: Any, mean: float) -> Any:
    """M* = d0 λ E[A] / (1 - d1 λ E[A]) in KV tokens; NaN where there is no equilibrium (§3)."""
    load = rate * mean
    return np.where(D1 * load < 1.0, D0 * load / (1.0 - D1 * load), np.nan)


def crossing(mean: float) -> float:
    """Rate at which M* = C."""
    return CAPACITY / (mean * (D0 + D1 * CAPACITY))


def fluid(study: Study) -> None:
    """Table of M*, then WAIT against the fluid model."""
    means = {"published E[A]": published.TOKEN_ITERATIONS}
    means["synthetic population"] = float(token_iterations(*map(np.float64, LMSYS.lengths())).mean())
    if (words := word_counts(least=0)) is not None:
        means["word counts"] = float(token_iterations(*map(np.float64, words)).mean())
    for name, mean in means.items():
        ours = {rate: float(memory(rate, mean)) for rate in published.MEMORY}
        error = max(abs(ours[rate] / printed - 1.0) for rate, printed in published.MEMORY.items())
        study.state("fluid", f"M* at {'/'.join(map(str, ours))} per s, {name}, E[A] = {mean:,.0f} (tokens)",
                    " / ".join(f"{value:,}" for value in published.MEMORY.values()),
                    " / ".join(f"{value:,.0f}" for value in ours.values()))  # fmt: skip
        study.state("fluid", f"M* = C at, {name} (1/s)", f"≈ {published.CROSSING}", f"{crossing(mean):.2f}")
        # The synthetic population is fitted to moments, not to this table.
        goal = "<= 0.05" if name == "synthetic population" else "<= 0.005"
        study.bench.claim(f"fluid: largest relative error of M*, {name}", error, "", goal)
        distance = abs(crossing(mean) - published.CROSSING)
        study.bench.claim(f"fluid: distance of the crossing, {name}", distance, "1/s", "<= 0.5")
    if study.figures:
        rates = np.linspace(10, 85, 300)
        curves = {
            f"{name.removesuffix(' E[A]')}: E[A] = {mean:,.0f}": memory(rates, mean) for name, mean in means.items()
        }
        memory_curve(study.figures / "paper-fluid.png", rates, curves, published.MEMORY, CAPACITY)
    for name, (types, thresholds) in CASES.items():
        simulated(study, name, types, thresholds)


def simulated(study: Study, name: str, types: tuple[tuple[int, int, float], ...], thresholds: tuple[int, ...]) -> None:
    """WAIT with integer thresholds and blocks of one token, the paper's convention: peak KV is M^π, no preemptions."""
    costs = [token_iterations(prompt, output) for prompt, output, _ in types]
    planned = sum(n * cost for n, cost in zip(thresholds, costs, strict=True))
    load = D1 * sum(rate * cost for (_, _, rate), cost in zip(types, costs, strict=True))
    total = sum(rate for _, _, rate in types)
    parts = tuple(Component(str(j), rate / total, Constant(p), Constant(o)) for j, (p, o, rate) in enumerate(types))
    source = Dataset("fluid", name, Poisson(), (Phase(0.0, parts),))
    # Long against the latency, so that the window is in equilibrium.
    n = int(total * (100 if study.quick else 300))
    peaks, completions, evicted = [], [], 0.0
    for seed in study.seeds:
        report = simulate(
            "wait", requests=sampled(source, request_rate=total, num_prompts=n, seed=seed), iteration_time=LINEAR,
            kv_blocks=CAPACITY, block_size=1, convention="paper", token_budget=1 << 24, max_num_seqs=1 << 20,
            work_conserving=False, thresholds=[float(k) for k in thresholds],
            types=[{"prompt": p, "output": o, "rate": rate} for p, o, rate in types],
        )  # fmt: skip
        outcome = Outcome.of(report)
        peaks.append(report.summary()["peak_kv_blocks"])
        completions.append(outcome.completion)
        evicted += outcome.preempted
    peak = f"{min(peaks):,} to {max(peaks):,}"
    study.state("fluid", f"WAIT on {name}, x = {load:.2f}: peak KV (tokens)", f"M^π = {planned:,.0f}", peak)
    study.state("fluid", f"WAIT on {name}: completions / arrivals", "1", f"{np.mean(completions):.4f}")
    study.bench.claim(f"fluid, {name}: peak KV / M^π", max(peaks) / planned, "", "<= 1")
    study.bench.claim(f"fluid, {name}: smallest peak KV / M^π", min(peaks) / planned, "", ">= 0.98")
    study.bench.claim(f"fluid, {name}: share of requests preempted", evicted, "", "<= 0")
    study.bench.claim(f"fluid, {name}: completions / arrivals", float(np.mean(completions)), "", ">= 0.98")
