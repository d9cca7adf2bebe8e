"""How loaded the engines are, as far as one API server's process knows: the stat logger tells, the middleware asks.

Nothing here imports vLLM. A report leaves the engine's process at most every 100 ms and, where there are several API
servers, reaches one of them: so what is known ages, and this server may have let in requests that no report counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from wait_core.vllm import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

THROUGHPUT_S = 10.0
"""Time constant of the rate of output tokens, an exponential average."""
WAIT_SHARE = 0.75
"""Share of `ttft_target` that a request may be expected to wait for its admission and be let in: the rest is for its
prompt and the error of the prediction. At 0.9 one in ten of those let in is late; 0.5 gains nothing (bench/door.py)."""


def figures(bridge: Any) -> dict[str, Any]:
    """Return what the engine reports of its load: counts, tokens, times in ns; and in seconds the bounds in force."""
    core, settings, engine = bridge.core, bridge.settings, bridge.control.engine
    running, waiting = bridge.scheduler.get_request_counts()
    tokens = engine["block_size"]
    known = {"running": running, "waiting": waiting, "seats": engine["max_num_seqs"]}
    known |= {"waiting_tokens": core.waiting_tokens, "wait_ns": core.predicted_wait_ns, "gap_ns": core.admission_gap_ns}
    known |= {"used": max(0, core.used_blocks) * tokens, "capacity": engine["kv_blocks"] * tokens}
    bounds = {}
    if not settings.shadow:  # which lets everything happen as without it
        if (target := bridge.control.in_force["ttft_target"]) is not None:
            bounds["ttft_target"] = WAIT_SHARE * target
        if settings.max_wait_s is not None:
            bounds["max_wait_s"] = settings.max_wait_s
    return known | {"bounds": bounds}


@dataclass
class Engine:
    """One engine as of its last report."""

    index: int
    report: Mapping[str, Any]
    seen_ns: int
    let_in: float = 0.0
    """Requests that this server has let in since."""

    def wait_s(self, now_ns: int) -> float:
        """Return how long a request let in now is expected to wait for its admission, seconds.

        What was predicted, later by the gap between two admissions for each request let in since that will not find a
        seat, and sooner by the time gone since: a report that no other replaces loses its force by itself. So a server
        that refuses everything, and so learns nothing more of the engine, lets a request through after that time.
        """
        seats = 0 if self.report["waiting"] else max(0, self.report["seats"] - self.report["running"])
        added = max(0.0, self.let_in - seats) * self.report["gap_ns"]
        return float(max(0.0, self.report["wait_ns"] + added - (now_ns - self.seen_ns)) * 1e-9)


@dataclass(frozen=True)
class Refusal:
    """Why a request is not let in: the bound that it would break, seconds, and the wait that is expected."""

    reason: str
    limit_s: float
    predicted_wait_s: float

    @property
    def retry_after_s(self) -> int:
        """Whole seconds after which the wait, if no other request came, would be within the bound; at least 1."""
        return max(1, math.ceil(self.predicted_wait_s - self.limit_s))


@dataclass
class Loads:
    """The engines behind one API server, by vLLM's index."""

    engines: dict[int, Engine] = field(default_factory=dict)
    on_refusal: Callable[[int, str], object] | None = None
    """Hears the engine and the reason of each refusal, for the metrics."""
    _tokens: dict[int, tuple[float, int]] = field(default_factory=dict)

    def report(self, engine: int, report: Mapping[str, Any]) -> None:
        """Take over what an engine reports: `figures`."""
        self.engines[engine] = Engine(engine, report, clock.now_ns())

    def generated(self, engine: int, tokens: int) -> None:
        """Count output tokens of an engine that this server has received."""
        self._tokens[engine] = self.tokens_per_s(engine) + tokens / THROUGHPUT_S, clock.now_ns()

    def tokens_per_s(self, engine: int) -> float:
        """Return the rate of output tokens to this server."""
        rate, since_ns = self._tokens.get(engine, (0.0, 0))
        return rate * math.exp((since_ns - clock.now_ns()) * 1e-9 / THROUGHPUT_S) if rate else 0.0

    def refusal(self, deadline_s: float | None = None, rank: int | None = None) -> Refusal | None:
        """Return why a request is not to be let in, or None: also while no engine has reported.

        `deadline_s` is the request's own bound, `rank` the engine that it asks for. Otherwise the engine that makes
        it wait least speaks for all, as vLLM's balancer tends to choose it.
        """
        found = self._at(rank)
        if not found:
            return None
        now_ns = clock.now_ns()
        engine = min(found, key=lambda engine: engine.wait_s(now_ns))
        bounds = dict(engine.report["bounds"])
        if deadline_s is not None:
            bounds["deadline"] = deadline_s
        if not bounds:
            return None
        reason = min(bounds, key=bounds.__getitem__)
        wait_s = engine.wait_s(now_ns)
        if wait_s <= bounds[reason]:
            return None
        if self.on_refusal is not None:
            self.on_refusal(engine.index, reason)
        return Refusal(reason, bounds[reason], wait_s)

    def let_in(self, rank: int | None = None) -> Callable[[], None]:
        """Count a request that is let in until the next report does; the caller calls what is returned when it ends."""
        engines = self._at(rank)

        def count(requests: float) -> None:
            for engine in engines:  # those that have reported since are no longer looked at
                engine.let_in += requests / len(engines)

        count(1.0)
        return partial(count, -1.0)

    def requests(self) -> int:
        """Return the requests present, as far as known: waiting, running, and let in since the last reports."""
        engines = self.engines.values()
        return int(sum(each.report["waiting"] + each.report["running"] + each.let_in for each in engines) + 0.5)

    def by_engine(self) -> list[dict[str, Any]]:
        """Return the load of each engine under the names of SGLang's ``GET /v1/loads``, and how old it is."""
        now_ns = clock.now_ns()
        return [
            {
                "dp_rank": index,
                "num_running_reqs": engine.report["running"],
                "num_waiting_reqs": engine.report["waiting"] + round(engine.let_in),
                "num_waiting_uncached_tokens": engine.report["waiting_tokens"],
                "num_used_tokens": engine.report["used"],
                "num_total_tokens": engine.report["used"] + engine.report["waiting_tokens"],
                "max_total_num_tokens": engine.report["capacity"],
                "max_running_requests": engine.report["seats"],
                "token_usage": round(engine.report["used"] / engine.report["capacity"], 4),
                "gen_throughput": round(self.tokens_per_s(index), 2),
                "predicted_wait_s": round(engine.wait_s(now_ns), 4),
                "age_s": round((now_ns - engine.seen_ns) * 1e-9, 3),
            }
            for index, engine in sorted(self.engines.items())
        ]

    def _at(self, rank: int | None) -> list[Engine]:
        return [self.engines[rank]] if rank in self.engines else list(self.engines.values())


LOADS = Loads()
"""Those of this process."""
