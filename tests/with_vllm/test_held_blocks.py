"""The blocks that requests hold in vLLM's own KV cache manager, against the formulas of ``held_blocks.py``."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from held_blocks import held

if TYPE_CHECKING:
    from held_blocks import Held

pytestmark = pytest.mark.filterwarnings("ignore")

FULL = {"kind": "full", "block_size": 16}
GROUPS: dict[str, tuple[dict[str, Any], ...]] = {
    "full": (FULL,),
    "window": (FULL, {"kind": "sliding_window", "window": 50, "block_size": 16}),
    "windows, small blocks": (
        {"kind": "full", "block_size": 32},
        {"kind": "sliding_window", "window": 64, "block_size": 16, "count": 3},
        {"kind": "sliding_window", "window": 20, "block_size": 16},
    ),
    "chunked": (FULL, {"kind": "chunked_local", "chunk": 48, "block_size": 16, "count": 2}),
    "chunk across blocks": (FULL, {"kind": "chunked_local", "chunk": 40, "block_size": 16}),
    "state": (FULL, {"kind": "state", "blocks": 1, "count": 3}),
    "states of drafts": (FULL, {"kind": "state", "blocks": 3}),
    "aligned state": (FULL, {"kind": "state", "blocks": 1, "block_size": 16, "count": 2}),
    "aligned states of drafts": (FULL, {"kind": "state", "blocks": 3, "block_size": 16}),
}


class Followed:
    """A scheduler of vLLM whose requests are held against the formulas, step by step."""

    def __init__(self, groups: tuple[dict[str, Any], ...], **setup: Any) -> None:
        from in_process import Driver, Setup

        self.groups = [group for group in groups for _ in range(group.get("count", 1))]
        self.driver = Driver(Setup(kv_groups=groups, **setup))
        self.scheduler = self.driver.scheduler
        self.held: dict[str, list[Held]] = {}
        self.compared = self.preempted = self.hits = 0

    def step(self) -> None:
        requests = self.scheduler.requests
        before = {name: (it.num_computed_tokens, it.num_in_flight_tokens) for name, it in requests.items()}
        managers = self.scheduler.kv_cache_manager.coordinator.single_type_managers

        def compare(scheduled: Any) -> None:
            for name in scheduled.preempted_req_ids or ():
                del self.held[name]
                self.preempted += 1
            for name, tokens in scheduled.num_scheduled_tokens.items():
                computed, in_flight = before[name]
                if name not in self.held:
                    computed, in_flight = requests[name].num_computed_tokens - tokens, 0
                    self.held[name] = [held(group, self.driver.setup.block_size) for group in self.groups]
                    self.hits += computed > 0
                    for each in self.held[name]:
                        each.hit(computed)
                reached = computed + tokens
                ahead = min(self.scheduler.num_lookahead_tokens, self.scheduler.max_model_len - reached)
                expected = [each.step(computed - in_flight, reached, ahead) for each in self.held[name]]
                real = [sum(not block.is_null for block in manager.req_to_blocks[name]) for manager in managers]
                assert real == expected, (name, computed, in_flight, tokens, self.groups)
                self.compared += 1

        self.driver.step(compare=compare)
        self.held = {name: each for name, each in self.held.items() if name in requests}


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("drafts", [0, 2])
@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("groups", GROUPS)
def test_a_request_holds_what_the_formulas_say(groups: str, caching: bool, drafts: int, ahead: int) -> None:
    from in_process import random_prompt

    kinds = GROUPS[groups]
    if caching and groups in ("state", "states of drafts"):
        pytest.skip("vLLM caches no prefix of a model that keeps no states")
    if caching and groups == "chunk across blocks":
        pytest.skip("a hit of vLLM's may lack the first blocks of such a chunk; no model has one")
    draw = random.Random(f"{groups} {caching} {drafts} {ahead}")
    followed = Followed(
        kinds,
        scheduler="AsyncScheduler" if ahead else "Scheduler",
        ahead=ahead,
        draft_tokens=drafts,
        prefix_caching=caching,
        num_blocks=40 * sum(group.get("count", 1) for group in kinds),
        max_num_seqs=16,
        max_num_batched_tokens=96,
        max_model_len=512,
        long_prefill_token_threshold=60,
    )
    followed.scheduler.num_lookahead_tokens = draw.choice((0, drafts))  # a draft model writes KV of its own
    prefixes = [random_prompt(draw, 80) for _ in range(3)]
    for i in range(40):
        prompt = draw.choice(prefixes) + random_prompt(draw, draw.randrange(1, 200))
        followed.driver.add(f"{i}", prompt, draw.randrange(1, 150))
    for _ in range(4000):
        followed.step()
        if not followed.scheduler.requests:
            break
    assert not followed.scheduler.requests
    assert followed.compared > 1000
    assert followed.preempted > 0
    assert bool(followed.hits) == caching
