"""The paper's extensions and a variant: rates that change over time, memory by segments, boundaries as printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reproduce.figures import segment_memory
from reproduce.theorems import CASES, LARGE, Instance, exponent
from reproduce.workloads import D0, D1, LMSYS, word_counts
from wait_core import _core, simulate
from wait_core.workload import Requests

if TYPE_CHECKING:
    import numpy.typing as npt

    from reproduce.study import Study


@dataclass(frozen=True)
class Varying:
    """Two types, outputs 3 and 8 and prompt 4, whose rate and share of the long one alternate between two values.

    Attributes
    ----------
    low : float
        Rate in every second part of a period, as a share of the rate in the others.
    thresholds : tuple
        n_1 and n_2; the high rate leaves 5 % of slack, and the shares p_2 are .4 and .3.

    """

    low: float
    thresholds: tuple[int, int] = (10, 5)
    periods: int = 4
    shares: tuple[float, float] = (0.4, 0.3)

    def high(self) -> float:
        """Rate in the first part of a period, 1/s: 0.95 n_1 per iteration of a full batch."""
        of = Instance(((4, 3, 1 - self.shares[0]), (4, 8, self.shares[0])))
        time = of.planner().nested([3, 8], per_segment=list(self.thresholds))["iteration_time"]
        return float(0.95 * self.thresholds[0] / time)

    def requests(self, horizon_s: float, seed: int) -> Requests:
        """Poisson arrivals until a period after T, by thinning; a period is T over `periods`, as λ → ζλ leaves it."""
        random = np.random.Generator(np.random.PCG64(seed))
        half = horizon_s / self.periods / 2
        end = horizon_s + 2 * half
        times = np.sort(random.random(random.poisson(self.high() * end)) * end)
        second = (times // half).astype(int) % 2 == 1
        kept = random.random(len(times)) < np.where(second, self.low, 1.0)
        long = random.random(len(times)) < np.where(second, self.shares[1], self.shares[0])
        at, output = times[kept], np.where(long, 8, 3)[kept].astype(np.uint32)
        return Requests(name="varying", arrival_ns=(at * 1e9).astype(np.uint64), prompt=np.full(len(at), 4, np.uint32),
                        output=output, rate=len(at) / end)  # fmt: skip

    def run(self, horizon_s: float, seed: int) -> dict[str, float]:
        """One run: output tokens that had arrived by T and were not completed, and the latencies of those arrivals."""
        requests, law = self.requests(horizon_s, seed), Instance(()).law
        report = simulate(
            "nested-wait", requests=requests, iteration_time=law, kv_blocks=LARGE, block_size=1, max_num_seqs=LARGE,
            token_budget=LARGE, convention="paper", work_conserving=False, boundaries=[3, 8],
            thresholds=[float(n) for n in self.thresholds],
        )  # fmt: skip
        run = report.run
        by = np.count_nonzero(run.arrival_ns < horizon_s * 1e9)
        latency = (run.finished_ns[:by] - run.arrival_ns[:by]) * 1e-9
        unfinished = run.finished_ns[:by] > horizon_s * 1e9
        return {
            "lost": float(run.output[:by][unfinished].sum()),
            "throughput": float(run.output[:by].sum()) / horizon_s,
            "mean": float(latency.mean()),
            "ttft": float((run.first_token_ns[:by] - run.arrival_ns[:by]).mean() * 1e-9),
            "longest": float(latency.max()),
        }


def theorem3(study: Study) -> None:
    """Time-varying rates: gap and delays in ζT, with a rate bounded below and with lulls, which Theorem 3 excludes."""
    horizons, runs = ((8.0, 32.0, 128.0), 5) if study.quick else ((2.0, 8.0, 32.0, 128.0), 40)
    for low, name in ((0.3, "rate never below 0.3 of its maximum"), (0.0, "no arrivals in every second window")):
        varying = Varying(low)
        found = [[varying.run(horizon, seed) for seed in range(runs)] for horizon in horizons]
        mean = {key: np.array([np.mean([run[key] for run in at]) for at in found]) for key in found[0][0]}
        gap = mean["lost"] / np.array(horizons) / mean["throughput"]
        study.bench.rows += [
            {"experiment": "theorem3", "rates": name, "T s": horizon, "gap": gap[i], "latency s": mean["mean"][i],
             "TTFT s": mean["ttft"][i], "longest s": mean["longest"][i]}
            for i, horizon in enumerate(horizons)
        ]  # fmt: skip
        holds = low > 0
        for quantity, values, paper, goal in (
            ("gap", gap, "≤ -1", "<= -0.9" if holds else ""),
            ("mean latency", mean["mean"], "≤ 0", "<= 0.1" if holds else ""),
            ("TTFT", mean["ttft"], "≤ 0", "<= 0.1" if holds else ""),
            ("longest latency", mean["longest"], "", "" if holds else ">= 0.8"),
        ):
            # The longest latency is that of a lull, plus what there is without: its growth shows at long horizons.
            last = slice(-2 if quantity == "longest latency" else 0, None)
            value = exponent(list(horizons)[last], values[last])
            study.bench.claim(f"Theorem 3, {name}: exponent of {quantity} in ζT", value, "", goal)
            study.state("theorem3", f"exponent of the {quantity} in ζT, {name}", paper if holds else "", f"{value:.2f}")
        if holds:
            lull = varying.thresholds[0] / (low * varying.high())
            study.state("theorem3", f"sup ζE[τ₁] ≤ H, {name}: H = n_1/λ_min (s)", "H < ∞", f"{lull:.3f}")


def population() -> tuple[float, npt.NDArray[np.uint32], str]:
    """Mean prompt (the paper has one l), outputs and name of the lmsys population: word counts if they are here."""
    words = word_counts(least=1)
    prompt, output = LMSYS.lengths() if words is None else words
    return float(prompt.mean()), output, "synthetic" if words is None else "words"


def memory_of(count: int, rate: float, horizon_s: float, delta: float) -> dict[str, float] | None:
    """Return the least memory of Nested WAIT with η = 0.05 and its three terms (tokens); None where no chain keeps up.

    The chain n_k = n_1 q_2 … q_k is taken in the size that keeps up with the least memory.
    """
    prompt, output, _ = population()
    lengths, counts = np.unique(output, return_counts=True)
    types = [(round(prompt), int(l), rate * float(n) / len(output)) for l, n in zip(lengths, counts, strict=True)]  # noqa: E741
    # λ → ζλ, d → d/ζ: the rate of 500/s is ζ = 10 of the rate of 50/s.
    zeta = rate / 50.0
    law = {"law": "linear", "d0": D0 / zeta, "d1": D1 / zeta}
    planner = _core.Planner(types, law, capacity=10**9, convention="paper")
    chain = planner.nested(count=count, margin=0.05)
    if not chain["feasible"]:
        return None
    shape = np.array(chain["per_segment"]) / chain["per_segment"][0]
    segments = planner.segments(count=count)
    best: dict[str, float] | None = None
    for first in np.geomspace(1.0, 100.0, 400):
        n = shape * first
        found = planner.nested(count=count, per_segment=list(n), failure_probability=delta, horizon=horizon_s)
        if not found["feasible"]:
            continue
        later = zip(n[1:], segments[1:], strict=True)
        entry = sum(k * (segment["prompt"] + segment["first_stage"] - 1) for k, segment in later)
        total = found["memory"] + found["buffer"]
        if best is None or total < best["total"]:
            best = {
                "total": total, "batches": found["memory"], "entry": entry, "buffer": found["buffer"] - entry
            }  # fmt: skip
    return best


SEGMENT_CASES = {
    "rate-50": ("50/s, T = 200 s", [(f"δ = {d:g}", 50.0, 200.0, d) for d in (0.1, 1e-5)]),
    "rate-500": ("500/s, T = 200 s", [(f"δ = {d:g}", 500.0, 200.0, d) for d in (0.1, 1e-5)]),
    "horizon": ("50/s, δ = 0.001", [(f"T = {t:g} s", 50.0, t, 0.001) for t in (20.0, 2000.0)]),
}
"""The three figures of memory against the number of segments: title, and (panel, rate, T, δ)."""


def segments(study: Study) -> None:
    """Memory against the number of segments L: three terms and their sum, as the paper's three figures."""
    counts = (5, 10, 20) if study.quick else (4, 5, 6, 7, 8, 10, 12, 15, 18, 20, 22, 25)
    _, _, name = population()
    for key, (title, panels) in SEGMENT_CASES.items():
        drawn = {}
        for panel, rate, horizon_s, delta in panels:
            found = {count: memory_of(count, rate, horizon_s, delta) for count in counts}
            drawn[panel] = {count: terms for count, terms in found.items() if terms is not None}
            values = ", ".join(
                f"{terms['total'] / 1e3:,.0f}k at {count}" if terms else f"x ≥ 1 at {count}"
                for count, terms in found.items()
            )
            study.state("segments", f"memory by L, lmsys ({name}), {title}, {panel}, η = 0.05", "U-shaped", values)
            totals = [terms["total"] for terms in drawn[panel].values()]
            low = min(totals)
            study.bench.claim(f"memory by L, {title}, {panel}: least / at either end", low / min(totals[0], totals[-1]),
                              "", "<= 0.9")  # fmt: skip
        if study.figures:
            segment_memory(study.figures / f"paper-segments-{key}.png", drawn, f"Memory by number of segments, {title}")


def literal(study: Study) -> None:
    """Latency of Algorithm 2 as printed, one iteration more at each boundary, against the folded one."""
    horizon, runs = 32.0, 10 if study.quick else 100
    for case in CASES[:3]:
        base: dict[str, Any] = {"boundaries": case.boundaries, "thresholds": case.thresholds}
        latency = [
            case.instance().repeat("nested-wait", horizon, runs, literal_boundaries=literal, **base)["latency_s"].mean()
            for literal in (False, True)
        ]
        ratio = float(latency[1] / latency[0])
        study.state("literal", f"n = {case.thresholds}: latency with the boundaries as printed / folded", "",
                    f"{ratio:.2f}")  # fmt: skip
        study.bench.claim(f"n = {case.thresholds}: latency with literal / folded boundaries", ratio, "", ">= 1")
