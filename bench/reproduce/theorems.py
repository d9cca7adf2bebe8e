"""The theorems, measured: gap and delays against ζT, the cost of hidden lengths at C = M*, how often memory overflows.

Instances are small enough for thousands of runs, in the paper's convention and with its law; block size 1. Scaling
λ → ζλ, d → d/ζ only changes the unit of time, so ζT is varied through T.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core import _core
from wait_core.workload.datasets import Component, Constant, Dataset, Phase, Poisson

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from reproduce.study import Study

    Floats = npt.NDArray[np.float64]

LARGE = 10**6
"""Memory, slots and token budget that never bind."""


@dataclass(frozen=True)
class Instance:
    """Types (prompt, output, rate) under the law d0 + d1 KV; seconds and tokens."""

    types: tuple[tuple[int, int, float], ...]
    d0: float = 0.01
    d1: float = 1e-4

    @staticmethod
    def at_equilibrium(kinds: Sequence[tuple[int, int]], n: Sequence[int], load: float = 1.0) -> Instance:
        """Rates λ_j = load n_j/ΔT(n): at load 1 the thresholds n are the fluid equilibrium, without slack."""
        law = Instance(())
        spacing = law.d0 + law.d1 * sum(count * cost(*kind) for count, kind in zip(n, kinds, strict=True))
        rates = [load * count / spacing for count in n]
        return Instance(tuple((*kind, rate) for kind, rate in zip(kinds, rates, strict=True)))

    @property
    def rate(self) -> float:
        """Requests per second."""
        return sum(rate for *_, rate in self.types)

    @property
    def throughput(self) -> float:
        """Throughput*: output tokens per second of the fluid model."""
        return sum(rate * output for _, output, rate in self.types)

    @property
    def load(self) -> float:
        """The paper's x."""
        return self.d1 * sum(rate * cost(prompt, output) for prompt, output, rate in self.types)

    @property
    def memory(self) -> float:
        """M*, for x < 1."""
        return self.load / self.d1 * self.d0 / (1 - self.load)

    def planner(self, capacity: int = LARGE) -> _core.Planner:
        """Return the formulas for this instance."""
        return _core.Planner(list(self.types), self.law, capacity=capacity, convention="paper")

    @property
    def law(self) -> dict[str, Any]:
        """The iteration-time law."""
        return {"law": "linear", "d0": self.d0, "d1": self.d1}

    def scaled(self, zeta: float) -> Instance:
        """λ → ζλ, d → d/ζ."""
        types = tuple((prompt, output, rate * zeta) for prompt, output, rate in self.types)
        return Instance(types, self.d0 / zeta, self.d1 / zeta)

    def repeat(
        self, policy: str, horizon_s: float, runs: int, *, capacity: int = LARGE, first_seed: int = 0, **settings: Any
    ) -> dict[str, npt.NDArray[Any]]:
        """Simulate [0, T] `runs` times; the columns of `_core.batch`, and `lost`: throughput* T - output tokens."""
        components = tuple(
            Component(str(j), rate, Constant(prompt), Constant(output))
            for j, (prompt, output, rate) in enumerate(self.types)
        )
        dataset = Dataset(name="types", description="", arrivals=Poisson(), phases=(Phase(0.0, components),))
        common = {
            "policy": policy,
            "kv_blocks": capacity,
            "block_size": 1,
            "max_num_seqs": LARGE,
            "token_budget": LARGE,
            "convention": "paper",
            "preemption": "restart",
            "work_conserving": False,
            "types": [{"prompt": prompt, "output": output, "rate": rate} for prompt, output, rate in self.types],
        }
        found = _core.batch(
            common | settings,
            self.law,
            dataset.to_dict(),
            request_rate=self.rate,
            horizon_ns=round(horizon_s * 1e9),
            runs=runs,
            first_seed=first_seed,
            lengths_known=policy in {"wait", "clairvoyant"},
            typed=True,
            threads=os.cpu_count() or 1,
        )
        return found | {"lost": self.throughput * horizon_s - found["output_tokens"]}


def cost(prompt: int, output: int) -> float:
    """Return A = (l' + 1)(l + l'/2)."""
    return (output + 1) * (prompt + output / 2)


@dataclass(frozen=True)
class Growth:
    """Means over the runs of what was lost (output tokens), latency and TTFT (s), by horizon."""

    horizons: tuple[float, ...]
    lost: Floats
    latency: Floats
    ttft: Floats
    gap: Floats
    peak: int
    evictions: int

    @staticmethod
    def measure(instance: Instance, policy: str, horizons: Sequence[float], runs: int, **settings: Any) -> Growth:
        """Run the same seeds up to each horizon."""
        found = [instance.repeat(policy, horizon, runs, **settings) for horizon in horizons]
        mean = {name: np.array([columns[name].mean() for columns in found]) for name in ("lost", "latency_s", "ttft_s")}
        return Growth(
            tuple(horizons),
            mean["lost"],
            mean["latency_s"],
            mean["ttft_s"],
            mean["lost"] / np.array(horizons) / instance.throughput,
            max(int(columns["peak_kv_blocks"].max()) for columns in found),
            sum(int(columns["preemptions"].sum()) for columns in found),
        )

    def rates(self) -> Floats:
        """Output tokens lost per second between one horizon and the next."""
        return np.diff(self.lost) / np.diff(self.horizons)


def increment_exponent(horizons: Sequence[float], values: Floats) -> float:
    """Return p of values = a + b T^p, horizons being geometric: the growth of the increments, in which a cancels."""
    return exponent(horizons[1:], np.diff(values))


def exponent(horizons: Sequence[float], values: Floats) -> float:
    """Return p of values = b T^p."""
    return float(np.polyfit(np.log(horizons), np.log(values), 1)[0])


KINDS: Mapping[str, tuple[tuple[tuple[int, int], ...], tuple[int, ...]]] = {
    "one type": (((4, 3),), (10,)),
    "two types": (((4, 3), (2, 6)), (20, 10)),
}
"""Types (prompt, output) and integer thresholds."""


def theorem1(study: Study) -> None:
    """WAIT: exponents of gap and delays in ζT, without slack (C = M* = M^π) and with 5 %."""
    horizons, runs = ((2.0, 8.0, 32.0, 128.0), 100) if study.quick else ((8.0, 32.0, 128.0, 512.0), 400)
    for name, (kinds, n) in KINDS.items():
        capacity = round(sum(count * cost(*kind) for count, kind in zip(n, kinds, strict=True)))
        for load, slack in ((1.0, "no slack"), (0.95, "5 % slack")):
            instance = Instance.at_equilibrium(kinds, n, load)
            growth = Growth.measure(instance, "wait", horizons, runs, capacity=capacity, thresholds=n)
            if load == 1.0:
                gap = increment_exponent(horizons, growth.lost) - 1
                delays = [increment_exponent(horizons, values) for values in (growth.latency, growth.ttft)]
                goals = ("<= -0.4", "<= 0.6")
            else:
                gap = exponent(horizons, growth.gap)
                delays = [exponent(horizons[1:], values[1:]) for values in (growth.latency, growth.ttft)]
                goals = ("<= -0.9", "<= 0.05")
            study.bench.rows += [
                {"experiment": "theorem1", "types": name, "slack": slack, "T s": horizon, "gap": growth.gap[i],
                 "latency s": growth.latency[i], "TTFT s": growth.ttft[i]}
                for i, horizon in enumerate(horizons)
            ]  # fmt: skip
            for quantity, value, goal, paper in (
                ("gap", gap, goals[0], "≤ -1/2" if load == 1.0 else "≤ -1"),
                ("latency", delays[0], goals[1], "≤ 1/2" if load == 1.0 else "≤ 0"),
                ("TTFT", delays[1], goals[1], "≤ 1/2" if load == 1.0 else "≤ 0"),
            ):
                study.bench.claim(f"Theorem 1, {name}, {slack}: exponent of {quantity} in T", value, "", goal)
                study.state("theorem1", f"exponent of the {quantity} in ζT, {name}, {slack}", paper, f"{value:.2f}")
            study.bench.claim(f"Theorem 1, {name}, {slack}: peak memory / M^π", growth.peak / capacity, "", "<= 1")
            study.bench.claim(f"Theorem 1, {name}, {slack}: preemptions", growth.evictions, "requests", "<= 0")
    boundary(study)


def boundary(study: Study) -> None:
    """At C = M*: WAIT's gap and delays, and what policies lose that know the lengths and hold memory back.

    The paper's lower bound is about latency and TTFT, and says nothing about the gap; that of WAIT is Theorem 1's, and
    the clairvoyant orders lose a constant share of throughput*.
    """
    horizons, runs = ((8.0, 32.0, 128.0), 100) if study.quick else ((8.0, 32.0, 128.0, 512.0), 200)
    instance = Instance.at_equilibrium([(4, 3), (4, 8)], [6, 4])
    capacity = round(instance.memory)
    wait = Growth.measure(instance, "wait", horizons, runs, capacity=capacity, thresholds=[6, 4])
    for quantity, values, paper in (("latency", wait.latency, "≥ 1/2"), ("TTFT", wait.ttft, "≥ 1/2")):
        value = increment_exponent(horizons, values)
        study.bench.claim(f"C = M*, wait: exponent of {quantity} in T", value, "", ">= 0.4")
        study.state("theorem1", f"exponent of the {quantity} in ζT, C = M*, WAIT", paper, f"{value:.2f}")
    gap = increment_exponent(horizons, wait.lost) - 1
    study.bench.claim("C = M*, wait: exponent of gap in T", gap, "", "<= -0.4")
    study.state("theorem1", "exponent of the gap in ζT, C = M*, WAIT", "≤ -1/2", f"{gap:.2f}")
    horizons, runs = ((32.0, 128.0, 512.0), 10) if study.quick else ((32.0, 128.0, 512.0, 2048.0), 50)
    for order in ("fcfs", "paced", "srpt"):
        lost = Growth.measure(instance, "clairvoyant", horizons, runs, capacity=capacity, order=order).rates()
        share = lost[-1] / instance.throughput
        study.bench.claim(f"C = M*, clairvoyant, {order}: loss rate, last window / the one before",
                          lost[-1] / lost[-2], "", ">= 0.9")  # fmt: skip
        quantity = f"C = M*, share of throughput* lost after {horizons[-2]:.0f} s, lengths known, {order}"
        study.state("theorem1", quantity, "", f"{share:.2%}")


HIDDEN: Mapping[str, dict[str, Any]] = {
    "vllm": {},
    "sarathi": {},
    "prefill-first": {},
    "nested-wait": {"boundaries": [3, 8], "thresholds": [10, 5]},
    "nested-wait, waiting off": {"boundaries": [3, 8], "thresholds": [10, 5], "work_conserving": True},
}
"""Policies that do not see output lengths, for types (4, 3) and (4, 8) at 6:4."""


def hidden_lengths(horizons: Sequence[float], runs: int) -> dict[str, Growth]:
    """Output lost at C = M* with hidden lengths, and by WAIT, which sees them."""
    instance = Instance.at_equilibrium([(4, 3), (4, 8)], [6, 4])
    capacity = round(instance.memory)
    growths = {
        name: Growth.measure(instance, name.split(",")[0], horizons, runs, capacity=capacity, **settings)
        for name, settings in HIDDEN.items()
    }
    return growths | {"wait": Growth.measure(instance, "wait", horizons, runs, capacity=capacity, thresholds=[6, 4])}


def hidden(study: Study) -> None:
    """At C = M* what WAIT loses per second vanishes, what policies lose that cannot see lengths does not."""
    horizons, runs = ((32.0, 128.0, 512.0), 10) if study.quick else ((32.0, 128.0, 512.0, 2048.0), 50)
    throughput = Instance.at_equilibrium([(4, 3), (4, 8)], [6, 4]).throughput
    for name, growth in hidden_lengths(horizons, runs).items():
        rates = growth.rates() / throughput
        study.bench.rows += [
            {"experiment": "hidden", "policy": name, "from s": begin, "to s": end, "loss rate": rate}
            for begin, end, rate in zip(horizons, horizons[1:], rates, strict=False)
        ]
        goal = "<= 0.7" if name == "wait" else ">= 0.9"
        study.bench.claim(f"C = M*, {name}: loss rate, last window / the one before", rates[-1] / rates[-2], "", goal)
        study.state("hidden", f"C = M*, share of throughput* lost after {horizons[-2]:.0f} s, {name}",
                    "→ 0" if name == "wait" else "Ω(1)", f"{rates[-1]:.2%}")  # fmt: skip


@dataclass(frozen=True)
class NestedCase:
    """Outputs of the types, the share of requests that pass each boundary, thresholds, and (prompt, share) of each."""

    boundaries: tuple[int, ...]
    survival: tuple[float, ...]
    thresholds: tuple[float, ...]
    load: float = 0.95
    prompts: tuple[tuple[int, float], ...] = ((4, 1.0),)

    def instance(self) -> Instance:
        """Rates at which the first threshold has the slack 1 - load."""
        shares = np.array([1.0, *np.cumprod(self.survival), 0.0])
        outputs = list(zip(self.boundaries, -np.diff(shares), strict=True))
        kinds = [(prompt, output, part * share) for output, share in outputs for prompt, part in self.prompts]
        planned = Instance(tuple(kinds)).planner().nested(list(self.boundaries), per_segment=list(self.thresholds))
        rate = self.load * self.thresholds[0] / planned["iteration_time"]
        return Instance(tuple((prompt, output, share * rate) for prompt, output, share in kinds))

    def planned(self, delta: float, horizon_s: float) -> tuple[int, int]:
        """Return M^π and M^π with the safety buffer, whole tokens."""
        plan = self.instance().planner().nested(
            list(self.boundaries), per_segment=list(self.thresholds), failure_probability=delta, horizon=horizon_s
        )  # fmt: skip
        if not plan["feasible"]:
            raise ValueError(f"{self}: {plan['violations']}")
        return round(plan["memory"]), int(np.ceil(plan["memory"] + plan["buffer"] - 1e-9))

    def peaks(self, horizon_s: float, runs: int, first_seed: int = 0) -> dict[str, npt.NDArray[Any]]:
        """Outcomes with memory that never binds: the peak of a run is the memory it needed."""
        settings: dict[str, Any] = {"boundaries": self.boundaries, "thresholds": self.thresholds}
        return self.instance().repeat("nested-wait", horizon_s, runs, first_seed=first_seed, **settings)

    def overflow_row(self, peaks: npt.NDArray[Any], delta: float, horizon_s: float) -> dict[str, Any]:
        """Compare the memory that runs needed with what is planned for (δ, T)."""
        base, capacity = self.planned(delta, horizon_s)
        return {
            "experiment": "overflow",
            "n": self.thresholds,
            "p": self.survival,
            "prompts": [prompt for prompt, _ in self.prompts],
            "T s": horizon_s,
            "δ": delta,
            "M^π": base,
            "buffer": capacity - base,
            "needed": int(np.quantile(peaks, 1 - delta, method="higher")) - base,
            "observed": float(np.mean(peaks > capacity)),
            "without buffer": float(np.mean(peaks > base)),
        }


CASES = (
    NestedCase((3, 8), (0.4,), (10, 5)),
    NestedCase((3, 8), (0.3,), (10, 4)),
    NestedCase((2, 5, 9), (0.5, 0.4), (12, 7, 4)),
    NestedCase((3, 8), (0.4,), (10, 5), prompts=((8, 1.0),)),
    NestedCase((3, 8), (0.4,), (10, 5), prompts=((2, 0.9), (62, 0.1))),
    NestedCase((3, 8), (0.4,), (10.5, 5.25), prompts=((2, 0.9), (62, 0.1))),
)
DELTAS = (0.5, 0.2, 0.05, 0.01)


def overflow(study: Study) -> None:
    """Nested WAIT: how often memory overflows that is planned for (δ, T), and how much of the buffer was needed."""
    horizons, runs = ((2.0,), 2_000) if study.quick else ((2.0, 20.0), 10_000)
    worst = 0.0
    for case in CASES:
        for horizon in horizons:
            found = case.peaks(horizon, runs)
            peaks = found["peak_kv_blocks"]
            rows = [case.overflow_row(peaks, delta, horizon) for delta in DELTAS]
            study.bench.rows += rows
            worst = max(worst, *(row["observed"] / row["δ"] for row in rows))
            columns = {
                key: " / ".join(f"{row[key]:g}" for row in rows) for key in ("δ", "observed", "buffer", "needed")
            }
            of = "/".join(str(prompt) for prompt, _ in case.prompts)
            case_of = f"n = {case.thresholds}, p = {case.survival}, prompts {of}, T = {horizon:g} s, {runs:,} runs"
            study.state("overflow", f"{case_of}: overflow frequency", f"≤ {columns['δ']}", columns["observed"])
            study.state("overflow", f"{case_of}: buffer needed (tokens)", columns["buffer"], columns["needed"])
            if len(case.survival) == 1:
                queue(study, case, case_of, found["peak_parked"], horizon)
    study.bench.claim("Theorem 2: overflow frequency / δ, worst case", worst, "", "<= 1")
    case = CASES[0]
    planned: dict[str, Any] = {"boundaries": case.boundaries, "thresholds": case.thresholds}
    times = (8.0, 32.0, 128.0)
    growth = Growth.measure(case.instance(), "nested-wait", times, 40 if study.quick else 200, **planned)
    for quantity, values, paper, goal in (
        ("gap", growth.gap, "≤ -1", "<= -0.85"),
        ("latency", growth.latency, "≤ 0", "<= 0.05"),
        ("TTFT", growth.ttft, "≤ 0", "<= 0.08"),
    ):
        value = exponent(times, values)
        study.bench.claim(f"Theorem 2, n = {case.thresholds}: exponent of {quantity} in T", value, "", goal)
        study.state("overflow", f"n = {case.thresholds}: exponent of the {quantity} in ζT", paper, f"{value:.2f}")


def queue(study: Study, case: NestedCase, case_of: str, longest: npt.NDArray[Any], horizon_s: float) -> None:
    """Doob's bound on the boundary queue over [0, T], and the longest queue that a share 1 - δ of the runs had."""
    buffer = case.instance().planner().safety_buffer([float(n) for n in case.thresholds], list(case.boundaries))
    bounds = [buffer.queue_bounds(delta, horizon_s)[0] for delta in DELTAS]
    ours = [int(np.quantile(longest, 1 - delta, method="higher")) for delta in DELTAS]
    worst = max(float(np.mean(longest >= bound)) / delta for bound, delta in zip(bounds, DELTAS, strict=True))
    study.bench.claim(f"Doob's bound, {case_of}: queue beyond it / δ, worst case", worst, "", "<= 1")
    study.state("overflow", f"{case_of}: longest boundary queue at δ = {' / '.join(map(str, DELTAS))} (requests)",
                " / ".join(f"{bound:.1f}" for bound in bounds), " / ".join(map(str, ours)))  # fmt: skip
