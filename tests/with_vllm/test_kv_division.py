"""How layers are divided into groups of the KV cache, beside vLLM's own division."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from wait_core.hardware.deployment import CacheGroup
from wait_core.hardware.kv_groups import division

pytestmark = pytest.mark.filterwarnings("ignore")

KINDS = {
    "FullAttentionSpec": "full",
    "SlidingWindowSpec": "sliding_window",
    "ChunkedLocalAttentionSpec": "chunked_local",
}
HEADS = 8
"""KV heads of the layers that do not attend to everything."""


@pytest.mark.parametrize(
    ("full", "others", "chunked", "full_heads"),
    [
        (10, 20, False, 8),
        (10, 52, False, 8),
        (13, 12, False, 8),
        (12, 36, True, 8),
        (18, 18, False, 8),
        (5, 25, False, 2),
        (5, 25, False, 3),
    ],
)
def test_layers_are_divided_as_vllm_does(full: int, others: int, chunked: bool, full_heads: int) -> None:
    import torch
    from vllm.v1 import kv_cache_interface as specs
    from vllm.v1.core import kv_cache_utils

    head: dict[str, Any] = {"head_size": 128, "dtype": torch.bfloat16, "block_size": 16}
    layers = {f"full {i}": specs.FullAttentionSpec(num_kv_heads=full_heads, **head) for i in range(full)}
    for i in range(others):
        layers[f"other {i}"] = (
            specs.ChunkedLocalAttentionSpec(num_kv_heads=HEADS, attention_chunk_size=8192, **head)
            if chunked
            else specs.SlidingWindowSpec(num_kv_heads=HEADS, sliding_window=1024, **head)
        )
    unified = kv_cache_utils.unify_kv_cache_spec_page_size(layers)
    theirs = kv_cache_utils._get_kv_cache_groups_uniform_page_size(unified)
    kind, length = ("chunked-local", 8192) if chunked else ("sliding-window", 1024)
    a_head = 2 * 128 * 2
    ours = division(
        [
            CacheGroup(kind="full", layers=full, bytes_per_token=full * full_heads * a_head),
            CacheGroup(kind=kind, layers=others, bytes_per_token=others * HEADS * a_head, window=length),
        ],
        16,
    )
    counted = {(group["kind"], group["block_size"]): group["count"] for group in ours.groups}
    assert counted == Counter(
        (KINDS[type(group.kv_cache_spec).__name__], group.kv_cache_spec.block_size) for group in theirs
    )
    most = max(len(group.layer_names) for group in theirs)
    assert ours.block_bytes == most * theirs[0].kv_cache_spec.page_size_bytes
