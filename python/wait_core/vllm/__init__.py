"""The core inside vLLM: ``vllm serve MODEL --scheduler-cls wait_core.vllm.WaitScheduler``.

Only this package imports vLLM, and only when one of its names is asked for. Settings are given by vLLM's own means,
``--additional-config '{"wait_core": {"policy": "wait", ...}}'``; see `wait_core.vllm.config.Settings`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wait_core.vllm.admission import AdmissionMiddleware
    from wait_core.vllm.scheduler import WaitScheduler

__all__ = ["AdmissionMiddleware", "WaitScheduler"]


def __getattr__(name: str) -> object:
    if name == "WaitScheduler":
        from wait_core.vllm.scheduler import WaitScheduler  # noqa: PLC0415  vLLM takes seconds to import

        return WaitScheduler
    if name == "AdmissionMiddleware":
        from wait_core.vllm.admission import AdmissionMiddleware  # noqa: PLC0415  needs no vLLM

        return AdmissionMiddleware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
