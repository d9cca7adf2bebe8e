"""vLLM's own scheduler and KV cache manager, under a clock that passes as a law of iteration times says.

No engine, no model, made-up tokens: a run repeats exactly, on any machine. Steps overlap as on vLLM's GPU engines: one
is scheduled while the one before it runs, so what arrives in between enters one step later.
"""

from __future__ import annotations

import heapq
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from in_process import Driver, Setup

from wait_core._core import iteration_seconds
from wait_core.vllm import clock

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    import numpy.typing as npt

    Column = npt.NDArray[np.int64]

POLL_NS = 1_000_000
"""Time that the engine sleeps while nothing is scheduled though requests wait."""


@dataclass
class Call:
    """One request of a client.

    Attributes
    ----------
    output
        Tokens after which the model ends the answer. No scheduler is told.
    max_tokens
        What the client asks for at most; none: all that the context has room for.
    leaves_after
        Tokens after which the client leaves.
    """

    name: str
    prompt: list[int]
    output: int
    max_tokens: int | None = None
    ignores_eos: bool = False
    leaves_after: int | None = None


Answers = tuple[int, list[list[int]]]
"""The time in ns at which the last of a client's calls was answered, and the tokens of each answer."""

if TYPE_CHECKING:
    Client = Generator[tuple[int, Sequence[Call]], Answers, None]
    """Yields when it calls, in ns, and what; goes on once all of that is answered."""


@dataclass
class Served:
    """What one run came to: one entry a request, by arrival, in ns and tokens."""

    arrival_ns: Column
    first_ns: Column
    end_ns: Column
    output: Column
    steps: int
    preemptions: int
    hit_tokens: int

    @property
    def throughput(self) -> float:
        """Output tokens per second, from the first arrival to the last token."""
        return float(self.output.sum() / (self.end_ns.max() - self.arrival_ns.min()) * 1e9)

    @property
    def ttft(self) -> npt.NDArray[np.float64]:
        """Time to first token in seconds, by request."""
        return _seconds(self.first_ns - self.arrival_ns)

    @property
    def e2e(self) -> npt.NDArray[np.float64]:
        """Time to last token in seconds, by request."""
        return _seconds(self.end_ns - self.arrival_ns)


def _seconds(ns: Column) -> npt.NDArray[np.float64]:
    return ns.astype(np.float64) * 1e-9


@dataclass
class _Asked:
    """What a client waits for."""

    client: Client
    calls: list[_Open] = field(default_factory=list)
    left: int = 0


@dataclass
class _Open:
    """A call that is being answered."""

    call: Call
    asked: _Asked
    arrival_ns: int
    first_ns: int = 0
    end_ns: int = 0
    tokens: list[int] = field(default_factory=list)


class _Ending:
    """The requests whose answer ends with the token that is made up next."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __contains__(self, name: object) -> bool:
        request = self._engine.driver.scheduler.requests[name]
        length = self._engine.open[str(name)].call.output
        return bool(request.num_computed_tokens - request.num_prompt_tokens + 1 >= length)


class Engine:
    """One scheduler, its clock, and the clients that it serves.

    Parameters
    ----------
    setup
        The scheduler; with `ahead` 1 steps overlap.
    law
        The iteration-time law, as `wait_core.hardware.iteration_time` gives it.
    """

    def __init__(self, setup: Setup, law: Mapping[str, Any]) -> None:
        self.setup = setup
        self.law = law
        self.now_ns = 0
        self.open: dict[str, _Open] = {}
        with self._clock():
            self.driver = Driver(setup)
        self._running: deque[int] = deque()  # when the steps in flight end, ns
        self._free_ns = 0  # the GPU has nothing to do from then on
        self._to_come: list[tuple[int, int, Client, Sequence[Call]]] = []  # a heap by time, then by order
        self._order = 0

    @contextmanager
    def _clock(self) -> Iterator[None]:
        real, clock.now_ns = clock.now_ns, lambda: self.now_ns
        try:
            yield
        finally:
            clock.now_ns = real

    def run(self, clients: Sequence[Client]) -> Served:
        """Serve until every client has all its answers.

        Raises
        ------
        RuntimeError
            Where requests wait and nothing runs for an hour of virtual time.
        """
        with self._clock():
            return self._run(clients)

    def _run(self, clients: Sequence[Client]) -> Served:
        for client in clients:
            self._calls(client, None)
        done: list[_Open] = []
        steps = preemptions = hits = 0
        ending, progressed_ns = _Ending(self), 0
        while self._to_come or self.open:
            self._arrive()
            step = self.driver.step(ending, self._begin)
            scheduled = step.scheduled
            if scheduled.total_num_scheduled_tokens:
                steps, progressed_ns = steps + 1, self.now_ns
            preemptions += len(scheduled.preempted_req_ids or ())
            hits += sum(new.num_computed_tokens for new in scheduled.scheduled_new_reqs)
            if step.outputs is not None:
                done += self._deliver(step.outputs)
            elif not scheduled.total_num_scheduled_tokens:
                self._rest()
                if self.now_ns - progressed_ns > 3_600_000_000_000:
                    raise RuntimeError(f"{len(self.open)} requests wait for ever")
        done.sort(key=lambda one: (one.arrival_ns, one.call.name))
        times = ("arrival_ns", "first_ns", "end_ns")
        column = {name: np.array([getattr(one, name) for one in done], np.int64) for name in times}
        output = np.array([len(one.tokens) for one in done], np.int64)
        return Served(**column, output=output, steps=steps, preemptions=preemptions, hit_tokens=hits)

    def _calls(self, client: Client, answers: Answers | None) -> None:
        try:
            at_ns, calls = next(client) if answers is None else client.send(answers)
        except StopIteration:
            return
        self._order += 1
        heapq.heappush(self._to_come, (at_ns, self._order, client, calls))

    def _arrive(self) -> None:
        while self._to_come and self._to_come[0][0] <= self.now_ns:
            at_ns, _, client, calls = heapq.heappop(self._to_come)
            asked = _Asked(client, left=len(calls))
            asked.calls = [_Open(call, asked, at_ns) for call in calls]
            for one in asked.calls:
                call = one.call
                self.open[call.name] = one
                room = self.setup.max_model_len - len(call.prompt)
                self.driver.add(call.name, call.prompt, min(call.max_tokens or room, room), ignore_eos=call.ignores_eos)

    def _begin(self, scheduled: Any) -> None:
        """Let time pass: a step begins, and if it has to wait for one before it, until that ends."""
        ahead = self.setup.ahead
        if scheduled.total_num_scheduled_tokens:
            self._free_ns = max(self._free_ns, self.now_ns) + self._duration(scheduled)
            self._running.append(self._free_ns)
        else:
            ahead = 0
        if len(self._running) > ahead:
            self.now_ns = self._running.popleft()

    def _duration(self, scheduled: Any) -> int:
        """Return what the law says of a step, in ns."""
        requests = self.driver.scheduler.requests
        decodes, decode_kv, chunks = 0, 0, []
        for name, tokens in scheduled.num_scheduled_tokens.items():
            request = requests[name]
            before = request.num_computed_tokens - tokens  # vLLM counts what it has scheduled as computed
            if tokens == 1 and before >= request.num_prompt_tokens:
                decodes, decode_kv = decodes + 1, decode_kv + before + 1
            else:
                chunks.append((tokens, before))
        return round(1e9 * iteration_seconds(self.law, decodes=decodes, decode_kv=decode_kv, chunks=chunks))

    def _deliver(self, outputs: Mapping[int, Any]) -> list[_Open]:
        """Hand tokens to the clients; return the calls that are over."""
        over = []
        for output in (one for engine in outputs.values() for one in engine.outputs):
            one = self.open.get(output.request_id)
            if one is None:
                continue
            if not one.tokens and output.new_token_ids:
                one.first_ns = self.now_ns
            one.tokens += output.new_token_ids
            leaves = one.call.leaves_after is not None and len(one.tokens) >= one.call.leaves_after
            if leaves and output.finish_reason is None:
                self.driver.abort(output.request_id)
            if leaves or output.finish_reason is not None:
                one.end_ns = self.now_ns
                over.append(self.open.pop(output.request_id))
        for one in over:
            one.asked.left -= 1
            if not one.asked.left:
                self._calls(one.asked.client, (self.now_ns, [call.tokens for call in one.asked.calls]))
        return over

    def _rest(self) -> None:
        """Let time pass while nothing runs: to the next arrival, and in small steps where requests are held."""
        next_ns = self._to_come[0][0] if self._to_come else None
        if self.open:
            poll_ns = self.now_ns + POLL_NS
            next_ns = poll_ns if next_ns is None else min(next_ns, poll_ns)
        if next_ns is not None:
            self.now_ns = max(self.now_ns, next_ns)
