"""wait-core: a scheduling core for LLM inference.

`Scheduler` decides, inside a serving loop of your own; `simulate` runs the same core against a model of a GPU;
`wait_core.vllm` runs it inside vLLM. The model and the vocabulary are those of arXiv 2504.11320.
"""

from __future__ import annotations

# Nothing is imported here: this runs before the command line can answer Ctrl-C, and a serving loop needs no numpy.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from wait_core._core import (
        CapacityError,
        DeadlineError,
        DuplicateIdError,
        Hold,
        Plan,
        QueueFullError,
        Scheduler,
        StalledError,
        WaitCoreError,
        __version__,
    )
    from wait_core.planning.fleet import plan_fleet
    from wait_core.planning.fleet_plan import FleetPlan
    from wait_core.planning.plan import plan
    from wait_core.planning.plan_report import PlanReport
    from wait_core.simulation import Report, simulate

__all__ = [
    "CapacityError",
    "DeadlineError",
    "DuplicateIdError",
    "FleetPlan",
    "Hold",
    "Plan",
    "PlanReport",
    "QueueFullError",
    "Report",
    "Scheduler",
    "StalledError",
    "WaitCoreError",
    "__version__",
    "plan",
    "plan_fleet",
    "simulate",
]

_FOUND_IN = {
    "FleetPlan": "wait_core.planning.fleet_plan",
    "PlanReport": "wait_core.planning.plan_report",
    "plan": "wait_core.planning.plan",
    "plan_fleet": "wait_core.planning.fleet",
    "Report": "wait_core.simulation",
    "simulate": "wait_core.simulation",
}
"""What is not in the compiled core. All names are imported on first use."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415
    import warnings  # noqa: PLC0415

    core = importlib.import_module("wait_core._core")
    if core.DEBUG_BUILD:
        slow = "wait_core is a debug build: tens of times slower (maturin develop --release)"
        warnings.warn(slow, stacklevel=2)
    value = getattr(importlib.import_module(_FOUND_IN.get(name, core.__name__)), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
