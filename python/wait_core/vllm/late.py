"""Requests that end while they wait, because they are late: the client gets the reason."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from vllm.logger import init_logger
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import RequestStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request

logger = init_logger(f"vllm.{__name__}")  # vLLM configures the loggers under its own name only
NEVER = 1 << 63
"""A time that does not come, ns."""


class Late:
    """Ends what is late with vLLM, and keeps its outputs until vLLM returns those of a step.

    A request ends with the finish reason "abort": of those that vLLM knows, the one that says neither that the output
    is complete nor that the server is at fault. Its `stop_reason` is "late: " and the bound that it broke. A streamed
    one ends with "error": of a stream without a token vLLM's front end passes on nothing but an error.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._ended: dict[str, int] = {}
        self.watched: list[tuple[int, int, str]] = []
        """When to look at a request again, its number, and the bound that it breaks then: a heap."""
        self._pending: list[tuple[int, EngineCoreOutput]] = []

    def watch(self, number: int, due_ns: int, bound: str) -> None:
        """Look at a request again at a time, when it has waited as long as `bound` lets it."""
        heapq.heappush(self.watched, (due_ns, number, bound))

    @property
    def next_ns(self) -> int:
        """When to look next."""
        return self.watched[0][0] if self.watched else NEVER

    def due(self, now_ns: int, requests: Mapping[int, Request]) -> list[tuple[int, str]]:
        """Return those that have waited as long as they may and were never admitted, and the bound."""
        if len(self.watched) > 2 * len(requests) + 1000:  # far bounds of requests that have left long ago
            self.watched = [entry for entry in self.watched if entry[1] in requests]
            heapq.heapify(self.watched)
        found = []
        while self.watched and self.watched[0][0] <= now_ns:
            _, number, bound = heapq.heappop(self.watched)
            request = requests.get(number)
            if request is not None and request.status == RequestStatus.WAITING:  # not preempted, either
                found.append((number, bound))
        return found

    def end(self, request: Request, bound: str) -> None:
        """Let vLLM forget `request`, and name to its client the `bound` that it exceeded."""
        self._ended[bound] = self._ended.get(bound, 0) + 1
        params = request.sampling_params
        streamed = params is not None and params.output_kind == RequestOutputKind.DELTA
        status = RequestStatus.FINISHED_ERROR if streamed else RequestStatus.FINISHED_ABORTED
        self._scheduler.finish_requests(request.request_id, status)
        output = EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=[],
            finish_reason=request.get_finished_reason(),
            stop_reason=f"late: {bound}",
            events=request.take_events(),
            trace_headers=request.trace_headers,
        )
        self._pending.append((request.client_index, output))
        logger.debug("wait-core ends %s, late by %s", request.request_id, bound)

    def taken(self) -> dict[str, int]:
        """Return how many have ended since the last call, by the bound that they broke."""
        ended, self._ended = self._ended, {}
        return ended

    def tell(self, outputs: dict[int, EngineCoreOutputs]) -> dict[int, EngineCoreOutputs]:
        """Add to the outputs of a step what has ended since the last one."""
        if not self._pending:
            return outputs
        pending, self._pending = self._pending, []
        for client, output in pending:
            outputs.setdefault(client, EngineCoreOutputs(outputs=[])).outputs.append(output)
        return outputs
