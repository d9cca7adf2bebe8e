"""What the prefix cache saves a waiting request: told to the core, for those at the head of the line only.

Saved are the blocks that running requests hold (``ref_cnt > 0``). A cached block that nobody holds is a free one:
whoever takes it need not compute it, but leaves one block less to the others.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm.v1.core.kv_cache_utils import BlockHash, KVCacheBlock
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request

LOOKED_AT = 8
"""Requests of each line that are looked at in a step."""


class Prefixes:
    """Looks up what running requests hold of the prompts at the head of the line.

    A lookup costs a step through the hashes of the prompt, about 0.5 us a block, as vLLM's own for the first in line in
    every step. So it is made once a request, and again when its answer may have changed: when the last block found is
    no longer held, or the one after it has come to be. Of a prefix that two requests computed at the same time there
    are two copies, of which the cache offers one; with the other's holder gone the answer may be too large until then.
    Neither can be while nobody comes, goes, or computes a prompt (`moved`): such a step looks at nothing. A prompt that
    repeats the output of a request still running is seen with the next that does.

    Attributes
    ----------
    moved
        Whether somebody has come, gone or computed a prompt since the core was told.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._manager = manager = scheduler.kv_cache_manager
        self._size = scheduler.block_size
        # With finer hashes the one after a block's is not the next block's.
        self.used = manager.enable_caching and scheduler.hash_block_size == self._size
        self.moved = True
        self._found: dict[int, tuple[KVCacheBlock | None, BlockHash | None, int]] = {}

    def tell(self, core: Any, requests: Mapping[int, Request]) -> None:
        """Tell `core` where it knows another number; `requests` are those it knows, by number."""
        self.moved = False
        found, news = {}, []
        for number, known in core.first_in_queue(LOOKED_AT):
            request = requests[number]
            before = self._found.get(number)
            found[number] = now = before if before and self._still(request, *before) else self._look_up(request)
            tokens = min(now[2] * self._size, request.num_prompt_tokens - 1)
            if tokens != known:
                news.append((number, tokens))
        self._found = found
        if news:
            core.complete(shared=news)

    def _look_up(self, request: Request) -> tuple[KVCacheBlock | None, BlockHash | None, int]:
        """Return the last block held, its hash, and how many there are."""
        if not self._manager.prefix_cache_lookup_enabled(request):
            return None, None, 0
        hit, _, _ = self._manager.coordinator.find_longest_cache_hit(request.block_hashes, request.num_tokens - 1)
        held = list(takewhile(lambda block: block.ref_cnt > 0, hit[0]))
        return (held[-1], held[-1].block_hash, len(held)) if held else (None, None, 0)

    def _still(self, request: Request, last: KVCacheBlock | None, its_hash: BlockHash | None, count: int) -> bool:
        if last is not None and (last.ref_cnt == 0 or last.block_hash != its_hash):
            return False
        if (count + 1) * self._size >= request.num_tokens or not self._manager.prefix_cache_lookup_enabled(request):
            return True
        after = self._manager.block_pool.get_cached_block(request.block_hashes[count], [0])
        return after is None or after[0].ref_cnt == 0
