"""What the prefix cache saves a waiting request: reported to the core, for those at the head of each queue only.

Blocks that running requests hold (``ref_cnt > 0``) are neither computed nor charged again. A cached block that no
request holds is a free one: a request that takes it need not compute it, but leaves one block less to the others.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from wait_core.vllm import kv_groups

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request

LOOKED_AT = 8
"""Requests of each queue that are looked at in a step."""
LOOKED_AT_GROUPS = 2
"""The same where the cache has several groups: each look is a lookup then."""


class Found(NamedTuple):
    """Tokens of a prompt that are cached, and those that residents hold; the last block of each, with its hash then."""

    cached: int = 0
    held: int = 0
    last_cached: tuple[KVCacheBlock, Any] | None = None
    last_held: tuple[KVCacheBlock, Any] | None = None


class Prefixes:
    """Looks up what the cache has of the prompts at the head of each queue.

    A lookup costs a step through the hashes of the prompt, about 0.5 us a block, as vLLM's own for the first in the
    queue in every step. So it is made once a request, and again when its answer may have changed: when the last block
    found is no longer cached or held, or the one after it has come to be. Of a prefix that two requests computed at the
    same time there are two copies, of which the cache offers one; with the other's holder gone the answer may be too
    large until then. What is held cannot change while nothing comes, goes, or computes a prompt; what is cached and not
    held may be evicted by any step. Where there are several groups it is made anew each time that something moved, for
    the first two of a queue.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._manager = manager = scheduler.kv_cache_manager
        self._groups = kv_groups.translate(scheduler)
        self._several = len(kv_groups.managers(scheduler)) > 1
        self._size = scheduler.block_size
        # Of one group: with finer hashes the one after a block's is not the next block's.
        self.used = manager.enable_caching and (self._several or scheduler.hash_block_size == self._size)
        self._found: dict[int, Found] = {}

    def tell(self, core: Any, requests: Mapping[int, Request]) -> bool:
        """Tell `core` where it knows another number; `requests` are those it knows, by number.

        Returns whether the answers may change though nothing comes, goes or computes a prompt.
        """
        found, news = {}, []
        for number, *known in core.first_in_queue(LOOKED_AT_GROUPS if self._several else LOOKED_AT):
            request = requests[number]
            before = self._found.get(number)
            found[number] = now = before if before and self._still(request, before) else self._look_up(request)
            hit = [min(tokens, request.num_tokens - 1) for tokens in (now.cached, now.held)]
            if hit != known:
                news.append((number, *hit))
        self._found = found
        if news:
            core.complete(hits=news)
        return any(now.cached > now.held for now in found.values())

    def _look_up(self, request: Request) -> Found:
        """Return what the cache has of a request."""
        if not self._manager.prefix_cache_lookup_enabled(request):
            return Found()
        lookup = self._manager.coordinator.find_longest_cache_hit
        hit, cached, _ = lookup(request.block_hashes, request.num_tokens - 1)
        if self._several:
            held = sum(1 for blocks in hit for block in blocks if block.ref_cnt > 0 and not block.is_null)
            return Found(cached, kv_groups.most_tokens(self._groups, held, cached))
        (blocks,) = hit
        held = sum(1 for _ in takewhile(lambda block: block.ref_cnt > 0 and not block.is_null, blocks))
        ends = [(blocks[n - 1], blocks[n - 1].block_hash) if n else None for n in (len(blocks), held)]
        return Found(cached, held * self._size, *ends)

    def _still(self, request: Request, found: Found) -> bool:
        """Return whether what was found is what a lookup would find, by the blocks at its two ends."""
        if self._several:
            return False
        if any(end is not None and end[0].block_hash != end[1] for end in (found.last_cached, found.last_held)):
            return False
        if found.last_held is not None and found.last_held[0].ref_cnt == 0:
            return False
        # The next block may be held by now, or cached.
        for tokens, free_is_no_news in ((found.held, True), (found.cached, False)):
            if tokens + self._size >= request.num_tokens or not self._manager.prefix_cache_lookup_enabled(request):
                continue
            after = self._manager.block_pool.get_cached_block(request.block_hashes[tokens // self._size], [0])
            if after is not None and not (free_is_no_news and after[0].ref_cnt == 0):
                return False
        return True
