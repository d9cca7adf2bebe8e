"""How much of the prompts of a trace repeats earlier prefixes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from wait_core.workload.traces.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Prefix sharing, as an unlimited cache would see it.

    Attributes
    ----------
    blocks, distinct : int
        Prefix blocks of all requests, and how many different ones there are.
    block_tokens : int
        Tokens of a block.
    requests : int
        Requests that begin with a block that an earlier request had.
    cached_tokens : int
        Prompt tokens in such leading blocks: at most this many need not be computed.
    cached_share : float
        Share of all prompt tokens.

    """

    blocks: int
    distinct: int
    block_tokens: int
    requests: int
    cached_tokens: int
    cached_share: float


def prefix_sharing(trace: Trace) -> Sharing | None:
    """Return how much of its prompts is shared; None for a trace without prefix blocks."""
    if trace.hash_ids is None or trace.hash_offsets is None or trace.hash_block_tokens is None:
        return None
    ids, offsets, size = trace.hash_ids, trace.hash_offsets, trace.hash_block_tokens
    _, first, which = np.unique(ids, return_index=True, return_inverse=True)
    owner = np.repeat(np.arange(len(trace)), np.diff(offsets))
    seen = owner[first][which] < owner
    # Leading blocks only: the KV of what follows a new block is new.
    at = np.arange(len(ids)) - np.repeat(offsets[:-1], np.diff(offsets))
    ends = np.diff(offsets).copy()
    new = ~seen
    np.minimum.at(ends, owner[new], at[new])
    tokens = np.minimum(ends * size, trace.prompt_tokens.astype(np.int64))
    return Sharing(
        blocks=len(ids),
        distinct=len(first),
        block_tokens=size,
        requests=int(np.count_nonzero(ends)),
        cached_tokens=int(tokens.sum()),
        cached_share=float(tokens.sum() / trace.prompt_tokens.sum(dtype=np.int64)),
    )
