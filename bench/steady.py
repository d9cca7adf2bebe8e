"""An engine in steady state, called from Python: requests come, run and leave, with a queue behind them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core import Scheduler

if TYPE_CHECKING:
    from collections.abc import Sequence

CASES = ("vllm", "wait", "nested-wait", "adaptive", "adaptive, memory full")
OUTPUT = 1_000
"""Mean output, tokens: each resident ends an iteration with probability 1 / OUTPUT."""
MAX_TOKENS = 16_000
PROMPT = 512
BOUNDARIES = (OUTPUT // 4, OUTPUT, MAX_TOKENS)
MARGIN = 0.05
"""By how much the thresholds exceed the rate at which requests reach them, as planned thresholds do."""
ITERATION_NS = 30_000_000


class Engine:
    """A scheduler of one of CASES, whose host draws the requests that finish.

    Lengths are unknown to the core. `adaptive` has memory for what its residents will probably hold, not for all their
    `max_tokens`: each admission is forecast. With "memory full" the forecast limits admission, not the number of slots.
    `nested-wait` has segments, and thresholds that make some wait between two of them.
    """

    def __init__(self, case: str, running: int, *, entering: int = 0) -> None:
        """Without requests; `entering` is how many may be admitted at once, a little more than finish at once if 0."""
        self.case, self.seats = case, running
        full = case.endswith("full")
        each = max(running / OUTPUT, entering)
        settings: dict[str, Any] = {
            "kv_blocks": running * (PROMPT + MAX_TOKENS) // 16,
            "max_num_seqs": 2 * running if full else running,
            "token_budget": max(8_192, 2 * running) + PROMPT * entering,
            "max_model_len": PROMPT + MAX_TOKENS,
        }
        if case == "wait":
            settings["types"] = [{"prompt": PROMPT, "output": output, "rate": 1.0} for output in (OUTPUT, MAX_TOKENS)]
            settings["thresholds"] = [each * (1 + MARGIN)] * 2
        elif case == "nested-wait":
            settings["boundaries"] = list(BOUNDARIES)
            reach = [1.0, *(float(np.exp(-boundary / OUTPUT)) for boundary in BOUNDARIES[:-1])]
            settings["thresholds"] = [each * (1 + MARGIN) * share for share in reach]
        self.scheduler = Scheduler("adaptive" if full else case, **settings)
        self.running: list[int] = []
        self.paused = 0
        self.arrived = self.iterations = 0
        self._draw = np.random.default_rng(running)

    def load(self, running: int, waiting: int, spread: int = OUTPUT) -> None:
        """Let `running` come over `spread` iterations and twice as many pass, then `waiting` line up."""
        for i in range(spread):
            self.add(running * (i + 1) // spread - self.arrived)
            self.iterate(())
        for _ in range(2 * spread):
            self.step()
        self.limit_memory()
        self.add(waiting)

    def limit_memory(self) -> None:
        """Give `adaptive` the memory that its forecast needs now, or half way from there to what is certain."""
        if not self.case.startswith("adaptive"):
            return
        self.iterate([self.running.pop()])
        self.scheduler.set_capacity(self.scheduler.used_blocks + self.seats // 8 + PROMPT // 16)
        self.add(1)
        self.iterate(())
        hold = self.scheduler.explain(self.arrived - 1)
        if hold is None or hold.reason != "forecast_overflow":
            raise RuntimeError(f"not held by the forecast: {hold}")
        certain = len(self.running) * (PROMPT + MAX_TOKENS)
        tokens = hold.needs if self.case.endswith("full") else (hold.needs + certain) / 2
        self.scheduler.set_capacity(int(tokens) // 16)

    def add(self, n: int) -> None:
        """`n` requests arrive."""
        for i in range(self.arrived, self.arrived + n):
            kind = i % 2 if self.case == "wait" else None
            self.scheduler.add(i, prompt_tokens(i), MAX_TOKENS, type_id=kind, now_ns=self.iterations * ITERATION_NS)
        self.arrived += n

    def step(self) -> float:
        """One iteration, with those that finish and those that arrive; returns microseconds of plan and complete."""
        n = int(self._draw.binomial(len(self.running), 1 / OUTPUT))
        finished = []
        for at in self._draw.random(n):
            i = int(at * len(self.running))
            self.running[i], self.running[-1] = self.running[-1], self.running[i]
            finished.append(self.running.pop())
        elapsed = self.iterate(finished)
        self.add(n)
        return elapsed

    def iterate(self, finished: Sequence[int]) -> float:
        """Plan and complete; returns the microseconds they took."""
        self.iterations += 1
        now_ns = self.iterations * ITERATION_NS
        begin = time.perf_counter_ns()
        plan = self.scheduler.plan(now_ns)
        self.scheduler.complete(finished=finished)
        elapsed = (time.perf_counter_ns() - begin) * 1e-3
        self.running += plan.resumed + plan.admitted
        self.paused = len(plan.paused)
        if plan.preempted:
            gone = set(plan.preempted)
            self.running = [i for i in self.running if i not in gone]
        return elapsed


def prompt_tokens(i: int) -> int:
    """Length of the prompt of request `i`."""
    return 32 + i % (PROMPT - 31)
