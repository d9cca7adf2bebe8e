"""`wait_core_*` at /metrics, beside vLLM's own; vLLM finds it by the entry point ``vllm.stat_logger_plugins``.

It lives in the front end's process and shows what the scheduler's process sends (`wait_core.vllm.telemetry`). Where
another scheduler runs it shows nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from vllm.logger import init_logger
from vllm.v1.metrics.loggers import AggregateStatLoggerBase

from wait_core.vllm import clock, telemetry
from wait_core.vllm.load import LOADS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm.config import VllmConfig
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats

logger = init_logger(f"vllm.{__name__}")  # vLLM configures the loggers under its own name only

LABELS = ("model_name", "engine")
GAUGES = {
    "held_requests": "Requests that wait outside the KV cache.",
    "paused_requests": "Requests that keep their KV and do not run in the last decision.",
    "kv_blocks_used_ratio": "Share of the KV blocks in use, as the core counts them.",
    "arrival_rate": "Requests per second, an average with a time constant of 60 s.",
    "kv_forecast_peak_ratio": "Largest KV use that the policy expects of those running, as a share of the capacity.",
    "overflow_probability": "Probability that those running outgrow the cache within the horizons of the forecast.",
    "active": "1 while wait-core schedules, 0 after an error of its own left scheduling to vLLM.",
}
LAW = {
    "iteration_time_error_ratio": ("error", "Mean relative error of the learned law over the last 512 steps."),
    "iteration_time_steps": ("observations", "Steps from which the iteration-time law was learned."),
    "iteration_time_used": ("used", "1 while the learned iteration-time law decides."),
}
"""Gauges of policies that learn the law, and what each shows of `wait_core.vllm.law.LearnedLaw.figures`."""
FORECAST = ("kv_forecast_peak_ratio", "overflow_probability")
"""Gauges of policies that forecast; under another they are absent."""
COUNTERS = {
    "admitted": ("admitted", "Requests admitted, resumptions not counted."),
    "preemptions": ("preemptions", "Evictions of requests that the core plans."),
    "recomputed_tokens": ("recomputed_tokens", "KV tokens lost to evictions."),
    "adapter watchdog": ("watchdog", "Times the watchdog opened the gates."),
    "adapter reconfigured": ("reconfigurations", "Times that changed settings came into force."),
    "adapter ungated": (
        "ungated_admissions",
        "Admissions by vLLM that the core would have held: shadow mode, or the watchdog.",
    ),
}
"""From the names that travel to those shown."""
BY_REASON = {
    "holds": "Decisions that held a queue, by reason.",
    "rejected": "Requests that the core refused to plan, by reason; vLLM serves them ungated.",
    "late": "Requests that ended while they waited, by the bound on their wait.",
    "refused": "Requests that AdmissionMiddleware answered with 503, by the bound on their wait.",
}
DECISION_BUCKETS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 0.1)
HOLD_BUCKETS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class WaitCoreStatLogger(AggregateStatLoggerBase):
    """Shows the figures that a `WaitScheduler` sends; an error of ours ends it, never the front end."""

    def __init__(self, vllm_config: VllmConfig, engine_indexes: Sequence[int]) -> None:
        self._labels = {i: (vllm_config.model_config.served_model_name, str(i)) for i in engine_indexes}
        self._metrics: _Metrics | None = None
        self._failed = False
        self.reports: dict[int, tuple[int, Mapping[str, Any]]] = {}
        """The newest report for routers that each engine has sent, and when it came: Unix time, ns."""
        name = vllm_config.scheduler_config.scheduler_cls
        if isinstance(name, str) and name.startswith("wait_core."):  # a subclass of it shows with its first figures
            self._show()

    def _show(self) -> _Metrics:
        if self._metrics is None:
            self._metrics = _Metrics(self._labels)
            for labels in self._labels.values():
                self._metrics.start(labels)
            LOADS.on_refusal = self._metrics.refused
        return self._metrics

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: object = None,  # noqa: ARG002
        engine_idx: int = 0,
    ) -> None:
        """Take our figures out of what the engine sent, and show them."""
        if self._failed:
            return
        try:
            if iteration_stats is not None:
                LOADS.generated(engine_idx, iteration_stats.num_generation_tokens)
            figures = None if scheduler_stats is None else telemetry.detach(scheduler_stats)
            if figures is not None:
                labels, shown = self._labels[engine_idx], self._show()
                shown.gauges["active"].labels(*labels).set(int(figures["active"]))
                if "metrics" in figures:
                    shown.update(labels, figures["metrics"])
                if "load" in figures:
                    LOADS.report(engine_idx, figures["load"])
                if "fleet" in figures:
                    self.reports[engine_idx] = clock.unix_ns(), figures["fleet"]
        except Exception:
            self._failed = True
            logger.exception("wait-core shows no metrics from now on")

    def log_engine_initialized(self) -> None:
        """Nothing to say: the scheduler has."""

    def log(self) -> None:
        """Nothing to log: vLLM's own loggers do."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """Sleep does not concern scheduling."""


class _Metrics:
    def __init__(self, engines: Mapping[int, tuple[str, str]]) -> None:
        self._engines = engines
        for collector in list(REGISTRY._collector_to_names):  # noqa: SLF001  as vLLM does: a further engine in a process
            if str(getattr(collector, "_name", "")).startswith("wait_core_"):
                REGISTRY.unregister(collector)

        def gauge(name: str, text: str, labels: tuple[str, ...] = LABELS) -> Gauge:
            return Gauge(f"wait_core_{name}", text, labels, multiprocess_mode="mostrecent")

        self.gauges = {name: gauge(name, text) for name, text in GAUGES.items()}
        self.law = {name: gauge(name, text) for name, (_, text) in LAW.items()}
        self.law_seconds = gauge(
            "iteration_time_seconds",
            "Time of a step under the learned law: one decode, a decode in every seat, a prompt as long as the budget.",
            (*LABELS, "batch"),
        )
        self.counters = {key: Counter(f"wait_core_{name}", text, LABELS) for key, (name, text) in COUNTERS.items()}
        self.by_reason = {
            name: Counter(f"wait_core_{name}", text, (*LABELS, "reason")) for name, text in BY_REASON.items()
        }
        self.decisions = Histogram(
            "wait_core_decision_seconds", "Time of one decision.", LABELS, buckets=DECISION_BUCKETS
        )
        self.holds = Histogram(
            "wait_core_hold_seconds", "Time from arrival to first admission.", LABELS, buckets=HOLD_BUCKETS
        )
        self.info = gauge("policy_info", "1 for the policy in force.", (*LABELS, "policy", "mode"))
        self._policy: dict[tuple[str, str], tuple[str, str]] = {}

    def start(self, labels: tuple[str, str]) -> None:
        """Show zeros before the first figures come."""
        known = [gauge for name, gauge in self.gauges.items() if name not in FORECAST]
        for metric in (*known, *self.counters.values(), self.decisions, self.holds):
            metric.labels(*labels)
        self.gauges["active"].labels(*labels).set(1)

    def refused(self, engine: int, reason: str) -> None:
        """Count a request that was not let in."""
        self.by_reason["refused"].labels(*self._engines[engine], reason).inc()

    def update(self, labels: tuple[str, str], figures: Mapping[str, Any]) -> None:
        state = {name: figures[name] for name in FORECAST if name in figures} | {
            "held_requests": figures["held"],
            "paused_requests": figures["paused"],
            "kv_blocks_used_ratio": figures["used_blocks"] / figures["blocks"],
            "arrival_rate": figures["arrival_rate"],
        }
        for name, value in state.items():
            self.gauges[name].labels(*labels).set(value)
        law = figures.get("iteration_time", {})
        for name, (key, _) in LAW.items():
            if law.get(key) is not None:
                self.law[name].labels(*labels).set(law[key])
        for batch, seconds in law.get("seconds", {}).items():
            self.law_seconds.labels(*labels, batch).set(seconds)
        for key, value in figures["counters"].items():
            kind, _, reason = key.partition(" ")
            if key in self.counters:
                self.counters[key].labels(*labels).inc(value)
            elif kind in self.by_reason:
                self.by_reason[kind].labels(*labels, reason).inc(value)
        for name in ("rejected", "late"):
            for reason, value in figures[name].items():
                self.by_reason[name].labels(*labels, reason).inc(value)
        for histogram, nanoseconds in ((self.decisions, figures["decisions_ns"]), (self.holds, figures["holds_ns"])):
            shown = histogram.labels(*labels)
            for value in nanoseconds:
                shown.observe(value / 1e9)
        policy = figures["policy"], "shadow" if figures["shadow"] else "active"
        before = self._policy.get(labels)
        if before not in (None, policy):
            self.info.labels(*labels, *before).set(0)
            for name in FORECAST:
                if name not in figures:  # the policy before forecast, this one does not
                    self.gauges[name].labels(*labels).set(math.nan)
        self._policy[labels] = policy
        self.info.labels(*labels, *policy).set(1)
