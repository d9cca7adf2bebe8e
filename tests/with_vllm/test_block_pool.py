"""What vLLM's KV cache manager does, block for block: the record that the core's prefix cache is tested against.

The core's own tests replay the record. Here it is made again, by the vLLM that is installed. After a change:

    python tests/with_vllm/test_block_pool.py
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from engine import ENVIRONMENT

pytestmark = pytest.mark.filterwarnings("ignore")

RECORD = Path(__file__).parents[2] / "rust" / "core" / "tests" / "data" / "block_pool.txt"
BLOCK_SIZE = 4
BLOCKS = 24  # and one that vLLM keeps for itself
STEPS = 500


class Recorder:
    """Serves requests with few distinct prefixes, and writes down what that did to the blocks.

    hit  BLOCKS HELD HASH…          looked up: BLOCKS leading blocks are cached, HELD of which a request holds
    join REQUEST BLOCKS HELD HASH…  the same, and the request holds them now
    take REQUEST BLOCKS             it got new blocks
    name REQUEST HASH…              its next blocks got these hashes
    give REQUEST                    it freed all its blocks
    free ANONYMOUS HASH…            what is free now, in the order in which it will be taken
    """

    def __init__(self, seed: int) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import torch
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core.kv_cache_manager import KVCacheManager
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

        function = get_hash_fn_by_name("sha256")
        init_none_hash(function)
        self._hasher = get_request_block_hasher(BLOCK_SIZE, function)
        spec = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=1, head_size=1, dtype=torch.float32)
        groups = [KVCacheGroupSpec(["layer"], spec)]
        self.manager = KVCacheManager(
            KVCacheConfig(num_blocks=BLOCKS + 1, kv_cache_tensors=[], kv_cache_groups=groups),
            max_model_len=256,
            scheduler_block_size=BLOCK_SIZE,
            hash_block_size=BLOCK_SIZE,
        )
        self.random = random.Random(seed)
        self.requests: list[Any] = []  # those that hold blocks
        self.preempted: list[Any] = []
        self.lines: list[str] = []
        self._hashes: defaultdict[bytes, int] = defaultdict(lambda: len(self._hashes) + 1)
        self._created = 0

    def _write(self, what: str, *numbers: Any) -> None:
        self.lines.append(" ".join(map(str, [what, *numbers])))

    def _names(self, hashes: Any) -> list[int]:
        return [self._hashes[bytes(value)] for value in hashes]

    def _create(self) -> Any:
        from vllm import SamplingParams
        from vllm.v1.request import Request

        self._created += 1
        # A fork at each block, and a tail that may be empty: many prompts are equal, and many end with a full block.
        prompt = [token for _ in range(self.random.randint(0, 6)) for token in [self.random.randint(1, 2)] * BLOCK_SIZE]
        prompt += [3] * self.random.randint(0 if prompt else 1, BLOCK_SIZE - 1)
        return Request(
            request_id=str(self._created),
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(temperature=0.0, max_tokens=64),
            pooling_params=None,
            block_hasher=self._hasher,
        )

    def _schedule(self, request: Any) -> bool:
        """Compute some of the request's tokens: what a scheduler does with a request in one step."""
        manager = self.manager.coordinator.single_type_managers[0]
        joins = request not in self.requests
        cached, hits = None, 0
        if joins:
            cached, hits, _ = self.manager.get_computed_blocks(request)
            looked_up = request.block_hashes[: (request.num_tokens - 1) // BLOCK_SIZE]
            held = sum(block.ref_cnt > 0 for block in cached.blocks[0])
            hit = [len(cached.blocks[0]), held, *self._names(looked_up)]
        new = self.random.randint(1, request.num_tokens - request.num_computed_tokens - hits)
        before = len(manager.req_to_blocks.get(request.request_id, ()))
        named = manager.num_cached_block.get(request.request_id, 0)
        drafts = self.random.choice([0, 0, 0, 5])
        if self.manager.allocate_slots(request, new, hits, cached, num_lookahead_tokens=drafts) is None:
            if joins:
                self._write("hit", *hit)
            return False
        if joins:
            self._write("join", request.request_id, *hit)
            before = named = len(cached.blocks[0]) if cached else 0
        request.num_computed_tokens += hits + new
        if taken := len(manager.req_to_blocks[request.request_id]) - before:
            self._write("take", request.request_id, taken)
        if hashes := request.block_hashes[named : manager.num_cached_block.get(request.request_id, 0)]:
            self._write("name", request.request_id, *self._names(hashes))
        return True

    def _give(self, request: Any) -> None:
        self._write("give", request.request_id)
        self.manager.free(request)
        self.requests.remove(request)

    def _free(self) -> None:
        from vllm.v1.core.kv_cache_utils import get_block_hash

        keys = [block.block_hash for block in self.manager.block_pool.free_block_queue.get_all_free_blocks()]
        named = [key for key in keys if key is not None]
        anonymous = len(keys) - len(named)
        assert keys[anonymous:] == named, "a named block in front of an anonymous one"
        self._write("free", anonymous, *self._names(map(get_block_hash, named)))

    def step(self) -> None:
        """Do one thing to one request."""
        request = self.random.choice(self.requests) if self.requests else None
        if request is None or self.random.random() < 0.35:
            waiting = self.preempted.pop() if self.preempted and self.random.random() < 0.5 else self._create()
            if self._schedule(waiting):
                self.requests.append(waiting)
        elif self.random.random() < 0.35:
            self._give(request)
        else:
            if request.num_computed_tokens == request.num_tokens:
                request.append_output_token_ids(self.random.randint(1, 2))
            if not self._schedule(request):
                self._give(request)
                request.num_computed_tokens = 0
                self.preempted.append(request)
        self._free()


def record() -> str:
    recorder = Recorder(seed=1)
    for _ in range(STEPS):
        recorder.step()
    return "\n".join([f"capacity {BLOCKS}", *recorder.lines, ""])


def test_the_record_is_what_vllm_does() -> None:
    assert record() == RECORD.read_text()


if __name__ == "__main__":
    RECORD.write_text(record())
