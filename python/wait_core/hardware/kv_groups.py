"""A model's cache as the core counts it: groups of layers that take blocks of one pool.

As vLLM 0.32 divides it (v1/core/kv_cache_utils.py), a block is as large in every group. Groups have as many layers as
the kind with the fewest, or, if the kinds differ by less than a half, as the one with the most; what is missing to
whole groups is padding. Layers with less KV a token have more tokens in a block, or are padded where that does not come
out even.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wait_core.hardware.deployment import CacheGroup

FULL, SLIDING, CHUNKED = "full", "sliding-window", "chunked-local"
KINDS = {FULL: ("full", None), SLIDING: ("sliding_window", "window"), CHUNKED: ("chunked_local", "chunk")}
"""Kinds of cache groups: how the setting `kv_groups` names each, and its length."""
EVEN = 1.5
"""The kind with the most layers sets the size of the groups if it has less than this many times the fewest."""


class Division(NamedTuple):
    """How a pool is divided: the setting `kv_groups`, and the bytes of one block on one GPU."""

    groups: list[dict[str, Any]]
    block_bytes: int


def division(cache: Sequence[CacheGroup], block_size: int) -> Division:
    """Divide the cache of a model into groups.

    Parameters
    ----------
    cache : sequence of CacheGroup
        What the layers keep.
    block_size : int
        Tokens per block, of the layers with the most KV a token.

    """
    layer_bytes = {group: group.bytes_per_token // group.layers for group in cache}
    fewest, most = (choose(group.layers for group in cache) for choose in (min, max))
    layers = most if most < EVEN * fewest else fewest
    largest = max(layer_bytes.values())
    groups = []
    for group in cache:
        kind, length = KINDS[group.kind]
        wider, rest = divmod(largest, layer_bytes[group])
        # A chunk is whole blocks.
        size = block_size * (wider if rest == 0 else 1)
        if group.kind == CHUNKED and (group.window or 0) % size:
            size = block_size
        written: dict[str, Any] = {"kind": kind, "block_size": size, "count": -(-group.layers // layers)}
        groups.append(written if length is None else written | {length: group.window})
    return Division(groups, largest * layers * block_size)


def context_tokens(kv_blocks: int, block_size: int, groups: Sequence[Mapping[str, Any]], longest: int) -> int:
    """Return how many tokens of requests a pool holds at most, if none has more than `longest`.

    A request of n tokens takes at least min(n, W) tokens of a window W, and of a chunk all while it is the first; its
    longest context takes the least for each of its tokens. One full group: all tokens of the pool, exactly.
    """
    taken, size = 0, 1
    for group in groups:
        size *= group.get("block_size") or block_size
    for group in groups:
        kept = min(longest, group.get("window") or longest)
        if longest > (group.get("chunk") or longest) or group["kind"] == "state":
            kept = 0
        taken += group.get("count", 1) * kept * size // (group.get("block_size") or block_size)
    return kv_blocks * longest * size // taken if taken else kv_blocks * block_size
