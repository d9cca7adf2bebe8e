"""vLLM's look-up in its prefix cache, at a fifth of its cost where the cache is one group of full attention.

A request that is admitted is looked up twice: for the plan, and by vLLM. Its own code makes three calls a block; here
it is one. Like `wait_core.vllm.fast_decode`, this restates what one version of vLLM does, and is tied to its text; any
other vLLM, and any other cache, keeps its own look-up.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from vllm.v1.core.kv_cache_coordinator import UnitaryKVCacheCoordinator
from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager

from wait_core.vllm import vllm_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.kv_cache_utils import BlockHash, KVCacheBlock

RESTATED = (
    "vllm.v1.core.kv_cache_coordinator:UnitaryKVCacheCoordinator.find_longest_cache_hit",
    "vllm.v1.core.single_type_kv_cache_manager:FullAttentionManager.find_longest_cache_hit",
    "vllm.v1.core.kv_cache_utils:resolve_block_hashes",
    "vllm.v1.core.kv_cache_utils:make_block_hash_with_group_id",
    "vllm.v1.core.block_pool:BlockPool.get_cached_block",
)
TESTED = {"32d0515625902f1d": "0.32"}
"""Digest of the text of `RESTATED`, and the version of vLLM it is from."""


def install(manager: KVCacheManager) -> None:
    """Let the look-up of `manager` be one pass, if it answers as vLLM's own does."""
    coordinator: Any = manager.coordinator
    if type(coordinator) is not UnitaryKVCacheCoordinator or coordinator.eagle_group_ids:
        return
    (group,) = coordinator.single_type_managers
    pool, size = manager.block_pool, group.block_size
    if type(group) is not FullAttentionManager or size != pool.hash_block_size:
        return
    if vllm_text.digest(RESTATED) not in TESTED:
        return
    of_group = make_block_hash_with_group_id(b"", 0)

    def find_longest_cache_hit(
        block_hashes: Iterable[BlockHash], max_cache_hit_length: int
    ) -> tuple[tuple[list[KVCacheBlock]], int, int]:
        cached = pool.cached_block_hash_to_block.get_one_block  # a reset puts another map in its place
        blocks: list[KVCacheBlock] = []
        for block_hash in islice(block_hashes, max_cache_hit_length // size):
            if (block := cached(block_hash + of_group)) is None:
                break
            blocks.append(block)
        return (blocks,), len(blocks) * size, 0

    coordinator.find_longest_cache_hit = find_longest_cache_hit
