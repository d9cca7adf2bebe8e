"""Slow, obvious schedulers: a list of requests and loops over it. The reference for the compiled core."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Request:
    """A request of arXiv 2504.11320 §2: it passes the stages 0 (prefill), 1, ..., `output`, one an iteration."""

    id: int
    prompt: int
    output: int
    kind: int = 0
    stage: int = 0  # the next one
    resident: bool = False

    @property
    def kv(self) -> int:
        """KV tokens it holds: none before its prefill, l + s once stage s is done."""
        return self.prompt + self.stage - 1 if self.resident else 0


@dataclass
class Step:
    """What one iteration did: the stage that each request of the batch passed, and which were preempted, in that
    order."""

    batch: dict[int, int] = field(default_factory=dict)
    evicted: list[int] = field(default_factory=list)


class Paper:
    """What both algorithms of the paper share: memory of `capacity` tokens, the queue, and the order of
    admission."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.waiting: list[Request] = []
        self.residents: list[Request] = []  # in the order of their admission

    def step(self) -> Step:
        """Run one iteration, or nothing where the server waits for an arrival."""
        raise NotImplementedError

    def run(self, batch: list[Request]) -> Step:
        """Advance a batch by one stage; on overflow the last admitted goes first, and starts over."""
        step = Step()
        entering = [request for request in batch if not request.resident]
        order = self.residents + entering
        batch = list(batch)
        while sum(r.prompt + r.stage if r in batch else r.kv for r in order) > self.capacity:
            last = order.pop()
            batch = [request for request in batch if request is not last]
            if last.resident:
                step.evicted.append(last.id)
                last.stage, last.resident = 0, False
                self.waiting.insert(0, last)
        self.residents = order
        for request in batch:
            step.batch[request.id] = request.stage
            request.resident = True
            request.stage += 1
        self.waiting = [request for request in self.waiting if not request.resident]
        return step

    def finish(self) -> list[int]:
        """Take out the requests whose last stage is done."""
        finished = [request.id for request in self.residents if request.stage > request.output]
        self.residents = [request for request in self.residents if request.stage <= request.output]
        return finished
