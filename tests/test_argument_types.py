"""Arguments of a wrong type are refused with their names, by every public function."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import wait_core
from wait_core import Scheduler, WaitCoreError, logs, planning, simulation, workload
from wait_core.hardware import engine, shipped

if TYPE_CHECKING:
    from collections.abc import Callable

DRAWN: dict[str, Any] = {"dataset_name": "p8d4", "request_rate": 5.0, "num_prompts": 5}
FUNCTIONS: dict[Callable[..., Any], dict[str, Any]] = {
    wait_core.simulate: {"policy": "vllm", **DRAWN},
    wait_core.plan: DRAWN,
    wait_core.plan_fleet: {**DRAWN, "slo_ttft_ms": 1e4},
    planning.offers: {"deployments": list(shipped().values())[:1], **DRAWN},
    planning.goodput_bound: {"requests": workload.sampled("p8d4", request_rate=1.0, num_prompts=5)},
    simulation.sweep: {"cells": [simulation.Cell(policy="vllm", request_rate=5.0)]},
    workload.sampled: {"source": "p8d4", "request_rate": 5.0},
    workload.replayed: {"source": "trace.csv"},
    workload.load: {"path": "trace.csv"},
    workload.dataset: {},
    logs.replay: {"path": "log.jsonl"},
    engine: {"gpu": "h100_sxm", "model": "m"},
}
CASES = [
    (function, name)
    for function in FUNCTIONS
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is not inspect.Parameter.VAR_KEYWORD
]


class Odd:
    """Of no type that is expected anywhere: neither a number, nor a name, nor a path."""


@pytest.mark.parametrize(("function", "name"), CASES, ids=lambda each: getattr(each, "__name__", each))
def test_a_wrong_type_is_refused_with_the_name_of_the_argument(function: Callable[..., Any], name: str) -> None:
    for wrong in (Odd(), [Odd()]):
        with pytest.raises(WaitCoreError, match=rf"^{name} = "):
            function(**FUNCTIONS[function] | {name: wrong})


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: wait_core.simulate(dataset_name=3, request_rate=1.0), "dataset_name = 3"),  # type: ignore[arg-type]
        (lambda: wait_core.simulate(dataset_name="chat", request_rate="x"), "request_rate = 'x'"),  # type: ignore[arg-type]
        (lambda: workload.load(3), "path = 3"),  # type: ignore[arg-type]
        (lambda: wait_core.plan(types=[(512, 20)]), "types = "),  # type: ignore[list-item]
        (lambda: Scheduler("vllm", kv_blocks="a"), "kv_blocks"),  # type: ignore[arg-type]
    ],
)
def test_the_message_has_the_value(call: Callable[[], object], name: str) -> None:
    with pytest.raises(WaitCoreError, match=name):
        call()


def test_numbers_and_sequences_of_numpy_are_accepted() -> None:
    """Of the types that only behave like those annotated."""
    requests = workload.sampled("p8d4", request_rate=np.float32(5.0), num_prompts=np.int64(5))  # type: ignore[arg-type]
    types: Any = [np.array([8, 4, 5]).tolist()]
    assert len(requests) == 5
    assert wait_core.plan(types=types, num_prompts=20, runs=1).request_rate == 5
