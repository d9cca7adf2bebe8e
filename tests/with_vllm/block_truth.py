"""The core under policy ``vllm`` beside vLLM's own scheduler and KV cache manager, step for step and block for block.

Both get the same requests at the same steps, and outputs of the same lengths, which neither knows in advance. The core
receives nothing else: its host does what the plan says, and reports neither progress nor free blocks. After each step
both must have scheduled the same tokens of the same requests, preempted the same, and have as many blocks free.
"""

from __future__ import annotations

import random
import zlib
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from in_process import EOS, Driver, Setup, encoder_input, random_prompt

from wait_core import Scheduler

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

VOCABULARY = 500


@dataclass(frozen=True)
class Demand:
    """One request: when it comes, what it asks, how long its answer is."""

    name: str
    step: int  # steps after the start, or after the end of the turn before
    priority: int
    prompt: tuple[int, ...]
    output: int
    encoder: int = 0  # tokens that its encoder reads
    after: str | None = None  # the turn of the conversation before this one

    def token(self, index: int) -> int:
        """Return output token number `index`, from 1, as the model would say it."""
        return EOS if index >= self.output else 3 + self.draw(index) % VOCABULARY

    def draw(self, index: int) -> int:
        """Return a number that depends on the request and the place."""
        return zlib.crc32(f"{self.name} {index}".encode())


@dataclass(frozen=True)
class Case:
    """A configuration of both, and the requests."""

    name: str
    kv_groups: tuple[dict[str, Any], ...] = ()
    kv_blocks: int = 160
    block_size: int = 16
    max_num_seqs: int = 24
    token_budget: int = 256
    max_model_len: int = 1024
    watermark: float = 0.0
    long_prefill_token_threshold: int = 0
    prefix_caching: bool = False
    draft_tokens: int = 0
    drafts_vary: bool = False  # as n-grams are found or not; otherwise a decode always has all of them
    ahead: int = 0  # steps planned before the output of the first is known
    requests: int = 120
    prompt: tuple[int, int] = (1, 300)
    output: tuple[int, int] = (1, 200)
    gap: int = 12  # steps between two arrivals, at most
    encoder: tuple[int, int] | None = None  # tokens that an encoder reads of each request, where there is one
    turns: int = 1
    prefixes: int = 0  # prompts begin with one of this many
    priorities: int | None = None  # levels, under vLLM's scheduling policy of that name
    seed: int = 0
    preempts: int = 0  # at least this often, or the case does not test what it should
    differs: str = ""  # why both do not agree yet
    apart: int = 0  # most free blocks between them where they do not

    def demands(self) -> list[Demand]:
        """Draw the requests."""
        draw = random.Random(f"{self.seed} {self.requests}")
        levels, read = random.Random(self.seed), random.Random(self.seed)
        shared = [random_prompt(draw, draw.randint(40, 120)) for _ in range(self.prefixes)]
        demands: list[Demand] = []
        step = 0
        while len(demands) < self.requests:
            step += draw.randint(0, self.gap)
            known = list(draw.choice(shared)) if shared else []
            last: Demand | None = None
            for turn in range(self.turns):
                prompt = known + random_prompt(draw, draw.randint(*self.prompt))
                output = draw.randint(*self.output)
                if len(prompt) + output > self.max_model_len:
                    break
                name = f"{len(demands)}"
                wait = draw.randint(1, 20) if turn else step
                priority = levels.randrange(self.priorities) if self.priorities else 0
                reads = read.randint(*self.encoder) if self.encoder else 0
                last = Demand(name, wait, priority, tuple(prompt), output, reads, last.name if last else None)
                demands.append(last)
                known = prompt + [last.token(index) for index in range(1, output + 1)]
        return demands


@dataclass
class Seen:
    """What one step did."""

    tokens: dict[str, int] = field(default_factory=dict)
    preempted: set[str] = field(default_factory=set)
    free: int = 0


class Engine(Driver):
    """vLLM's side."""

    def __init__(self, case: Case, demands: dict[str, Demand]) -> None:
        self.case = case
        self.demands = demands
        self.ended: list[str] = []
        super().__init__(
            Setup(
                scheduler="AsyncScheduler" if case.ahead else "Scheduler",
                num_blocks=case.kv_blocks + 1,
                block_size=case.block_size,
                max_num_seqs=case.max_num_seqs,
                max_num_batched_tokens=case.token_budget,
                max_model_len=case.max_model_len,
                prefix_caching=case.prefix_caching,
                ahead=case.ahead,
                kv_groups=case.kv_groups,
                watermark=case.watermark,
                long_prefill_token_threshold=case.long_prefill_token_threshold,
                draft_tokens=case.draft_tokens,
                policy="fcfs" if case.priorities is None else "priority",
            )
        )

    def arrive(self, demand: Demand) -> None:
        most = self.setup.max_model_len - len(demand.prompt)
        reads = encoder_input(demand.name, demand.encoder) if demand.encoder else None
        self.add(demand.name, demand.prompt, most, demand.priority, reads)

    def iterate(self) -> Seen:
        seen = Seen()

        def look(scheduled: Any) -> None:
            drafts = scheduled.scheduled_spec_decode_tokens
            for name, tokens in scheduled.num_scheduled_tokens.items():
                seen.tokens[name] = tokens - len(drafts.get(name, ()))
            seen.preempted.update(scheduled.preempted_req_ids or ())
            seen.free = self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

        before = set(self.scheduler.requests)
        self.step(compare=look)
        self.ended += sorted(before.difference(self.scheduler.requests))
        return seen

    def _answer(self, scheduled: Any, ended: Container[str] | None) -> Any:
        from vllm.v1.outputs import ModelRunnerOutput

        del ended
        names = list(scheduled.num_scheduled_tokens)
        tokens = []
        for name in names:
            request = self.scheduler.requests[name]
            drafts = len(scheduled.scheduled_spec_decode_tokens.get(name, ()))
            first = request.num_computed_tokens - drafts - request.num_prompt_tokens + 1
            demand = self.demands[name]
            count = 0 if request.is_prefill_chunk else 1 + accepted(demand, first, drafts)
            tokens.append([demand.token(index) for index in range(first, first + count)])
        return ModelRunnerOutput(
            req_ids=names, req_id_to_index={name: i for i, name in enumerate(names)}, sampled_token_ids=tokens
        )

    def proposed(self, name: str) -> int:
        return proposed(self.case, self.demands[name], self.scheduler.requests[name].num_output_tokens)


def proposed(case: Case, demand: Demand, emitted: int) -> int:
    """Return how many tokens are drafted behind `emitted`."""
    return demand.draw(-emitted) % (case.draft_tokens + 1) if case.drafts_vary else case.draft_tokens


def accepted(demand: Demand, index: int, drafts: int) -> int:
    """Return how many of the drafts are right, of those proposed with output token number `index`."""
    return demand.draw(index) // 7 % (drafts + 1)


@dataclass
class Resident:
    """What the core's host knows about a request."""

    demand: Demand
    computed: int = 0
    emitted: int = 0
    resident: bool = False
    prefilling: bool = False


class Core:
    """The core's side: a host that follows the plan."""

    def __init__(self, case: Case) -> None:
        settings: dict[str, Any] = {
            "kv_blocks": case.kv_blocks,
            "block_size": case.block_size,
            "max_num_seqs": case.max_num_seqs,
            "token_budget": case.token_budget,
            "max_model_len": case.max_model_len,
            # vLLM counts its null block among those of which the watermark is a share.
            "watermark": case.watermark * (case.kv_blocks + 1) / case.kv_blocks,
        }
        if case.long_prefill_token_threshold:
            settings["long_prefill_token_threshold"] = case.long_prefill_token_threshold
        if case.kv_groups:
            settings["kv_groups"] = [dict(group) for group in case.kv_groups if group["kind"] != "cross_attention"]
        if case.draft_tokens:
            settings["num_speculative_tokens"] = case.draft_tokens
        if case.prefix_caching:
            settings["prefix_caching"] = True
        self.case = case
        self.core = Scheduler("vllm", **settings)
        self.requests: dict[str, Resident] = {}
        self._in_flight: deque[list[str]] = deque()

    def arrive(self, demand: Demand) -> None:
        self.requests[demand.name] = Resident(demand)
        hashes = self._hashes(demand) if self.case.prefix_caching else ()
        sizes = [group["block_size"] for group in self.case.kv_groups if group["kind"] == "cross_attention"]
        self.core.add(
            int(demand.name),
            len(demand.prompt),
            block_hashes=hashes,
            priority=demand.priority,
            encoder_blocks=sum(-(-demand.encoder // size) for size in sizes),
        )

    def _hashes(self, demand: Demand) -> list[int]:
        """Return the hash of each full block of prompt and output: of its tokens and all before them."""
        tokens = [*demand.prompt, *(demand.token(index) for index in range(1, demand.output + 1))]
        size = self.case.block_size
        hashes, last = [], 0
        for end in range(size, len(tokens) + 1, size):
            last = hash((last, *tokens[end - size : end])) & (1 << 64) - 1
            hashes.append(last)
        return hashes

    def iterate(self) -> Seen:
        plan = self.core.plan()
        chunks = {str(number): tokens for number, tokens in plan.prefill}
        seen = Seen(preempted={str(number) for number in plan.preempted})
        for name in seen.preempted:
            self.requests[name].resident = False
        cached = dict(plan.cached)
        for number in (*plan.admitted, *plan.resumed):
            it = self.requests[str(number)]
            it.resident = it.prefilling = True
            it.computed = cached.get(number, 0)
        paused = {str(number) for number in plan.paused}
        ended: list[str] = []
        progress: list[tuple[int, int]] = []
        for name, it in self.requests.items():
            if not it.resident or name in paused:
                continue
            seen.tokens[name] = chunks.get(name, 1)
            it.computed += seen.tokens[name]
            if it.prefilling and it.computed < len(it.demand.prompt) + it.emitted:
                continue
            drafts = 0
            if not it.prefilling and self.case.draft_tokens:
                drafts = proposed(self.case, it.demand, it.emitted)
            it.prefilling = False
            right = accepted(it.demand, it.emitted + 1, drafts)
            if right:
                it.computed += right
                progress.append((int(name), it.computed))
            it.emitted += 1 + right
            if it.emitted >= it.demand.output:
                ended.append(name)
        seen.free = self.case.kv_blocks - self.core.used_blocks
        self._report(bool(seen.tokens), ended, progress)
        return seen

    def _report(self, ran: bool, ended: list[str], progress: list[tuple[int, int]]) -> None:
        """Report the ends of the oldest step in flight, as far behind the plans as vLLM's scheduler learns of them."""
        if ran:
            self._in_flight.append(ended)
        if len(self._in_flight) > (self.case.ahead if ran else 0):
            known = [name for name in self._in_flight.popleft() if self.requests.pop(name, None)]
            self.core.complete(finished=[int(name) for name in known], progress=progress)


@dataclass
class Comparison:
    """How far both agreed."""

    steps: int = 0
    requests: int = 0
    preemptions: int = 0
    core_preemptions: int = 0
    tokens_differ: int = 0  # steps
    free_differs: int = 0  # steps
    largest: int = 0  # blocks
    first: str = ""  # the first difference

    def take(self, step: int, vllm: Seen, core: Seen) -> None:
        """Compare one step."""
        self.steps += 1
        self.preemptions += len(vllm.preempted)
        self.core_preemptions += len(core.preempted)
        tokens = (vllm.tokens, vllm.preempted) != (core.tokens, core.preempted)
        self.tokens_differ += tokens
        self.free_differs += vllm.free != core.free
        self.largest = max(self.largest, abs(vllm.free - core.free))
        if not self.first and (tokens or vllm.free != core.free):
            names = sorted({*vllm.tokens, *core.tokens}, key=int)
            differ = {
                name: (vllm.tokens.get(name, 0), core.tokens.get(name, 0))
                for name in names
                if vllm.tokens.get(name) != core.tokens.get(name)
            }
            self.first = (
                f"step {step}: tokens (vLLM, core) {differ}, "
                f"preempted {sorted(vllm.preempted)} {sorted(core.preempted)}, free {vllm.free} {core.free}"
            )

    @property
    def exact(self) -> bool:
        """Whether nothing differed."""
        return not self.first


def compare(case: Case, most_steps: int = 20_000) -> Comparison:
    """Run both side by side until all requests have left."""
    demands = {demand.name: demand for demand in case.demands()}
    engine, core = Engine(case, demands), Core(case)
    found = Comparison(requests=len(demands))
    due = [(demand.step, demand) for demand in demands.values() if demand.after is None]
    for step in range(most_steps):
        for demand in _due(due, step):
            engine.arrive(demand)
            core.arrive(demand)
        found.take(step, engine.iterate(), core.iterate())
        for name in engine.ended:
            due += [(step + it.step, it) for it in demands.values() if it.after == name]
        engine.ended.clear()
        if not (due or engine.scheduler.requests or core.requests):
            break
    return found


def _due(due: list[tuple[int, Demand]], step: int) -> Iterator[Demand]:
    now = [pair for pair in due if pair[0] <= step]
    due[:] = [pair for pair in due if pair[0] > step]
    return (demand for _, demand in now)
