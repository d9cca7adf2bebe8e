"""What vLLM's KV cache manager does, block for block: the records that the core's prefix cache is tested against.

The core's own tests replay the records. Here they are made again, by the vLLM that is installed. After a change:

    python tests/with_vllm/test_block_pool.py
"""

from __future__ import annotations

import json
import math
import os
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from engine import ENVIRONMENT

pytestmark = pytest.mark.filterwarnings("ignore")

DATA = Path(__file__).parents[2] / "rust" / "core" / "tests" / "data"
RECORD = DATA / "block_pool.txt"
RECORD_OF_GROUPS = DATA / "block_pool_groups.txt"
BLOCK_SIZE = 4
BLOCKS = 24  # and one that vLLM keeps for itself
STEPS = 500
FULL = {"kind": "full", "block_size": 4, "count": 1}
WINDOW = {"kind": "sliding_window", "window": 6, "block_size": 4, "count": 1}
CHUNKS = {"kind": "chunked_local", "chunk": 8, "block_size": 4, "count": 2}
GROUPS = (
    (FULL, WINDOW),
    (FULL, WINDOW | {"window": 11, "count": 2}, WINDOW),
    (WINDOW, WINDOW | {"window": 14}),
    (FULL, WINDOW | {"block_size": 8}),
    (FULL | {"block_size": 8}, WINDOW | {"block_size": 8}, WINDOW),
    (FULL, CHUNKS),
)


def _set_environment() -> None:
    """Set what vLLM reads when it is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class _Recorder:
    """Serves requests with few distinct prefixes by a KV cache manager of vLLM, and writes down what that did."""

    gives: float
    """How often a request is ended rather than run."""

    def __init__(self, specs: list[Any], blocks: int, seed: int) -> None:
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core.kv_cache_manager import KVCacheManager
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec

        function = get_hash_fn_by_name("sha256")
        init_none_hash(function)
        self._hasher = get_request_block_hasher(BLOCK_SIZE, function)
        groups = [KVCacheGroupSpec([f"layer{i}"], spec) for i, spec in enumerate(specs)]
        self.manager = KVCacheManager(
            KVCacheConfig(num_blocks=blocks + 1, kv_cache_tensors=[], kv_cache_groups=groups),
            max_model_len=256,
            scheduler_block_size=math.lcm(*(spec.block_size for spec in specs)),
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
        prompt = [token for token in self._forks() for _ in range(BLOCK_SIZE)]
        prompt += [3] * self.random.randint(0 if prompt else 1, BLOCK_SIZE - 1)
        return Request(
            request_id=str(self._created),
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(temperature=0.0, max_tokens=64),
            pooling_params=None,
            block_hasher=self._hasher,
        )

    def _forks(self) -> list[int]:
        """Draw a token for each block."""
        raise NotImplementedError

    def _schedule(self, request: Any) -> bool:
        """Compute some of the request's tokens: what a scheduler does with a request in one step."""
        raise NotImplementedError

    def _shown(self, key: Any) -> Any:
        """Return how a named block is written."""
        raise NotImplementedError

    def _give(self, request: Any) -> None:
        self._write("give", request.request_id)
        self.manager.free(request)
        self.requests.remove(request)

    def _free(self) -> None:
        keys = [block.block_hash for block in self.manager.block_pool.free_block_queue.get_all_free_blocks()]
        named = [key for key in keys if key is not None]
        anonymous = len(keys) - len(named)
        assert keys[anonymous:] == named, "a named block in front of an anonymous one"
        self._write("free", anonymous, *map(self._shown, named))

    def step(self) -> None:
        """Do one thing to one request."""
        request = self.random.choice(self.requests) if self.requests else None
        if request is None or self.random.random() < 0.35:
            waiting = self.preempted.pop() if self.preempted and self.random.random() < 0.5 else self._create()
            if self._schedule(waiting):
                self.requests.append(waiting)
        elif self.random.random() < self.gives:
            self._give(request)
        else:
            if request.num_computed_tokens == request.num_tokens:
                request.append_output_token_ids(self.random.randint(1, 2))
            if not self._schedule(request):
                self._give(request)
                request.num_computed_tokens = 0
                self.preempted.append(request)
        self._free()


class Recorder(_Recorder):
    """One group of full attention.

    hit  BLOCKS HELD HASH…          looked up: BLOCKS leading blocks are cached, HELD of which a request holds
    join REQUEST BLOCKS HELD HASH…  the same, and the request holds them now
    take REQUEST BLOCKS             it got new blocks
    name REQUEST HASH…              its next blocks got these hashes
    give REQUEST                    it freed all its blocks
    free ANONYMOUS HASH…            what is free now, in the order in which it will be taken
    """

    gives = 0.35

    def __init__(self, seed: int) -> None:
        _set_environment()
        import torch
        from vllm.v1.kv_cache_interface import FullAttentionSpec

        spec = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=1, head_size=1, dtype=torch.float32)
        super().__init__([spec], BLOCKS, seed)

    def _forks(self) -> list[int]:
        return [self.random.randint(1, 2) for _ in range(self.random.randint(0, 6))]

    def _shown(self, key: Any) -> Any:
        from vllm.v1.core.kv_cache_utils import get_block_hash

        return self._hashes[bytes(get_block_hash(key))]

    def _schedule(self, request: Any) -> bool:
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


class GroupRecorder(_Recorder):
    """Several groups.

    groups BLOCKS JSON              a new cache of BLOCKS blocks
    find TARGET TOKENS HELD HASH…   of TARGET tokens TOKENS are found; a request holds HELD of their blocks
    join REQUEST                    it holds them now
    step REQUEST START END HASH…    its tokens up to END are computed; output has filled blocks with these hashes
    leave REQUEST START             its next step is to begin at START, and only what it no longer needs is freed
    give REQUEST                    it freed all its blocks
    free ANONYMOUS GROUP:HASH…      what is free now, in the order in which it will be taken
    """

    gives = 0.3

    def __init__(self, groups: tuple[dict[str, Any], ...], seed: int) -> None:
        _set_environment()
        from in_process import Setup, kv_cache_spec

        specs = [kv_cache_spec(group, Setup()) for group in groups for _ in range(group["count"])]
        blocks = BLOCKS * len(specs)
        super().__init__(specs, blocks, seed)
        self._reported: dict[str, int] = {}  # hashes in the record, by request
        self.lines.append(f"groups {blocks} {json.dumps(groups)}")

    def _forks(self) -> list[int]:
        return [self.random.choice([1, 1, 2]) for _ in range(self.random.randint(0, 9))]

    def _shown(self, key: Any) -> Any:
        from vllm.v1.core.kv_cache_utils import get_block_hash, get_group_id

        return f"{get_group_id(key)}:{self._hashes[bytes(get_block_hash(key))]}"

    def _schedule(self, request: Any) -> bool:
        joins = request not in self.requests
        cached, hits = None, 0
        if joins:
            cached, hits, _ = self.manager.get_computed_blocks(request)
            skipped = [
                manager.get_num_skipped_tokens(hits) // manager.block_size
                for manager in self.manager.coordinator.single_type_managers
            ]
            joined = [block for blocks, first in zip(cached.blocks, skipped, strict=True) for block in blocks[first:]]
            held = sum(block.ref_cnt > 0 for block in joined)
            hashes = self._names(request.block_hashes)
            self._write("find", request.num_tokens, hits, held, *hashes)
            self._reported[request.request_id] = len(hashes)
        start = request.num_computed_tokens + hits
        new = self.random.randint(1, request.num_tokens - start)
        if self.manager.allocate_slots(request, new, hits, cached) is None:
            if not joins:
                self._write("leave", request.request_id, start)
            return False
        if joins:
            self._write("join", request.request_id)
        request.num_computed_tokens = start + new
        reported = self._reported[request.request_id]
        more = self._names(request.block_hashes[reported:])
        self._reported[request.request_id] = reported + len(more)
        self._write("step", request.request_id, start, start + new, *more)
        return True


def record_of_groups() -> str:
    lines = []
    for seed, groups in enumerate(GROUPS):
        recorder = GroupRecorder(groups, seed)
        for _ in range(STEPS // 4):
            recorder.step()
        lines += recorder.lines
    return "\n".join([*lines, ""])


def record() -> str:
    recorder = Recorder(seed=1)
    for _ in range(STEPS):
        recorder.step()
    return "\n".join([f"capacity {BLOCKS}", *recorder.lines, ""])


def test_the_record_is_what_vllm_does() -> None:
    assert record() == RECORD.read_text()


def test_the_record_of_groups_is_what_vllm_does() -> None:
    assert record_of_groups() == RECORD_OF_GROUPS.read_text()


if __name__ == "__main__":
    RECORD.write_text(record())
    RECORD_OF_GROUPS.write_text(record_of_groups())
