"""Ray Serve LLM with a `wait_core.fleet.Router`; needs Ray: the extra `ray`.

    LLMConfig(
        server_cls=WaitLLMServer,
        engine_kwargs={"scheduler_cls": "wait_core.vllm.WaitScheduler"},
        deployment_config={"num_replicas": 8, "request_router_config": request_router_config("forecast")},
    )

Nothing else of the package imports Ray. docs/ray.md has what to install, and the limits.
"""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from ray.serve.config import RequestRouterConfig
from ray.serve.llm import LLMServer
from ray.serve.request_router import RequestRouter

from wait_core import WaitCoreError
from wait_core.fleet import prompts, reports
from wait_core.fleet.dispatcher import Dispatcher

if TYPE_CHECKING:
    from asyncio import Future

    from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica

    from wait_core.fleet import Choice

__all__ = ["WaitLLMServer", "WaitRequestRouter", "request_router_config"]

logger = logging.getLogger("ray.serve")

KEY = "wait_core"
"""Key of our reports in a replica's routing statistics."""
LEAST_STALE_S = 15.0
"""Smallest age at which a router may take a report for stale: an idle replica repeats its own every 10 s."""


def request_router_config(router: str = "forecast", *, period_s: float = 0.2, **settings: Any) -> RequestRouterConfig:
    """Return the ``request_router_config`` of a deployment whose requests are routed by `router`.

    Parameters
    ----------
    router : str
        One of `wait_core.fleet.ROUTERS`.
    period_s : float
        Time between two reports of a replica, s. Serve's own default of 10 s is too long for a router that reads them.
    settings
        Those of `wait_core.fleet.Router`, and ``longest_hold``: time after which a request that is held at the door
        goes where Serve sees the shortest queue, s; 30 by default. One that is late for ``ttft_target`` waits on.

    Raises
    ------
    WaitCoreError
        If a name is unknown or a value out of its range: here rather than in the replicas' log.
    """
    Dispatcher(router, **settings)
    if settings.get("stale_after", LEAST_STALE_S) < LEAST_STALE_S:
        raise WaitCoreError(
            f"stale_after = {settings['stale_after']}: must be at least 15 s, as idle replicas report every 10"
        )
    if os.environ.get("RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING") == "1":
        raise WaitCoreError(
            "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING=1: with it Serve does not notify request routers when a request ends"
        )
    return RequestRouterConfig(
        request_router_class=f"{__name__}.{WaitRequestRouter.__name__}",
        request_router_kwargs={"router": router, **settings},
        request_routing_stats_period_s=period_s,
        max_backoff_s=max(0.05, period_s / 2),  # how soon a held request is routed again
    )


class WaitLLMServer(LLMServer):
    """Ray's server of an engine, which reports how busy the core in it is.

    The figures come from the engine's process with vLLM's own statistics, at most 0.1 s old. If there are none (another
    scheduler, ``disable_log_stats``, several data-parallel ranks in one replica), it only describes itself.
    """

    _reporter: reports.Reporter | None = None
    _failed = False

    async def record_routing_stats(self) -> dict[str, Any]:
        """Return what Serve's controller passes to the request routers; an error of ours never reaches it."""
        stats: dict[str, Any] = await super().record_routing_stats()
        if self._failed or self.engine is None:
            return stats
        try:
            return stats | {KEY: self._report()}
        except Exception:
            self._failed = True
            logger.exception("wait-core reports nothing from now on: requests are routed by what was sent")
            return stats

    def _report(self) -> dict[str, Any]:
        client = self.engine._engine_client  # noqa: SLF001  Ray has no other way to it
        if self._reporter is None:
            config = client.vllm_config
            replica = {
                "kv_blocks": config.cache_config.num_gpu_blocks - 1,  # one is vLLM's null block
                "block_size": config.cache_config.block_size,
                "max_num_seqs": config.scheduler_config.max_num_seqs,
                "token_budget": config.scheduler_config.max_num_batched_tokens,
            }
            self._reporter = reports.Reporter(replica, longest=config.model_config.max_model_len)
        loggers = client.logger_manager.stat_loggers if client.logger_manager is not None else []
        engines: dict[int, tuple[int, Any]] = next((each.reports for each in loggers if hasattr(each, "reports")), {})
        one = client.vllm_config.parallel_config.data_parallel_size == 1
        seen_ns, figures = engines.get(0, (0, None)) if one else (0, None)
        return self._reporter.report(figures, seen_ns, time.time_ns())


class WaitRequestRouter(RequestRouter):
    """Serve's request router, backed by a `wait_core.fleet.Router`; one in each process that calls the deployment.

    Every call of `choose_replicas` counts: Serve may route many requests before it sends the first of them.
    """

    def initialize_state(self, **settings: Any) -> None:
        """Take ``request_router_kwargs``."""
        self._dispatcher = Dispatcher(**settings)

    @property
    def max_num_routing_tasks(self) -> int:
        """Most requests that Serve asks for at once: without those that are late, which would keep others from it."""
        return int(super().max_num_routing_tasks) + self._dispatcher.late

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Receive the current replicas, and their reports."""
        said = {_name(each.replica_id): each.routing_stats.get(KEY) for each in replicas}
        self._dispatcher.update(said, time.time_ns())
        super().update_replicas(replicas)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the chosen replica, then the others in case it rejects the request; none while it is held."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # without it Serve retries without a pause
        try:
            choice = self._choose(pending_request)
        except Exception:  # Serve would drop the request because of it
            logger.exception("wait-core leaves a request to Serve's shortest queue")
            choice = None
        if choice is None:
            return [candidate_replicas]
        if choice.replica is None:
            return []
        chosen = [each for each in candidate_replicas if _name(each.replica_id) == choice.replica]
        return [chosen, [each for each in candidate_replicas if each not in chosen]]

    def _choose(self, pending: PendingRequest) -> Choice | None:
        request = pending.metadata.internal_request_id
        asked = prompts.read(next(iter(pending.args), None), block_size=self._dispatcher.block_size)
        if asked is not None and not self._dispatcher.knows(request):
            pending.future.add_done_callback(partial(self._forget_cancelled, request))
        return self._dispatcher.choose(request, asked, time.time_ns(), arrived_ns=int(pending.created_at * 1e9))

    def _forget_cancelled(self, request: str, future: Future[RunningReplica]) -> None:
        if future.cancelled():  # its client left before it was sent
            self._dispatcher.ended(request, time.time_ns())

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: object) -> None:
        """Record which replica has taken a request."""
        del result
        self._dispatcher.moved(pending_request.metadata.internal_request_id, _name(replica_id), time.time_ns())

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Record that a request has ended on a replica, or was rejected there."""
        self._dispatcher.ended(internal_request_id, time.time_ns(), replica=_name(replica_id))

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Record that a replica is gone: Serve resends what it had not accepted, and fails what it had."""
        self._dispatcher.remove(_name(replica_id))
        super().on_replica_actor_died(replica_id)


def _name(replica: ReplicaID) -> str:
    return str(replica.to_full_id_str())
