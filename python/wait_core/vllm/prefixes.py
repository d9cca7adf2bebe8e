"""What the prefix cache saves a waiting request: reported to the core, for those at the head of each queue only.

Blocks that running requests hold (``ref_cnt > 0``) are neither computed nor charged again. A cached block that no
request holds is a free one: a request that takes it need not compute it, but leaves one block less to the others.
What an earlier request computed and the cache no longer has was evicted: the core learns from it how short memory is.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from wait_core.vllm import kv_groups, look_up

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request

LOOKED_AT = 8
"""Requests of each queue that are looked at in a step."""
LOOKED_AT_GROUPS = 2
"""The same where the cache has several groups: each look is a lookup then."""
MOST_LOOKED_AT = 64
"""The same while memory is left, and more of the last one's prompt is saved than computed: they enter together."""


class Found(NamedTuple):
    """What the cache has of a prompt, and what would have to change first for a lookup to find something else."""

    cached: int = 0
    """Tokens of the prompt that need not be computed."""
    held: int = 0
    """Those of them whose blocks residents hold."""
    seen: Sequence[tuple[KVCacheBlock, Any, bool]] = ()
    """The blocks that decide: each with its hash, and whether a resident held it."""
    next_hash: Any = None
    """By which the block after those cached would be found; None where the prompt ends before."""
    evicted: int = 0
    """Tokens behind those cached that an earlier request computed."""


class Computed:
    """The prefixes that requests have computed lately, by the hash of their last block, cached or not.

    Memory is bounded by two generations: the older is dropped once the younger has twice the blocks of the cache.
    """

    def __init__(self, blocks: int) -> None:
        self._most = 2 * blocks
        self._young: set[Any] = set()
        self._old: set[Any] = set()

    def add(self, hashes: Iterable[Any]) -> None:
        """Remember these."""
        self._young.update(hashes)
        if len(self._young) > self._most:
            self._old, self._young = self._young, set()

    def leading(self, hashes: Sequence[Any]) -> int:
        """Return how many of these have been computed, up to the first that has not."""
        young, old = self._young, self._old
        for i, each in enumerate(hashes):
            if each not in young and each not in old:
                return i
        return len(hashes)


class Prefixes:
    """Looks up what the cache has of the prompts at the head of each queue.

    A lookup costs a step through the hashes of the prompt, about 0.5 us a block, as vLLM's own for the first in the
    queue in every step. So it is made once a request, and again when its answer may have changed: when a block that
    decides is no longer cached, or is held where it was not or the other way round, or the one after them has come to
    be. Of a prefix that two requests computed at the same time there are two copies, of which the cache offers one;
    with the other's holder gone the answer may be too large until then. What is held cannot change while nothing comes,
    goes, or computes a prompt. Any step may evict what is cached and not held: the request then computes a few tokens
    more, and needs no more memory.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._manager = manager = scheduler.kv_cache_manager
        look_up.install(manager)
        self._groups = kv_groups.translate(scheduler)
        managers = kv_groups.managers(scheduler)
        self._several = len(managers) > 1
        self._looked_at = LOOKED_AT_GROUPS if self._several else LOOKED_AT
        self._size = scheduler.hash_block_size
        # Each of its blocks has a hash, and the answer ends where it has one no more: none is longer than this group's.
        self._full = next((i for i, each in enumerate(managers) if kv_groups.is_full(each, self._size)), None)
        # Of a prompt that is being computed a state is cached here and there only.
        self._whole = all(group["kind"] != "state" for group in self._groups)
        # Of one group: with finer hashes the one after a block's is not the next block's.
        self.used = manager.enable_caching and (self._several or scheduler.hash_block_size == scheduler.block_size)
        self._found: dict[int, Found] = {}
        self._computed = Computed(manager.block_pool.num_gpu_blocks)

    def tell(self, core: Any, requests: Mapping[int, Request], most: int, computing: Collection[int] = ()) -> bool:
        """Tell `core` where it knows another number; `requests` are those it knows, by number, `most` can be admitted.

        vLLM caches what it computes of a prompt as soon as that is scheduled: a request that is admitted in the same
        step behind one with the same beginning, as the samples of a prompt are, finds it, and held. The first of them
        is in the queue too, or one of those that are `computing` their prompts.

        Returns whether any step may change the answers, though nothing comes, goes or computes a prompt.
        """
        found: dict[int, Found] = {}
        news, changes = [], False
        ahead = self._ahead(map(requests.__getitem__, computing)) if computing else {}
        room = self._size * self._manager.block_pool.get_num_free_blocks()
        looked_at, more = 0, True
        while more and looked_at < min(most, MOST_LOOKED_AT):
            looked_at, more = 2 * looked_at or self._looked_at, False
            for number, cached, held in core.first_in_queue(min(most, looked_at)):
                if number in found:
                    continue
                request = requests[number]
                before = now = self._found.get(number)
                if now is None or not self._still(now):
                    now = self._look_up(request)
                found[number] = now
                common = self._common(now, request, ahead)
                will_be = now.cached + common
                will_be_held = will_be if common else now.held
                evicted = max(0, now.evicted - common)
                if (will_be, will_be_held) != (cached, held) or (now is not before and evicted):
                    news.append((number, will_be, will_be_held, evicted))
                changes |= now.cached > now.held
                room -= request.num_tokens - will_be_held
                more = room > 0 and 2 * will_be > request.num_tokens
        self._found = found
        if news:
            core.complete(hits=news)
        return changes

    def left(self, request: Request) -> None:
        """Remember what a request that has ended had computed."""
        if self.used:
            self._computed.add(request.block_hashes[: request.num_computed_tokens // self._size])

    def _ahead(self, requests: Iterable[Request]) -> dict[Any, Request]:
        """Return requests that compute their prompts, each by its first block that is not cached."""
        blocks = ((request, request.num_computed_tokens // self._size) for request in requests)
        return {each.block_hashes[at]: each for each, at in blocks if at < len(each.block_hashes)}

    def _common(self, found: Found, request: Request, ahead: dict[Any, Request]) -> int:
        """Return how many tokens behind those cached one of the requests `ahead` computes too, in whole blocks.

        Where none does, this request does so for those behind it.
        """
        if found.next_hash is None or not self._whole:
            return 0
        first = ahead.setdefault(found.next_hash, request)
        if first is request:
            return 0
        pairs = zip(first.block_hashes[found.cached // self._size :], self._behind(request, found.cached), strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return int(common * self._size)

    def _behind(self, request: Request, cached: int) -> Sequence[Any]:
        """Return the hashes of the blocks behind those cached that a lookup may find: one token is left to compute."""
        hashes: Sequence[Any] = request.block_hashes[cached // self._size : (request.num_tokens - 1) // self._size]
        return hashes

    def _look_up(self, request: Request) -> Found:
        """Return what the cache has of a request."""
        if not self._manager.prefix_cache_lookup_enabled(request):
            return Found()
        most = request.num_tokens - 1
        hit, cached, _ = self._manager.coordinator.find_longest_cache_hit(request.block_hashes, most)
        behind = self._behind(request, cached)
        next_hash = behind[0] if behind else None
        evicted = self._size * self._computed.leading(behind)
        if self._several:
            seen = [block for blocks in hit for block in blocks if not block.is_null]
            held = kv_groups.most_tokens(self._groups, sum(block.ref_cnt > 0 for block in seen), cached)
        else:
            (blocks,) = hit
            leading = 0
            for block in blocks:
                if block.ref_cnt == 0 or block.is_null:
                    break
                leading += 1
            held = leading * self._size
            # Who holds a block holds those before it, and with a block that is cached those before it are of use.
            seen = [*blocks[max(0, leading - 1) : leading + 1], *blocks[-1:]]
        return Found(cached, held, [(block, block.block_hash, block.ref_cnt > 0) for block in seen], next_hash, evicted)

    def _still(self, found: Found) -> bool:
        """Return whether what was found is what a lookup would find."""
        if self._full is None:
            return False
        for block, known_as, held in found.seen:
            if block.block_hash != known_as or (block.ref_cnt > 0) != held:
                return False
        if found.next_hash is None:
            return True
        return self._manager.block_pool.get_cached_block(found.next_hash, [self._full]) is None
