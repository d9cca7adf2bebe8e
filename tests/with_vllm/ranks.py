"""vLLM's data-parallel balancer in front of two schedulers of ours, on vLLM's own figures or on the forecast.

The ranks are vLLM's schedulers with made-up tokens; the rule is the method of vLLM's client. What is left out is the
way between the processes, on which the figures grow 0.1 s old: here as old as some steps.
"""

from __future__ import annotations

from collections import Counter
from statistics import mean
from types import SimpleNamespace
from typing import Any, NamedTuple

from in_process import Driver, Setup

STALE_STEPS = 4
STEPS, LAST_ARRIVAL = 2500, 600
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


def serve(load: Load, *, forecast: bool) -> float:
    """Keep both ranks at as many requests, one of long and one of short outputs, and send others through the balancer.

    Returns the mean number of steps until their first token.
    """
    ranks = [rank(balance_by_forecast=forecast) for _ in range(2)]
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
        if step % 6 == 0 and step < LAST_ARRIVAL:
            name = f"r{step}"
            engine = client.get_core_engine_for_request(_request(name))
            ranks[client.core_engines.index(engine)].add(name, PROMPT, load.medium, ignore_eos=True)
            came[name] = step
        for number, driver in enumerate(ranks):
            for output in (each for of_client in (driver.step().outputs or {}).values() for each in of_client.outputs):
                if output.request_id in came and output.new_token_ids:
                    waited.setdefault(output.request_id, step - came[output.request_id])
                if output.finish_reason is not None:
                    client.engine_inflight[client.core_engines[number]] -= 1
                    if output.request_id.startswith("pinned") and step < LAST_ARRIVAL:
                        pin(number)
    assert waited.keys() == came.keys()
    return mean(waited.values())
