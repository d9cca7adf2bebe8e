"""vLLM's data-parallel balancer in front of two schedulers of ours, on vLLM's own figures or on the forecast.

The ranks are vLLM's schedulers with made-up tokens; the rule is the method of vLLM's client. Time passes as a law of
iteration times says, so a run repeats exactly. What is left out is the way between the processes, on which the figures
grow 0.1 s old: here as old as some steps.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from statistics import mean
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

from in_process import Driver, Setup, Step
from virtual import step_ns

from wait_core.hardware import iteration_time
from wait_core.vllm import clock

if TYPE_CHECKING:
    from collections.abc import Sequence

LAW = iteration_time("llama-2-7b-a100-80gb")
STALE_STEPS = 4
STEPS, LAST_ARRIVAL = 2500, 600
ARRIVAL_STEPS = 6
SHORT = 40
PROMPT = [3 + i % 500 for i in range(64)]


class Load(NamedTuple):
    """Requests pinned to each rank, and output tokens: of those that the balancer places, of those pinned to rank 0."""

    pinned: int
    medium: int
    long: int


LOADS = {Load(6, 200, 600): 1.0, Load(10, 200, 600): 1.0, Load(16, 200, 300): 1.0, Load(10, 100, 900): 0.5}
"""With the most that requests may wait on the forecast, as a share of what they wait on vLLM's own figures."""


def rank(**settings: Any) -> Driver:
    """Return a rank that reports the forecast, unless `settings` of `wait_core` say otherwise."""
    wait_core = {"balance_by_forecast": True} | settings
    return Driver(Setup("WaitScheduler", wait_core, num_blocks=201, max_model_len=1024, prefix_caching=False, ahead=0))


def balancer() -> Any:
    """Return the part of vLLM's client that chooses between two ranks."""
    from vllm.v1.engine.core_client import DPLBAsyncMPClient

    client = object.__new__(DPLBAsyncMPClient)
    client.client_count, client.client_index, client.eng_start_index = 1, 0, 0
    client.core_engines = [b"0", b"1"]
    client.engine_ranks_managed = [0, 1]
    client.reqs_in_flight, client.engine_inflight = {}, Counter()
    client.lb_engines = [[0, 0, 0.0], [0, 0, 0.0]]
    return client


def _request(name: str) -> Any:
    return SimpleNamespace(request_id=name, data_parallel_rank=None, pooling_params=None)


def figures(driver: Driver) -> list[float]:
    """Return what EngineCoreProc sends: waiting, running, use of the KV cache."""
    running, waiting = driver.scheduler.get_request_counts()
    return [waiting, running, driver.scheduler.get_kv_cache_usage()]


class Lockstep:
    """Steps ranks together: each step begins when the one before it has ended on all of them.

    They are stepped one after the other, and each sees the time of its own step.
    """

    def __init__(self) -> None:
        self._now_ns = 0

    def now_ns(self) -> int:
        return self._now_ns

    def step(self, ranks: Sequence[Driver]) -> list[Step]:
        begin_ns, end_ns, steps = self._now_ns, [], []
        for each in ranks:
            self._now_ns = begin_ns
            steps.append(each.step(compare=partial(self._compute, each)))
            end_ns.append(self._now_ns)
        self._now_ns = max(end_ns)
        return steps

    def _compute(self, driver: Driver, scheduled: Any) -> None:
        self._now_ns += step_ns(LAW, driver, scheduled)


def serve(load: Load, *, forecast: bool, first: int = 0) -> float:
    """Keep both ranks at as many requests, one of long and one of short outputs, and send others through the balancer.

    They come every `ARRIVAL_STEPS` steps from step `first` on. Returns the mean number of steps to their first token.
    """
    lockstep = Lockstep()
    with patch.object(clock, "now_ns", lockstep.now_ns):
        return _serve(load, lockstep, [rank(balance_by_forecast=forecast) for _ in range(2)], first)


def _serve(load: Load, lockstep: Lockstep, ranks: Sequence[Driver], first: int) -> float:
    client = balancer()
    pinned = 0

    def pin(number: int) -> None:
        nonlocal pinned
        pinned += 1
        ranks[number].add(f"pinned{pinned}", PROMPT, load.long if number == 0 else SHORT, ignore_eos=True)
        client.engine_inflight[client.core_engines[number]] += 1

    for _ in range(load.pinned):
        pin(0)
        pin(1)
    came: dict[str, int] = {}
    waited: dict[str, int] = {}
    for step in range(STEPS):
        if step % STALE_STEPS == 0:
            client.lb_engines = [figures(driver) for driver in ranks]
        if step % ARRIVAL_STEPS == first and step < LAST_ARRIVAL:
            name = f"r{step}"
            engine = client.get_core_engine_for_request(_request(name))
            ranks[client.core_engines.index(engine)].add(name, PROMPT, load.medium, ignore_eos=True)
            came[name] = step
        for number, done in enumerate(lockstep.step(ranks)):
            for output in (each for of_client in (done.outputs or {}).values() for each in of_client.outputs):
                if output.request_id in came and output.new_token_ids:
                    waited.setdefault(output.request_id, step - came[output.request_id])
                if output.finish_reason is not None:
                    client.engine_inflight[client.core_engines[number]] -= 1
                    if output.request_id.startswith("pinned") and step < LAST_ARRIVAL:
                        pin(number)
    assert waited.keys() == came.keys()
    return mean(waited.values())
