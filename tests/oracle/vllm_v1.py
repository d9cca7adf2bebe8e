"""vLLM V1's scheduler as its own loop: running requests first, in order; then the waiting, in an iteration without
preemption."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Sequence:
    """A request as vLLM sees it: `tokens` known so far, of which `computed` have KV, in `blocks` blocks."""

    id: int
    prompt: int
    output: int
    tokens: int = 0
    computed: int = 0
    blocks: int = 0


@dataclass
class Step:
    """Tokens scheduled of each request, in the order of scheduling, and which were preempted."""

    scheduled: dict[int, int] = field(default_factory=dict)
    preempted: list[int] = field(default_factory=list)


class VllmV1:
    """Lists of running and waiting requests, and a count of free blocks."""

    def __init__(self, *, kv_blocks: int, block_size: int, max_num_seqs: int, token_budget: int, spare: int) -> None:
        self.free, self.block_size = kv_blocks, block_size
        self.max_num_seqs, self.token_budget, self.spare = max_num_seqs, token_budget, spare
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []

    def needed(self, request: Sequence, computed: int) -> int:
        return max(-(-computed // self.block_size) - request.blocks, 0)

    def allocate(self, request: Sequence, new_tokens: int) -> bool:
        needed = self.needed(request, request.computed + new_tokens)
        if needed > self.free:
            return False
        self.free -= needed
        request.blocks += needed
        return True

    def step(self) -> Step:
        step, budget, at = Step(), self.token_budget, 0
        while at < len(self.running) and budget > 0:
            request = self.running[at]
            new_tokens = min(request.tokens - request.computed, budget)
            while not self.allocate(request, new_tokens):
                victim = self.running.pop()
                self.free += victim.blocks
                victim.blocks = victim.computed = 0
                self.waiting.insert(0, victim)
                step.preempted.append(victim.id)
                if victim is request:
                    break
            else:
                step.scheduled[request.id] = new_tokens
                budget -= new_tokens
                at += 1
        while self.waiting and not step.preempted and budget > 0 and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            spare = self.spare if self.running else 0
            if self.needed(request, request.tokens) + spare > self.free:
                break
            new_tokens = min(request.tokens, budget)
            self.allocate(request, new_tokens)
            step.scheduled[request.id] = new_tokens
            budget -= new_tokens
            self.running.append(self.waiting.pop(0))
        for request in self.running:
            request.computed += step.scheduled.get(request.id, 0)
            # The last known token has been computed: it yields the next one.
            request.tokens += request.computed == request.tokens
        return step

    def finish(self) -> list[int]:
        done = [request for request in self.running if request.tokens == request.prompt + request.output]
        self.free += sum(request.blocks for request in done)
        self.running = [request for request in self.running if request not in done]
        return [request.id for request in done]
