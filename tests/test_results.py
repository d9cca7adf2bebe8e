"""What functions return and raise: frozen results that pickle, figures as attributes, one family of errors."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import wait_core
from wait_core import files, hardware, simulation
from wait_core.planning import FleetPlan, offers, plan_fleet
from wait_core.workload import sampled, traces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = Path(wait_core.__file__).parent
TYPES = [(64, 32, 8.0), (64, 8, 4.0)]


def plan() -> wait_core.PlanReport:
    return wait_core.plan(
        types=TYPES, num_prompts=100, runs=2, kv_blocks=600, target_rate=30, slo_ttft_ms=2000, region=2
    )  # fmt: skip


def probes() -> simulation.Forecasts:
    return simulation.probe(sampled("p64d32", request_rate=40, num_prompts=50), every=8, kv_blocks=40)


def of_a_fleet() -> FleetPlan:
    return plan_fleet(
        types=TYPES, num_prompts=100, runs=1, settings={"kv_blocks": 600}, slo_ttft_ms=2000, routers=["random"]
    )


def of_gpus() -> list[Any]:
    kinds = list(hardware.shipped().values())[:1]
    return offers(kinds, prices=[2.0], types=TYPES, num_prompts=50, runs=1)


def nested(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every value of a dataclass and of those in it, with its name."""
    for field in dataclasses.fields(value):
        each = getattr(value, field.name)
        for item in each if isinstance(each, tuple) else (each,):
            if dataclasses.is_dataclass(item):
                yield from nested(item)
            else:
                yield field.name, item


def test_a_plan_has_no_figures_in_dictionaries() -> None:
    """Only the law, whose keys depend on its kind, and what was left out of a trace, by reason, are mappings."""
    found = dict(nested(plan()))
    assert {name for name, value in found.items() if isinstance(value, dict)} == {"iteration_time", "dropped"}
    assert not [name for name, value in found.items() if isinstance(value, list)]


def test_every_dataclass_of_a_result_is_frozen() -> None:
    for name in ("simulation", "planning", "workload", "hardware", "logs"):
        module = importlib.import_module(f"wait_core.{name}")
        kinds = [getattr(module, each) for each in module.__all__]
        for kind in filter(dataclasses.is_dataclass, kinds):
            assert kind.__dataclass_params__.frozen, kind  # type: ignore[union-attr]


def shown(result: Any) -> str:
    """Return the result without addresses; what a run records, tests/test_simulate.py compares."""
    return re.sub(r" at 0x\w+", "", repr(result))


@pytest.mark.parametrize("of", [plan, probes, of_a_fleet, of_gpus])
def test_results_pickle(of: Callable[[], Any]) -> None:
    result = of()
    again = pickle.loads(pickle.dumps(result))  # noqa: S301 - our own
    assert type(again) is type(result)
    assert shown(again) == shown(result)


OTHERS = {"AttributeError", "IndexError", "PermissionError", "_StoppedError"}
"""What Python's own protocols ask for, what the system says of a file, and what is caught where it is raised."""
CAUGHT = {("json_formats.py", "ValueError"), ("replay.py", "ValueError")}
"""Raised below a handler in the same file, which names the line."""


def raised() -> Iterator[tuple[Path, str]]:
    """Yield the class in every `raise CLASS(...)` outside of the commands and vLLM."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] in {"cli", "vllm"}:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                called = ast.unparse(node.exc.func).removeprefix("_core.")
                if re.fullmatch(r"_?[A-Z]\w+", called):
                    yield path, called


def test_every_error_is_a_wait_core_error() -> None:
    ours = {
        name
        for module in (wait_core, files, traces)
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, wait_core.WaitCoreError)
    }
    assert {"WaitCoreError", "FileError", "TraceError"} <= ours
    found = list(raised())
    assert len(found) > 50
    for path, name in found:
        assert name in ours | OTHERS or (path.name, name) in CAUGHT, path
