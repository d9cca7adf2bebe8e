"""Trials: a workload played through the core and the simulator, to see what an engine would make of it.

A run of thousands of requests takes milliseconds, less than a formula for a staircase law would; and it is the compiled
core itself that decides, with its cohorts, its evictions, and the arrivals as they come.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core._core import WaitCoreError
from wait_core.hardware.kv_groups import context_tokens
from wait_core.simulation.run import simulate
from wait_core.workload import sampled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wait_core.simulation.run import Report
    from wait_core.workload import Requests

WARM_UP = 0.2
"""Share of the requests, the first, whose delays are left out: they met an empty engine."""
MIDDLE = (0.2, 0.8)
"""Throughput is that between these shares of the completions, neither filling nor draining."""
GENERATIONS = 16
"""A saturated trial has at least so many times the requests that are resident at once."""
MOST_REQUESTS = 200_000

FIGURES = ("throughput", "wait", "ttft", "tpot", "latency", "growth", "peak", "preemptions")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What runs: a policy with its settings under an iteration-time law.

    Attributes
    ----------
    policy : str
        As in `wait_core.simulate`.
    law : mapping
        Iteration-time law.
    kv_blocks, block_size, max_num_seqs, token_budget : int
        KV blocks, tokens per block, most residents, most tokens per iteration.
    num_types : int
        Most request types for policies that need them.
    settings : mapping
        More settings of the core.

    """

    policy: str
    law: Mapping[str, Any]
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
            iteration_time=self.law,
            num_types=self.num_types,
            kv_blocks=self.kv_blocks,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            token_budget=self.token_budget,
            **self.settings,
        )


def figures(report: Report) -> dict[str, float]:
    """Return what a run gave.

    throughput (output tokens/s between the middle completions); wait (arrival to admission), ttft, tpot, latency: means
    in s without the first requests; growth: latency of the second half over that of the first; peak: most KV blocks in
    use, share of all; preemptions per request. NaN where nothing was observed.
    """
    run, counts = report.run, report.run.counts
    done = run.finished_ns != np.iinfo(np.uint64).max
    arrived, admitted, first, finished = (
        column[done].astype(np.float64) * 1e-9
        for column in (run.arrival_ns, run.admitted_ns, run.first_token_ns, run.finished_ns)
    )
    output = run.output[done]
    late = slice(int(WARM_UP * len(output)), None)
    latency = (finished - arrived)[late]
    half = len(latency) // 2
    several = output[late] > 1
    gaps = (finished - first)[late][several] / (output[late][several] - 1)
    tokens, seconds = _middle(finished, output)
    return {
        "throughput": tokens / seconds if seconds > 0 else float("nan"),
        "wait": _mean((admitted - arrived)[late]),
        "ttft": _mean((first - arrived)[late]),
        "tpot": _mean(gaps),
        "latency": _mean(latency),
        "growth": _mean(latency[half:]) / _mean(latency[:half]) if half else float("nan"),
        "peak": counts["peak_kv_blocks"] / counts["kv_blocks"],
        "preemptions": counts["preemptions"] / len(done),
    }


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


def expected(engine: Engine, runs: Sequence[Requests]) -> dict[str, Any]:
    """Play the runs: the mean of each figure, the least and the most of them, and how much was played."""
    each = [figures(engine.run(requests)) for requests in runs]
    columns = {name: [found[name] for found in each] for name in FIGURES}
    return {name: _mean(values) for name, values in columns.items()} | {
        "least": {name: min(values) for name, values in columns.items()},
        "most": {name: max(values) for name, values in columns.items()},
        "num_prompts": sum(map(len, runs)) // len(runs),
        "runs": len(runs),
    }


def saturated(engine: Engine, runs: Sequence[Requests], bound: float) -> dict[str, Any]:
    """Offer twice the `bound` (requests/s), which nobody can exceed, and return what is carried and what binds.

    They arrive one by one: an engine that starts with all of them there at once moves as one cohort for ever, if their
    lengths are equal.

    Also, on average over the run: residents, kv (share of the blocks), tokens (per iteration); and `binding`, the limit
    that these come closest to: memory, max-running or token-budget.
    """
    requests = tokens = seconds = 0.0
    shares: list[tuple[float, float, float]] = []
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
    return {
        "requests": requests / seconds,
        "throughput": tokens / seconds,
        "residents": seats,
        "kv": kv,
        "tokens": batch,
        "binding": max(limits, key=lambda name: limits[name]),
    }


def _overload(requests: Requests, count: int, rate: float) -> Requests:
    """So many requests, those given over and over in their order, as a Poisson stream."""
    return replace(
        requests,
        arrival_ns=sampled("p1d1", request_rate=rate, num_prompts=count).arrival_ns,
        prompt=np.resize(requests.prompt, count),
        output=np.resize(requests.output, count),
        rate=rate,
        tenant=None,
    )
