"""Latency of the core called from Python: an iteration in steady decode, a burst of arrivals, a storm of aborts.

Beside them the cost of a call across the border that does nothing, which is the floor for all of these.
"""

from __future__ import annotations

import gc
import statistics
import time

import numpy as np
from contract import start

from wait_core import Scheduler

POLICIES = ("vllm", "wait", "nested-wait", "adaptive")
TYPES = [{"prompt": 272, "output": 3_000, "rate": 1.0}]
GOALS = {(256, 1_000): (5.0, 25.0), (1_024, 10_000): (10.0, None), (8_192, 1_000_000): (50.0, None)}


def empty(policy: str, seats: int) -> Scheduler:
    """Return a scheduler without requests, whose seats bind before its memory or its gates do."""
    typed = {"types": TYPES, "thresholds": [1e6]} if policy in {"wait", "nested-wait"} else {}
    return Scheduler(
        policy,
        kv_blocks=seats * 256,
        max_num_seqs=seats,
        token_budget=max(1 << 20, 2 * seats),
        max_model_len=4096,
        **typed,
    )


def loaded(policy: str, running: int, waiting: int) -> Scheduler:
    """Return a scheduler with `running` decodes and `waiting` requests behind them, every seat taken."""
    scheduler = empty(policy, running)
    for i in range(running):
        scheduler.add(i, 32 + i % 480, 3_000, output_tokens=3_000)
    while scheduler.num_waiting or scheduler.plan().prefill:
        scheduler.plan()
    for i in range(running, running + waiting):
        scheduler.add(i, 512, 3_000, output_tokens=3_000)
    return scheduler


def iteration_us(scheduler: Scheduler, running: int, iterations: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Time `iterations` steps: each plans, finishes one request, and thereby admits one."""
    times = np.empty(iterations)
    gc.disable()
    for i in range(iterations):
        begin = time.perf_counter_ns()
        scheduler.plan(i)
        scheduler.complete(finished=(i,) if i < running // 2 and i % 8 == 0 else ())
        times[i] = (time.perf_counter_ns() - begin) * 1e-3
    gc.enable()
    return times


def burst_us(policy: str, n: int = 1_000) -> float:
    """Microseconds a request, for `n` requests that arrive together and are admitted by the next plan."""
    scheduler = empty(policy, 2 * n)
    begin = time.perf_counter_ns()
    for i in range(n):
        scheduler.add(i, 512, 3_000, output_tokens=3_000)
    admitted = len(scheduler.plan().admitted)
    elapsed = time.perf_counter_ns() - begin
    if admitted != n:
        raise RuntimeError(f"{policy} admitted {admitted} of {n}")
    return elapsed * 1e-3 / n


def abort_us(policy: str, n: int = 10_000) -> float:
    """Microseconds an abort, for `n` of the waiting."""
    scheduler = loaded(policy, 256, n)
    begin = time.perf_counter_ns()
    known = sum(scheduler.abort(i) for i in range(256, 256 + n))
    elapsed = time.perf_counter_ns() - begin
    if known != n:
        raise RuntimeError(f"{known} of {n} aborts were known")
    return elapsed * 1e-3 / n


def floor_us(calls: int = 100_000) -> float:
    """Microseconds of a call across the border that does nothing."""
    nothing = Scheduler("vllm", kv_blocks=1).drain
    begin = time.perf_counter_ns()
    for _ in range(calls):
        nothing()
    return (time.perf_counter_ns() - begin) * 1e-3 / calls


def main() -> None:
    """Print the table."""
    bench = start("decision", str(__doc__))
    iterations = 500 if bench.options.quick else 2_000
    for policy in POLICIES:
        for (running, waiting), (median, tail) in GOALS.items():
            if bench.options.quick and waiting > 10_000:
                continue
            times = iteration_us(loaded(policy, running, waiting), running, iterations)
            p50, p99 = np.percentile(times, [50, 99])
            bench.rows.append(
                {"policy": policy, "running": running, "waiting": waiting, "p50 us": float(p50), "p99 us": float(p99)}
            )
            name = f"{policy}, {running:,} running, {waiting:,} waiting"
            bench.claim(f"p50 of one iteration, {name}", float(p50), "us", f"<= {median:g}")
            if tail is not None:
                bench.claim(f"p99 of one iteration, {name}", float(p99), "us", f"<= {tail:g}")
        bench.claim(
            f"burst of 1,000: a request, {policy}", statistics.median(burst_us(policy) for _ in range(5)), "us", "<= 1"
        )
        bench.claim(
            f"10,000 aborts: one, {policy}", statistics.median(abort_us(policy) for _ in range(3)), "us", "<= 1"
        )
    # A floor: whatever else the machine does can only add to it.
    bench.claim("empty call across the border, least of 20", min(floor_us() for _ in range(20)), "us")
    bench.finish()


if __name__ == "__main__":
    main()
