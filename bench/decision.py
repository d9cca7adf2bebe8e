"""Latency of one iteration (`plan` and `complete`) of the core, called from Python in steady decode."""

from __future__ import annotations

import gc
import time

import numpy as np
from contract import start

from wait_core import Scheduler

POLICIES = ("vllm",)
GOALS = {(256, 1_000): (5.0, 25.0), (1_024, 10_000): (10.0, None), (8_192, 1_000_000): (50.0, None)}


def loaded(policy: str, running: int, waiting: int) -> Scheduler:
    """Return a scheduler with `running` decodes and `waiting` requests behind them, every seat taken."""
    scheduler = Scheduler(
        policy, kv_blocks=running * 256, max_num_seqs=running, token_budget=max(8192, 2 * running), max_model_len=4096
    )
    for i in range(running):
        scheduler.add(i, 32 + i % 480, 3_000)
    while scheduler.num_waiting or scheduler.plan().prefill:
        scheduler.plan()
    for i in range(running, running + waiting):
        scheduler.add(i, 512, 3_000)
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
    bench.finish()


if __name__ == "__main__":
    main()
