"""What the engine's process sends to the front end's metrics, and says in its log.

vLLM carries one `SchedulerStats` object from the engine's process to a front end after each step and knows no place in
it for a scheduler's own figures. A mapping from names to integers in it, of which vLLM reads only the names it knows,
takes ours: one further name that holds them as JSON, with the value 0, so that sums over the mapping stay right.
Counters travel as differences, because with several front ends each step's figures reach only one of them.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec
from vllm.logger import init_logger

from wait_core import CapacityError, DeadlineError, QueueFullError, WaitCoreError
from wait_core.vllm import clock, law, load, support

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vllm.v1.metrics.stats import SchedulerStats
    from vllm.v1.request import Request

    from wait_core.vllm.bridge import Bridge

logger = init_logger(f"vllm.{__name__}")  # vLLM configures the loggers under its own name only

CARRIER = "wait_core "
"""What the name begins with under which our figures travel."""
LOAD_NS = 100_000_000
"""Time between two reports of the load while the engine is busy: routers and the middleware go by them."""
METRICS_NS = 1_000_000_000
"""Time between two sendings of what is only shown."""
MOST = 10_000
"""Most durations kept between two sendings; at one a step this is far more than `METRICS_NS` has room for."""
RATE_WINDOW_S = 60.0
"""Time constant of the arrival rate, an exponential average."""
_REASONS: dict[type[WaitCoreError], str] = {
    CapacityError: "too_large",
    QueueFullError: "queue_full",
    DeadlineError: "late",
}


def detach(stats: SchedulerStats) -> dict[str, Any] | None:
    """Take our figures out again, so that vLLM's own loggers never see them; None if there are none."""
    found = None
    for name in [name for name in stats.num_kv_fetch_reqs_by_stage if name.startswith(CARRIER)]:
        del stats.num_kv_fetch_reqs_by_stage[name]
        found = msgspec.json.decode(name[len(CARRIER) :])
    return found


class Telemetry:
    """Collects figures between two sendings."""

    def __init__(self) -> None:
        # Bounded: where vLLM's statistics are off, they are never fetched.
        self.decisions_ns: deque[int] = deque(maxlen=MOST)
        self.holds_ns: deque[int] = deque(maxlen=MOST)
        self.rejected: dict[str, int] = {}
        self._sent: dict[str, int] = {}
        self._sent_ns = self._collected_ns = 0
        self._rate = 0.0
        self._rate_ns = 0
        self._said: dict[int, str] = {}
        self.failed = False
        self.explains = False
        self._has_reader = not support.has_rust_frontend()
        self.law = law.LearnedLaw()

    def _fail(self, error: BaseException) -> None:
        """Send nothing from now on."""
        let_pass(error)
        self.failed = True
        logger.error("wait-core sends no metrics from now on: %r", error, exc_info=error)

    def arrived(self, now_ns: int) -> None:
        """Count an arrival."""
        self._rate = self._rate_at(now_ns) + 1 / RATE_WINDOW_S
        self._rate_ns = now_ns

    def _rate_at(self, now_ns: int) -> float:
        return self._rate * math.exp((self._rate_ns - now_ns) / 1e9 / RATE_WINDOW_S)

    def restart(self, core: Any) -> None:
        """Count on from a new core, whose counters begin anew."""
        for name, value in _counters(core.stats).items():
            self._sent[name] = value

    def send(self, stats: SchedulerStats, bridge: Bridge) -> None:
        """Put the figures of `bridge`, which has come here with an error of ours or without, into what vLLM sends."""
        if self.failed or not self._has_reader:
            return
        try:
            now_ns = bridge.now_ns if bridge.active else clock.now_ns()
            idle = not bridge.scheduler.running  # it is about to rest: no figure is to stay behind
            if now_ns - self._sent_ns < LOAD_NS and not idle:
                return
            figures: dict[str, Any] = {"active": bridge.active}
            if bridge.active:
                law = self.law.decides or bridge.control.in_force["iteration_time"]
                figures["load"] = load.figures(bridge)
                figures["fleet"] = {"load": bridge.core.load(), "iteration_time": law}
                if idle or now_ns - self._collected_ns >= METRICS_NS:
                    self._collected_ns = now_ns
                    figures["metrics"] = self._metrics(bridge, now_ns)
            self._sent_ns = now_ns
            stats.num_kv_fetch_reqs_by_stage[CARRIER + msgspec.json.encode(figures).decode()] = 0
        except BaseException as error:  # noqa: BLE001  figures are not worth the scheduling
            self._fail(error)

    def rejected_for(self, refusal: WaitCoreError | None) -> None:
        """Count a request that the core refuses to plan, by reason; None stands for a streaming session."""
        reason = "streaming" if refusal is None else _REASONS.get(type(refusal), "invalid")
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    def _metrics(self, bridge: Bridge, now_ns: int) -> dict[str, Any]:
        settings = bridge.settings
        shown = {"policy": settings.policy, "shadow": settings.shadow, "blocks": bridge.control.engine["kv_blocks"]}
        shown |= {"held": bridge.core.num_waiting, "paused": bridge.paused, "late": bridge.late.taken()}
        return shown | self.collect(bridge.core, bridge.control.in_force, now_ns, bridge.counts)

    def collect(self, core: Any, settings: Mapping[str, Any], now_ns: int, counts: Mapping[str, int]) -> dict[str, Any]:
        """Return what has been counted since the last time, and the state now; integers, ratios and names.

        `settings` are all that `core` follows.
        """
        totals = _counters(core.stats) | {f"adapter {name}": value for name, value in counts.items()}
        # A count may fall: an admission that vLLM did not make is taken back.
        sent = self._sent
        counters = {name: value - sent.get(name, 0) for name, value in totals.items() if value > sent.get(name, 0)}
        sent |= {name: totals[name] for name in counters}
        figures = {
            "counters": counters,
            "rejected": self.rejected,
            "arrival_rate": self._rate_at(now_ns),
            "used_blocks": max(0, core.used_blocks),
            "decisions_ns": list(self.decisions_ns),
            "holds_ns": list(self.holds_ns),
        }
        if self.law.figures:
            figures["iteration_time"] = self.law.figures
        if forecast := core.kv_forecast():
            _, mean, _, overflow = zip(*forecast, strict=True)
            tokens = settings["kv_blocks"] * settings["block_size"]
            figures |= {"kv_forecast_peak_ratio": max(mean) / tokens, "overflow_probability": overflow[-1]}
        self.decisions_ns.clear()
        self.holds_ns.clear()
        self.rejected = {}
        return figures

    def kv_usage(self, bridge: Bridge, used: float) -> float:
        """Return the largest share of the KV cache that the residents are expected to hold; `used` without a forecast.

        Behind our gate requests wait while much of the cache is free yet, because it is spoken for. A balancer that
        looks at what is used takes them for a passing queue.
        """
        settings = bridge.settings
        if self.failed or not (settings.balance_by_forecast and bridge.active) or settings.shadow:
            return used
        try:
            engine = bridge.control.engine
            tokens: int = engine["kv_blocks"] * engine["block_size"]
            peak: float = bridge.core.load().get("kv_peak", 0.0)
        except BaseException as error:  # a figure is not worth the scheduling
            let_pass(error)
            self.failed = True
            logger.exception("wait-core sends no figures from now on")
            return used
        return max(used, peak / tokens)

    def look(self, core: Any) -> None:
        """Look at what changes seldom: the law that `core` has learned, and how much the log is to say."""
        self.law.look(core)
        self.explains = logger.isEnabledFor(logging.DEBUG)

    def explain(self, core: Any, waiting: Iterable[Request], ids: Mapping[str, int]) -> None:
        """Say at debug level why each request waits, with the limiting number; again only when the reason changes."""
        said: dict[int, str] = {}
        for request in waiting:
            number = ids.get(request.request_id)
            hold = None if number is None else core.explain(number)
            if number is None or hold is None:
                continue
            said[number] = hold.reason
            if self._said.get(number) != hold.reason:
                logger.debug(
                    "wait-core holds %s: %s, needs %g, limit %g",
                    request.request_id,
                    hold.reason,
                    hold.needs,
                    hold.limit,
                )
        self._said = said


def let_pass(error: BaseException) -> None:
    """Raise `error` again if it is meant to end the process."""
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error


def _counters(stats: Mapping[str, Any]) -> dict[str, int]:
    flat = {name: stats[name] for name in ("admitted", "preemptions", "recomputed_tokens", "unknown_ids")}
    return flat | {f"holds {reason}": value for reason, value in stats["holds"].items()}
