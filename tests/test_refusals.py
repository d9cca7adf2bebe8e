"""What the border refuses: every message names the argument and its value."""

from __future__ import annotations

import collections
import functools
import math
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from by_hand import TYPES, refused, run_to_the_end, scheduler

from wait_core._core import SETTINGS, Planner, QueueFullError, Scheduler, batch, iteration_seconds, run, sample

if TYPE_CHECKING:
    from collections.abc import Callable

NAN, INF = float("nan"), float("inf")


def test_zero_lengths_and_absent_limits() -> None:
    core = scheduler()
    refused(lambda: core.add(1, 0), "prompt_tokens = 0")
    refused(lambda: core.add(1, 8, 0), "max_tokens = 0")
    refused(lambda: core.add(1, 8, output_tokens=0), "output_tokens = 0")
    refused(lambda: core.add(1, 8, predicted_tokens=0), "predicted_tokens = 0")
    refused(lambda: core.add(1, 8, output_tokens=3, predicted_tokens=3), "predicted_tokens", "output_tokens")
    core.add(1, 8, None)  # the model's limit, never zero
    run_to_the_end(core, {1: 32})


def test_a_full_line_is_refused_with_its_bound() -> None:
    core = scheduler(max_queued_requests=1)
    core.add(1, 8)
    refused(lambda: core.add(2, 8), "queue full: 1 requests", "bound is 1", kind=QueueFullError)


@pytest.mark.parametrize(("bad", "shown"), [(NAN, "NaN"), (INF, "inf"), (-INF, "-inf"), (-1.0, "-1")])
def test_rates_costs_and_times_that_are_no_numbers(bad: float, shown: str) -> None:
    kinds: list[Any] = [{"prompt": 8, "output": 4, "rate": bad}]
    refused(lambda: Scheduler("wait", kv_blocks=10, types=kinds), f"types[0].rate = {shown}")
    refused(lambda: Scheduler("wait", kv_blocks=10, types=TYPES, thresholds=[1.0, bad]), "thresholds[1]")
    refused(lambda: Scheduler("vllm", kv_blocks=10, watermark=bad), "watermark")
    refused(lambda: Scheduler("vllm", kv_blocks=10, max_hold=bad), "max_hold")
    refused(lambda: scheduler().add(1, 8, predicted_tokens=4, predicted_log_error=bad), "predicted_tokens")
    for law in ({"d0": bad, "d1": 1e-6}, {"d0": 0.01, "d1": bad}):
        name = next(name for name, value in law.items() if not value >= 0 or math.isinf(value))
        refused(lambda law=law: iteration_seconds({"law": "linear"} | law, decodes=1), name)  # type: ignore[misc]
    if bad != INF:  # everything at once
        components = [
            {"name": "c", "weight": 1.0} | {key: {"kind": "constant", "value": 4} for key in ("prompt", "output")}
        ]
        dataset = {"arrivals": {"kind": "poisson"}, "phases": [{"start": 0.0, "components": components}]}
        refused(lambda: sample(dataset, 3, bad, 1), f"request_rate = {shown}")


def test_numbers_that_no_count_can_hold() -> None:
    core = scheduler()
    calls: list[tuple[str, Callable[[], object]]] = [
        ("request_id", lambda: core.add(-1, 8)),
        ("request_id", lambda: core.add(2**64, 8)),
        ("prompt_tokens", lambda: core.add(1, -8)),
        ("prompt_tokens", lambda: core.add(1, 2**32)),
        ("max_tokens", lambda: core.add(1, 8, 2**32)),
        ("output_tokens", lambda: core.add(1, 8, output_tokens=-1)),
        ("predicted_tokens", lambda: core.add(1, 8, predicted_tokens=2**32)),
        ("type_id", lambda: core.add(1, 8, type_id=2**16)),
        ("priority", lambda: core.add(1, 8, priority=2**63)),
        ("shared_prefix", lambda: core.add(1, 8, shared_prefix=-1)),
        ("now_ns", lambda: core.add(1, 8, now_ns=-1)),
        ("now_ns", lambda: core.plan(2**64)),
        ("finished", lambda: core.complete(finished=[-1])),
        ("progress", lambda: core.complete(progress=[(1, 2**32)])),
        ("free_blocks", lambda: core.complete(free_blocks=-1)),
        ("request_id", lambda: core.abort(-1)),
        ("kv_blocks", lambda: core.set_capacity(2**32)),
    ]
    for name, call in calls:
        refused(call, name, "is out of range")
    wrong: Any = "8"
    for name, call in [
        ("prompt_tokens", lambda: core.add(1, wrong)),
        ("prompt_tokens", lambda: core.add(1, 8.5)),  # type: ignore[arg-type]
        ("now_ns", lambda: core.plan(wrong)),
        ("finished", lambda: core.complete(finished=[wrong])),
        ("finished", lambda: core.complete(finished=1)),  # type: ignore[arg-type]
        ("paused", lambda: core.set_paused(wrong)),
    ]:
        refused(call, name, kind=TypeError)
    refused(lambda: core.set_capacity(0), "kv_blocks = 0")
    refused(lambda: core.set_capacity(2**31), "kv_blocks = 2147483648")
    refused(lambda: iteration_seconds({"law": "a100"}, chunks=[(2**63, 2**63)]), "tokens = 9223372036854775808")
    assert len(core) == 0


def containers_without_end() -> list[Any]:
    """Return containers of every kind that hold themselves, or 50,000 others one in another."""
    ring: collections.deque[Any] = collections.deque()
    ring.append(ring)
    listed: collections.UserList[Any] = collections.UserList()
    listed.append(listed)
    mapped: collections.UserDict[str, Any] = collections.UserDict()
    mapped["a"] = mapped
    proxied: dict[str, Any] = {}
    proxied["a"] = types.MappingProxyType(proxied)
    array = np.empty(1, object)
    array[0] = array
    deep: Any = 1
    for _ in range(50_000):
        deep = collections.deque([deep])
    nested: Any = 1
    for _ in range(50_000):
        nested = {"a": nested}
    return [ring, listed, mapped, proxied, types.MappingProxyType(proxied), array, deep, nested]


def test_settings_are_refused_by_name_and_value() -> None:
    def settings(**given: Any) -> Callable[[], object]:
        return lambda: Scheduler("vllm", **({"kv_blocks": 10} | given))

    refused(settings(kv_blocks=0), "kv_blocks = 0")
    refused(settings(kv_blocks=-1), "kv_blocks = -1")
    refused(settings(kv_blocks=2**40), "kv_blocks = 1099511627776")
    refused(settings(kv_blocks=2**80), f"kv_blocks = {2**80}")
    refused(settings(kv_blocks=object()), "kv_blocks = <object object")
    refused(settings(kv_blocks=10.5), "kv_blocks = 10.5")
    refused(settings(kv_blocks="10"), 'kv_blocks = "10"')
    refused(settings(kv_block=10), "kv_block", "did you mean", "kv_blocks")
    refused(settings(types=[{"prompt": 1, "output": 2}]), "types[0]", "rate")
    refused(settings(types=[{"prompt": 1, "output": {1, 2}, "rate": 1.0}]), "types[0].output")
    endless: list[Any] = []
    endless.append(endless)
    refused(settings(types=endless), "types[0][0]", "nested too deeply")
    for container in containers_without_end():
        refused(settings(types=[container]), "types[0]")
        refused(lambda container=container: iteration_seconds({"law": container}), "law")  # type: ignore[misc]
        refused(lambda container=container: scheduler("adaptive").restore(container), "learned")  # type: ignore[misc]
    wide: list[Any] = [0] * 1000
    for _ in range(4):
        wide = [wide] * 1000
    refused(settings(types=wide), "more than 1048576 values")
    refused(settings(types=[{1: 2}]), "types[0]", "key 1")
    refused(settings(order="\ud800"), "order", "not Unicode")
    refused(lambda: Scheduler("wiat", kv_blocks=10), 'policy = "wiat"', "wait")
    for name in SETTINGS:
        if name != "policy":
            refused(settings(**{name: object()}), f"{name} = <object")


def test_a_type_that_a_policy_does_not_have() -> None:
    for n in (1, 2):
        core = scheduler("wait", types=TYPES[:n])
        refused(functools.partial(core.add, 1, 8, type_id=n), f"type_id = {n}: must be below {n}")
    core = scheduler()
    core.add(1, 8, 4, type_id=65535)
    run_to_the_end(core, {1: 4})


def test_arrivals_that_no_run_can_take() -> None:
    def simulate(at_ns: list[int], prompt: list[int], output: list[int], **changes: Any) -> Callable[[], object]:
        options = {"lengths_known": True, "typed": False, "max_tokens": None, "max_concurrency": None, "overhead_ns": 0}
        return lambda: run(
            {"kv_blocks": 10},
            {"law": "a100"},
            np.array(at_ns, dtype=np.uint64),
            np.array(prompt, dtype=np.uint32),
            np.array(output, dtype=np.uint32),
            np.zeros(len(at_ns), dtype=np.uint16),
            **(options | changes),
        )

    simulate([0], [4], [4])()
    refused(simulate([0], [0], [4]), "arrivals[0].prompt = 0")
    refused(simulate([0, 1], [4, 4], [4, 0]), "arrivals[1].output = 0")
    refused(simulate([1, 0], [4, 4], [4, 4]), "arrivals[1].at_ns = 0")
    refused(simulate([2**64 - 1], [4], [4]), "arrivals[0].at_ns = 18446744073709551615")
    refused(simulate([0], [4], [4, 4]), "output: 2 lengths for 1 prompts")
    refused(simulate([0], [4], [4], overhead_ns=2**63), "iteration_time")
    refused(simulate([0], [4], [4], max_concurrency=0), "max_concurrency = 0")
    refused(simulate([0], [4], [4], max_tokens=0), "max_tokens = 0")


def test_tokens_of_many_chunks_are_counted_together() -> None:
    law = {"law": "linear", "d0": 0.01, "d1": 1e-6}
    refused(lambda: iteration_seconds(law, chunks=[(2**30, 0)] * 6), f"tokens = {6 * 2**30}", "1073741824 in all")
    refused(lambda: iteration_seconds(law, chunks=[(1, 2**30)] * 6), f"tokens = {6 * 2**30}")
    assert iteration_seconds(law, chunks=[(2**29, 2**29)] * 2) > 0.01


def test_planning_refuses_what_would_take_all_memory() -> None:
    law = {"law": "linear", "d0": 0.01, "d1": 1e-7}
    planner = Planner([(512, 20, 7.0), (512, 50, 3.0)], law, capacity=100_000)
    most = 2**32 - 1
    for call in (
        lambda: planner.segments(count=most),
        lambda: planner.nested(count=most),
        lambda: planner.stage_caps(9, count=most),
        lambda: planner.safety_buffer([1.0], count=most),
    ):
        refused(call, f"count = {most}: must be between 1 and 65,535")
    for call in (
        lambda: planner.segments([20, most]),
        lambda: planner.nested([20, most]),
        lambda: planner.stage_caps(9, [20, most]),
        lambda: planner.safety_buffer([1.0, 1.0], [20, most]),
    ):
        refused(call, f"boundaries[1] = {most}: must be at most 2^26 tokens")
    longest = Planner([(512, 2**26, 1e-9)], law, capacity=2**30)
    refused(lambda: longest.stage_caps(9), "stages = 67108864", "2^20")
    components = [
        {"name": "c", "weight": 1.0} | {key: {"kind": "constant", "value": 4} for key in ("prompt", "output")}
    ]
    dataset = {"arrivals": {"kind": "poisson"}, "phases": [{"start": 0.0, "components": components}]}
    settings = {"policy": "vllm", "kv_blocks": 100}
    refused(
        lambda: batch(
            settings,
            law,
            dataset,
            request_rate=1.0,
            horizon_ns=10**9,
            runs=most,
            first_seed=0,
            lengths_known=True,
            typed=False,
        ),
        f"runs = {most}: must be at most 1000000",
    )
