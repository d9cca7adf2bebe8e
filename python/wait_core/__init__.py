"""wait-core: a scheduling core for LLM inference.

`Scheduler` decides, inside a serving loop of your own; `simulate` runs the same core against a model of a GPU;
`wait_core.vllm` puts it into vLLM. The model and the vocabulary are those of arXiv 2504.11320.
"""

import warnings

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
from wait_core.planning import PlanReport, plan
from wait_core.simulation import Report, simulate

if DEBUG_BUILD:
    warnings.warn("wait_core is a debug build: tens of times slower (maturin develop --release)", stacklevel=2)

__all__ = [
    "CapacityError",
    "DeadlineError",
    "DuplicateIdError",
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
    "simulate",
]
