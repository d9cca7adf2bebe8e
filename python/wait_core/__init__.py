"""wait-core: a scheduling core for LLM inference.

`Scheduler` decides, inside a serving loop of your own; `simulate` runs the same core against a model of a GPU;
`wait_core.vllm` runs it inside vLLM. The model and the vocabulary are those of arXiv 2504.11320.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from wait_core._core import (
    DEBUG_BUILD,
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

if TYPE_CHECKING:
    from wait_core.planning.fleet import plan_fleet
    from wait_core.planning.fleet_plan import FleetPlan
    from wait_core.planning.plan import plan
    from wait_core.planning.plan_report import PlanReport
    from wait_core.simulation import Report, simulate

if DEBUG_BUILD:
    warnings.warn("wait_core is a debug build: tens of times slower (maturin develop --release)", stacklevel=2)

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
"""What is imported on first use: a serving loop needs only the scheduler, and no numpy."""


def __getattr__(name: str) -> Any:
    if name not in _FOUND_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_FOUND_IN[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
