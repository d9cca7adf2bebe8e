"""Nested WAIT (arXiv 2504.11320, Algorithm 2), the boundary queue being the queue of its first stage.

With `literal` it is as printed, with one iteration between leaving the boundary queue and that stage.
"""

from __future__ import annotations

from oracle import Paper, Request, Step


class NestedWait(Paper):
    """Thresholds n_k, integers, one a segment; segment k ends with stage `last_stages[k]`."""

    def __init__(self, capacity: int, last_stages: list[int], thresholds: list[int], *, literal: bool = False) -> None:
        super().__init__(capacity)
        self.literal = literal
        self.entering: set[int] = set()  # out of the boundary queue, not yet at the stage behind it
        self.last_stages = last_stages
        self.thresholds = thresholds
        self.reached: dict[int, int] = {}  # request at a boundary: since which iteration
        self.iteration = 0

    def first_stage(self, k: int) -> int:
        return self.last_stages[k - 1] + 1 if k else 0

    def entry_queue(self, k: int) -> list[Request]:
        """Requests whose next stage is the first of segment k, first come first."""
        if k == 0:
            return self.waiting
        at_boundary = [request for request in self.residents if request.stage == self.first_stage(k)]
        queue = [request for request in at_boundary if request.id not in self.entering]
        return sorted(queue, key=lambda request: self.reached[request.id])

    def select(self, segments: int) -> list[Request]:
        """At most n_k requests of every stage of the first `segments` segments."""
        batch: list[Request] = []
        for k, n in enumerate(self.thresholds[:segments]):
            chosen = self.entry_queue(k)[:n]
            if self.literal and k > 0:
                advancing = [r for r in self.residents if r.id in self.entering and r.stage == self.first_stage(k)]
                self.entering |= {request.id for request in chosen}
                self.entering -= {request.id for request in advancing}
                chosen = advancing
            batch += chosen
            last = (
                max(self.last_stages[k], *(r.stage for r in self.residents), 0)
                if self.is_last(k)
                else self.last_stages[k]
            )
            for stage in range(self.first_stage(k) + 1, last + 1):
                batch += [request for request in self.residents if request.stage == stage][:n]
        return batch

    def is_last(self, k: int) -> bool:
        return k == len(self.thresholds) - 1

    def step(self) -> Step:
        """Run one iteration, or nothing where the server waits for an arrival."""
        segments = 0
        while segments < len(self.thresholds) and len(self.entry_queue(segments)) >= self.thresholds[segments]:
            segments += 1
        step = self.run(self.select(segments))
        if segments and not step.batch and not step.evicted:
            # Paused segments hold the memory that the first one needs. The paper's algorithm would stop forever:
            # all segments continue, without new requests.
            step = self.run([request for request in self.select(len(self.thresholds)) if request.resident])
        self.iteration += 1
        for request in self.residents:
            if request.stage - 1 in self.last_stages[:-1] and request.id in step.batch:
                self.reached[request.id] = self.iteration
        return step
