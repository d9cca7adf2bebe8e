"""WAIT (arXiv 2504.11320, Algorithm 1), word for word."""

from __future__ import annotations

from oracle import Paper, Request, Step


class Wait(Paper):
    """Thresholds n_j, integers, one a type."""

    def __init__(self, capacity: int, thresholds: list[int]) -> None:
        super().__init__(capacity)
        self.thresholds = thresholds

    def step(self) -> Step:
        """Run one iteration, or nothing where the server waits for an arrival."""
        batch: list[Request] = []
        for kind, n in enumerate(self.thresholds):
            waiting = [request for request in self.waiting if request.kind == kind]
            if len(waiting) < n:
                continue  # the type pauses, its residents keep their KV
            residents = [request for request in self.residents if request.kind == kind]
            batch += waiting[:n]
            for stage in range(1, 1 + max((request.stage for request in residents), default=0)):
                batch += [request for request in residents if request.stage == stage][:n]
        # Admitted in the order of arrival.
        batch.sort(key=lambda request: (request.resident, request.id))
        return self.run(batch)
