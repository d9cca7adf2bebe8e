"""Trials: a workload simulated with the core, to see how an engine would serve it.

A run of thousands of requests takes milliseconds, less than a formula for a staircase law would; and it is the compiled
core itself that decides, with its cohorts, its preemptions, and the actual arrivals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core._core import WaitCoreError
from wait_core.hardware.kv_groups import context_tokens
from wait_core.simulation.run import simulate
from wait_core.workload import sampled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from wait_core.simulation.run import Report
    from wait_core.workload import Requests

WARM_UP = 0.2
"""Share of the requests, the first, whose delays are left out: they met an empty engine."""
MIDDLE = (0.2, 0.8)
"""Throughput is that between these shares of the completions, neither filling nor draining."""
GENERATIONS = 16
"""Least number of requests of a saturated trial, in multiples of the requests resident at once."""
MOST_REQUESTS = 200_000


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of one run, without its first requests; NaN where nothing was observed.

    Attributes
    ----------
    output_throughput : float
        Output tokens/s, between the middle completions.
    queue_s, ttft_s, tpot_s, e2el_s : float
        Means, s: arrival to admission, to the first token, time per output token, arrival to completion.
    growth : float
        Mean latency of the second half of the requests, over that of the first.
    peak_kv : float
        Most KV blocks in use, as a share of all.
    preemptions : float
        A request.

    """

    output_throughput: float
    queue_s: float
    ttft_s: float
    tpot_s: float
    e2el_s: float
    growth: float
    peak_kv: float
    preemptions: float


FIGURES = tuple(each.name for each in fields(Figures))


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What requests experience, over the simulated runs.

    Attributes
    ----------
    mean, least, most : Figures
        Each figure's mean, least and most over the runs.
    num_prompts, runs : int
        Requests in a run, and how many runs.

    """

    mean: Figures
    least: Figures
    most: Figures
    num_prompts: int
    runs: int


@dataclass(frozen=True, kw_only=True)
class SaturatedRate:
    """What an engine serves in overload.

    Attributes
    ----------
    request_rate, output_throughput : float
        Requests/s and output tokens/s.
    residents, kv, tokens : float
        Means over the run: requests in the KV cache, the share of its blocks in use, tokens in an iteration.
    binding : str
        The limit that these come closest to: memory, max-running or token-budget.
    typical_run : int
        Index of the run whose rate is nearest to that of all.

    """

    request_rate: float
    output_throughput: float
    residents: float
    kv: float
    tokens: float
    binding: str
    typical_run: int


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What runs: a policy with its settings under an iteration-time law.

    Attributes
    ----------
    policy, iteration_time, kv_blocks, block_size, max_num_seqs, token_budget, num_types
        As `wait_core.plan` takes them.
    settings : mapping
        More settings of the core.

    """

    policy: str
    iteration_time: Mapping[str, Any]
    kv_blocks: int
    block_size: int
    max_num_seqs: int
    token_budget: int
    num_types: int
    settings: Mapping[str, Any]

    def capacity(self, longest: int) -> int:
        """Return how many tokens of requests the KV cache holds at most, none with more than `longest`."""
        groups = self.settings.get("kv_groups") or [{"kind": "full"}]
        return context_tokens(self.kv_blocks, self.block_size, groups, longest)

    def run(self, requests: Requests) -> Report:
        """Simulate until every request has finished."""
        return simulate(
            self.policy,
            requests=requests,
            iteration_time=self.iteration_time,
            num_types=self.num_types,
            kv_blocks=self.kv_blocks,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            token_budget=self.token_budget,
            **self.settings,
        )


def figures(report: Report) -> Figures:
    """Return what a run gave."""
    run, counts = report.run, report.run.counts
    done = run.finished_ns != np.iinfo(np.uint64).max
    arrived, admitted, first, finished = (
        column[done].astype(np.float64) * 1e-9
        for column in (run.arrival_ns, run.admitted_ns, run.first_token_ns, run.finished_ns)
    )
    output = run.output[done]
    settled = slice(int(WARM_UP * len(output)), None)
    latency = (finished - arrived)[settled]
    half = len(latency) // 2
    several = output[settled] > 1
    gaps = (finished - first)[settled][several] / (output[settled][several] - 1)
    tokens, seconds = _middle(finished, output)
    return Figures(
        output_throughput=tokens / seconds if seconds > 0 else float("nan"),
        queue_s=_mean((admitted - arrived)[settled]),
        ttft_s=_mean((first - arrived)[settled]),
        tpot_s=_mean(gaps),
        e2el_s=_mean(latency),
        growth=_mean(latency[half:]) / _mean(latency[:half]) if half else float("nan"),
        peak_kv=counts["peak_kv_blocks"] / counts["kv_blocks"],
        preemptions=counts["preemptions"] / len(done),
    )


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _middle(finished: Any, weights: Any) -> tuple[float, float]:
    """Sum of the weights of what finished in the middle, and the seconds that took; of all, where all end at once."""
    if len(finished) == 0:
        return 0.0, 0.0
    low, high = np.quantile(finished, MIDDLE)
    if low == high:
        return float(weights.sum()), float(high)
    return float(weights[(finished > low) & (finished <= high)].sum()), float(high - low)


def expected(engine: Engine, runs: Sequence[Requests]) -> Expected:
    """Simulate the runs and return what their requests experience."""
    each = [figures(engine.run(requests)) for requests in runs]
    columns = {name: [getattr(found, name) for found in each] for name in FIGURES}

    def over_runs(of: Callable[[list[float]], float]) -> Figures:
        return Figures(**{name: of(values) for name, values in columns.items()})

    return Expected(
        mean=over_runs(_mean),
        least=over_runs(min),
        most=over_runs(max),
        num_prompts=sum(map(len, runs)) // len(runs),
        runs=len(runs),
    )


def saturated(engine: Engine, runs: Sequence[Requests], bound: float) -> SaturatedRate:
    """Offer twice the `bound` (requests/s) that no schedule exceeds, and return what is served and what binds.

    Requests arrive one by one: an engine that starts with all of them present moves as one cohort forever, if their
    lengths are equal.
    """
    requests = tokens = seconds = 0.0
    shares: list[tuple[float, float, float]] = []
    rates: list[float] = []
    for wanted in runs:
        report = engine.run(_overload(wanted, len(wanted), 2.0 * bound))
        most = int(report.run.series[2].max(initial=0))
        if len(wanted) < GENERATIONS * most:
            report = engine.run(_overload(wanted, min(GENERATIONS * most, MOST_REQUESTS), 2.0 * bound))
        run, counts = report.run, report.run.counts
        done = run.finished_ns != np.iinfo(np.uint64).max
        if not done.any():
            raise WaitCoreError(f"kv_blocks = {engine.kv_blocks}: too few for any request of the workload")
        finished = run.finished_ns[done].astype(np.float64) * 1e-9
        count, span = _middle(finished, np.ones(len(finished)))
        requests, seconds = requests + count, seconds + span
        rates.append(count / span if span > 0 else math.inf)
        tokens += _middle(finished, run.output[done])[0]
        at_ns, blocks, residents, _ = run.series
        low, high = np.quantile(finished, MIDDLE) * 1e9
        inside = (at_ns >= low) & (at_ns <= high)
        computed = counts["decode_tokens"] + counts["prefill_tokens"]
        shares.append((_mean(residents[inside]), _mean(blocks[inside]) / counts["kv_blocks"],
                       computed / counts["iterations"]))  # fmt: skip
    seats, kv, batch = (float(np.nanmean(column)) for column in zip(*shares, strict=True))
    limits = {
        "memory": kv,
        "max-running": seats / engine.max_num_seqs,
        "token-budget": batch / engine.token_budget,
    }
    return SaturatedRate(
        request_rate=requests / seconds,
        output_throughput=tokens / seconds,
        residents=seats,
        kv=kv,
        tokens=batch,
        binding=max(limits, key=lambda name: limits[name]),
        typical_run=min(range(len(rates)), key=lambda index: abs(rates[index] - requests / seconds)),
    )


def _overload(requests: Requests, count: int, rate: float) -> Requests:
    """Return `count` requests, the given ones repeated in order, as a Poisson stream."""
    return replace(
        requests,
        arrival_ns=sampled("p1d1", request_rate=rate, num_prompts=count).arrival_ns,
        prompt=np.resize(requests.prompt, count),
        output=np.resize(requests.output, count),
        rate=rate,
        tenant=None,
    )
