"""What vLLM's KV cache is to the core: the groups of its layers, each with blocks of its own from one pool.

The one place that knows vLLM's kinds of caches (``vllm/v1/kv_cache_interface.py``). A kind is translated where the core
counts its blocks as vLLM's manager of that kind does (``tests/with_vllm/test_block_truth.py`` compares them);
every other is refused at the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    CrossAttentionSpec,
    FullAttentionSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowMLASpec,
    SlidingWindowSpec,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager
    from vllm.v1.request import Request

Group = dict[str, Any]
"""One of the core's setting ``kv_groups``."""


class NotServedError(ValueError):
    """A group of layers whose blocks the core cannot count; the text names it.

    Attributes
    ----------
    remedy
        What to tell vLLM so that it has no such group; None where nothing does.
    """

    def __init__(self, what: str, remedy: str | None = None) -> None:
        super().__init__(what)
        self.remedy = remedy


NO_CACHE: Group = {"kind": "state", "blocks": 1, "count": 1}
"""Of a model without a cache, as encoders that only embed are: a block for each seat, so that only the seats count."""
AS_FULL = "--disable-hybrid-kv-cache-manager, which keeps these layers in full where others are full, at more memory"


def _full(spec: Any, size: int, under_way: int) -> Group:
    del spec, under_way
    return {"kind": "full", "block_size": size}


def _window(spec: Any, size: int, under_way: int) -> Group:
    if getattr(spec, "bounded_replay", False):
        raise NotServedError("SlidingWindowMLASpec with bounded replay", "--no-swa-bounded-replay")
    # What leaves the window of a token goes when that token's step has ended: later by the steps under way beside it.
    window = spec.sliding_window + spec.extra_retained_tokens + under_way - 1
    return {"kind": "sliding_window", "window": window, "block_size": size}


def _chunk(spec: Any, size: int, under_way: int) -> Group:
    del under_way
    if spec.attention_chunk_size % size:
        what = f"chunks of {spec.attention_chunk_size} tokens that end inside a block of {size}"
        raise NotServedError(what, f"a --block-size that divides {spec.attention_chunk_size}; or {AS_FULL}")
    return {"kind": "chunked_local", "chunk": spec.attention_chunk_size, "block_size": size}


def _state(spec: Any, size: int, under_way: int) -> Group:
    del under_way
    blocks = 1 + spec.num_speculative_blocks
    if spec.mamba_cache_mode == "none":
        return {"kind": "state", "blocks": blocks}
    if spec.mamba_cache_mode == "align":
        # The checkpoint of a prompt's end is counted as if it were held all along: it is there for one prefill.
        blocks += spec.num_prefill_checkpoint_blocks
        return {"kind": "state", "blocks": blocks, "aligned": True, "block_size": size}
    remedy = "--mamba-cache-mode align, or --no-enable-prefix-caching"
    raise NotServedError(f"Mamba cache mode {spec.mamba_cache_mode!r}", remedy)


# By exact type: some subclasses drop tokens, so that a token does not keep its slot, or pin blocks of their own.
_KINDS: dict[type, Callable[[Any, int, int], Group]] = {
    FullAttentionSpec: _full,
    MLAAttentionSpec: _full,
    SlidingWindowSpec: _window,
    SlidingWindowMLASpec: _window,
    ChunkedLocalAttentionSpec: _chunk,
    MambaSpec: _state,
}


def managers(scheduler: Scheduler) -> tuple[SingleTypeKVCacheManager, ...]:
    """Return vLLM's managers of the groups, one each."""
    found: tuple[SingleTypeKVCacheManager, ...] = scheduler.kv_cache_manager.coordinator.single_type_managers
    return found


def is_full(manager: SingleTypeKVCacheManager, block_size: int) -> bool:
    """Return whether the group keeps every token, in blocks of `block_size`."""
    return _KINDS.get(type(manager.kv_cache_spec)) is _full and manager.block_size == block_size


def translate(scheduler: Scheduler) -> list[Group]:
    """Return the groups as the core's setting ``kv_groups``, those in which every token keeps its slot first.

    Raises
    ------
    NotServedError
        Naming a group that the core cannot count.
    """
    found: list[Group] = []
    under_way = 1 + scheduler.scheduler_config.async_scheduling  # steps of one request
    for manager in managers(scheduler):
        kind = type(manager.kv_cache_spec)
        if kind is CrossAttentionSpec:
            continue  # its blocks are of each request, not of each token: `encoder_blocks`
        if kind not in _KINDS:
            raise NotServedError(kind.__name__)
        group = _KINDS[kind](manager.kv_cache_spec, manager.block_size, under_way)
        same = next((one for one in found if one | {"count": 1} == group | {"count": 1}), None)
        if same is None:
            found.append(group | {"count": 1})
        else:
            same["count"] += 1
    if not managers(scheduler):
        return [NO_CACHE]
    if not found:
        raise NotServedError("CrossAttentionSpec, and none beside it")
    crosses = any(type(manager.kv_cache_spec) is CrossAttentionSpec for manager in managers(scheduler))
    if crosses and (len(found) > 1 or found[0]["kind"] != "full"):
        raise NotServedError("CrossAttentionSpec beside windows or states")
    return sorted(found, key=lambda group: group["kind"] != "full")


def encoder_blocks(scheduler: Scheduler, request: Request) -> int:
    """Return how many blocks `request` holds, while it is resident, for what its encoder reads: cross-attention's."""
    sizes = [each.block_size for each in managers(scheduler) if type(each.kv_cache_spec) is CrossAttentionSpec]
    tokens = sum(map(request.get_num_encoder_embeds, range(len(request.mm_features)))) if sizes else 0
    return sum(-(-tokens // size) for size in sizes)


def free_blocks(scheduler: Scheduler) -> Callable[[], int | None]:
    """Return what counts the blocks that vLLM has free; None of a model without a cache."""
    count: Callable[[], int] = scheduler.kv_cache_manager.block_pool.get_num_free_blocks
    return count if managers(scheduler) else lambda: None


def settings(scheduler: Scheduler) -> dict[str, Any]:
    """Return the core's settings that describe the KV cache: its blocks, their size, the groups, the drafts.

    The size is that of the first group, in whose tokens the core measures memory. One full group needs no list.

    Raises
    ------
    NotServedError
        Naming a group that the core cannot count.
    """
    groups = translate(scheduler)
    blocks = scheduler.kv_cache_manager.block_pool.num_gpu_blocks
    usable = blocks - 1 if managers(scheduler) else scheduler.max_num_active_reqs  # one is vLLM's null block
    size = groups[0].get("block_size", scheduler.block_size)
    cache: dict[str, Any] = {
        "kv_blocks": usable,
        "block_size": size,
        "num_speculative_tokens": scheduler.num_spec_tokens,
        "num_lookahead_tokens": scheduler.num_lookahead_tokens,  # what a draft model writes beyond them
        "watermark": _watermark(scheduler.scheduler_config.watermark, blocks, usable),
    }
    if groups != [{"kind": "full", "block_size": size, "count": 1}]:
        cache["kv_groups"] = groups
    return cache


def _watermark(share: float, blocks: int, usable: int) -> float:
    """Return the share of the usable blocks that keeps as many as `share` of all, the null block included."""
    kept = int(share * blocks)
    return share if int(share * usable) == kept else (kept + 0.5) / usable


def _filled(group: Group, tokens: int) -> int:
    """Return how many blocks of `group` the first `tokens` fill wholly that a request computed so far still holds."""
    if group["kind"] == "state":
        return 0  # copied, not shared
    size = group["block_size"]
    whole = tokens // size
    if group["kind"] == "sliding_window":
        whole -= min(whole, max(0, tokens + 1 - group["window"]) // size)
    elif group["kind"] == "chunked_local":
        whole -= min(whole, tokens // group["chunk"] * group["chunk"] // size)
    return int(whole * group["count"])


def most_tokens(groups: list[Group], blocks: int, tokens: int) -> int:
    """Return the longest beginning of `tokens` that fills at most so many blocks: what is saved where those are held.

    The core takes what residents hold as a number of tokens, which in a window or a state are not the first ones.
    """
    least, most = 0, tokens
    while least < most:
        middle = (least + most + 1) // 2
        if sum(_filled(group, middle) for group in groups) <= blocks:
            least = middle
        else:
            most = middle - 1
    return least
