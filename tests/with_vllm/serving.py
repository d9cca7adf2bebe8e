"""Clients, and the loop that serves them with an engine on a clock of its own.

What a client asks may hang on what it was answered, and when, so that closed loops are clients like any other. Two
engines are served this way: vLLM's scheduler under a virtual clock (virtual.py), and the real engine on the processor
time that it takes (processor.py).
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

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
        Tokens after which the model ends the answer. Schedulers do not know it.
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
    """What one run came to: one entry a request, by arrival, in ns and tokens.

    Attributes
    ----------
    first_ns
        When the first token came; None where the request ended without one.
    """

    arrival_ns: Column
    first_ns: list[int | None]
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
        """Time to first token in seconds, of the requests that got one."""
        waits = [first - came for came, first in zip(self.arrival_ns, self.first_ns, strict=True) if first is not None]
        return _seconds(np.array(waits, np.int64))

    def in_time(self, target_s: float) -> float:
        """Share of all requests whose first token came within a time."""
        return float((self.ttft <= target_s).sum() / len(self.first_ns))

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
    first_ns: int | None = None
    end_ns: int = 0
    tokens: list[int] = field(default_factory=list)


class Serving(ABC):
    """An engine, its clock, and the clients that it serves.

    Parameters
    ----------
    max_model_len
        The engine's context in tokens.
    """

    def __init__(self, max_model_len: int) -> None:
        self.max_model_len = max_model_len
        self.open: dict[str, _Open] = {}
        self._to_come: list[tuple[int, int, Client, Sequence[Call]]] = []  # a heap by time, then by order
        self._order = 0
        self._begun_ns = 0  # the clients' time begins here

    @property
    @abstractmethod
    def now_ns(self) -> int:
        """The engine's time."""

    @abstractmethod
    def wait(self, until_ns: int) -> None:
        """Let time pass while nothing runs."""

    @abstractmethod
    def add(self, call: Call, max_tokens: int) -> None:
        """Queue a request."""

    @abstractmethod
    def abort(self, name: str) -> None:
        """End a request as a client that goes away does."""

    @abstractmethod
    def step(self) -> tuple[Any, Mapping[int, Any] | None]:
        """Schedule a step and let its time pass; return vLLM's ``SchedulerOutput``, and the outputs that came in."""

    def run(self, clients: Sequence[Client]) -> Served:
        """Serve until every client has all its answers.

        Raises
        ------
        RuntimeError
            Where requests wait and nothing runs for an hour of the engine's time.
        """
        steps = self.steps(clients)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                served: Served = end.value
                return served

    def steps(self, clients: Sequence[Client]) -> Generator[None, None, Served]:
        """Do what `run` does, and pause after each step."""
        self._begun_ns = self.now_ns
        for client in clients:
            self._calls(client, None)
        done: list[_Open] = []
        steps = preemptions = hits = 0
        progressed_ns = self.now_ns
        while self._to_come or self.open:
            self._arrive()
            scheduled, outputs = self.step()
            if scheduled.total_num_scheduled_tokens:
                steps, progressed_ns = steps + 1, self.now_ns
            preemptions += len(scheduled.preempted_req_ids or ())
            hits += sum(new.num_computed_tokens for new in scheduled.scheduled_new_reqs)
            if outputs is not None:
                done += self._deliver(outputs)
            elif not scheduled.total_num_scheduled_tokens:
                self._rest()
                if self.now_ns - progressed_ns > 3_600_000_000_000:
                    raise RuntimeError(f"{len(self.open)} requests wait for ever")
            yield
        done.sort(key=lambda one: (one.arrival_ns, one.call.name))
        return Served(
            arrival_ns=np.array([one.arrival_ns for one in done], np.int64),
            first_ns=[one.first_ns for one in done],
            end_ns=np.array([one.end_ns for one in done], np.int64),
            output=np.array([len(one.tokens) for one in done], np.int64),
            steps=steps,
            preemptions=preemptions,
            hit_tokens=hits,
        )

    def _calls(self, client: Client, answers: Answers | None) -> None:
        try:
            at_ns, calls = next(client) if answers is None else client.send(answers)
        except StopIteration:
            return
        self._order += 1
        heapq.heappush(self._to_come, (self._begun_ns + at_ns, self._order, client, calls))

    def _arrive(self) -> None:
        while self._to_come and self._to_come[0][0] <= self.now_ns:
            at_ns, _, client, calls = heapq.heappop(self._to_come)
            asked = _Asked(client, left=len(calls))
            asked.calls = [_Open(call, asked, at_ns) for call in calls]
            for one in asked.calls:
                call = one.call
                self.open[call.name] = one
                room = self.max_model_len - len(call.prompt)
                self.add(call, min(call.max_tokens or room, room))

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
                self.abort(output.request_id)
            if leaves or output.finish_reason is not None:
                one.end_ns = self.now_ns
                over.append(self.open.pop(output.request_id))
        for one in over:
            one.asked.left -= 1
            if not one.asked.left:
                tokens = [call.tokens for call in one.asked.calls]
                self._calls(one.asked.client, (self.now_ns - self._begun_ns, tokens))
        return over

    def _rest(self) -> None:
        """Let time pass while nothing runs: to the next arrival, and in small steps where requests are held."""
        next_ns = self._to_come[0][0] if self._to_come else None
        if self.open:
            poll_ns = self.now_ns + POLL_NS
            next_ns = poll_ns if next_ns is None else min(next_ns, poll_ns)
        if next_ns is not None:
            self.wait(next_ns)
