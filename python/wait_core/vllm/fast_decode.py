"""Steady decode at a fraction of stock's cost: the setting ``fast_decode``, off unless asked for.

vLLM's scheduler does the same Python work for a request that decodes its 17th token as for one that takes a new block.
Of what it does per running request and step, nearly all comes to nothing when the next token fits the last block: no
block is allocated, none becomes full, no hash is due. `install` puts a guard before each of the four methods in which
that time goes: where the guard can see that stock would change nothing, the answer is given at once; everything else is
stock's own code. The loop of ``schedule()`` itself stays vLLM's.

Each guard restates what one version of vLLM does, so it is tied to the text of that code: `install` refuses a vLLM in
which any of `GUARDED` reads differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.core import single_type_kv_cache_manager
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import CachedRequestData
from vllm.v1.core.sched.utils import check_stop
from vllm.v1.request import Request, RequestStatus

from wait_core.vllm import vllm_text
from wait_core.vllm.config import ConfigError

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput

GUARDED = (
    "vllm.v1.core.sched.scheduler:Scheduler._update_after_schedule",
    "vllm.v1.core.sched.scheduler:Scheduler._make_cached_request_data",
    "vllm.v1.core.sched.scheduler:Scheduler._update_request_with_output",
    "vllm.v1.core.sched.async_scheduler:AsyncScheduler._update_after_schedule",
    "vllm.v1.core.sched.async_scheduler:AsyncScheduler._update_request_with_output",
    "vllm.v1.core.sched.utils:check_stop",
    "vllm.v1.core.kv_cache_manager:KVCacheManager.allocate_slots",
    "vllm.v1.core.kv_cache_manager:KVCacheManager.cache_blocks",
    "vllm.v1.core.kv_cache_manager:KVCacheManager.create_kv_cache_blocks",
    "vllm.v1.core.kv_cache_manager:KVCacheBlocks.get_block_ids",
    "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator.remove_skipped_blocks",
    "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator.get_num_blocks_to_allocate",
    "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator.allocate_new_blocks",
    "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator.get_num_cacheable_tokens",
    "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator.cache_blocks",
    "vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager.remove_skipped_blocks",
    "vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager.get_num_skipped_tokens",
    "vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager.get_num_blocks_to_allocate",
    "vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager.allocate_new_blocks",
    "vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager.cache_blocks",
    "vllm.v1.core.single_type_kv_cache_manager:FullAttentionManager.cache_blocks",
    "vllm.v1.core.kv_cache_utils:get_request_block_hasher",
    "vllm.v1.core.block_pool:BlockPool.get_num_free_blocks",
    "vllm.v1.request:Request.append_output_token_ids",
    "vllm.v1.request:Request.update_block_hashes",
)
"""What the guards restate, or rely on to change nothing."""

TESTED = {"8781a3d7a66f0379": "0.32"}
"""Digest of the text of `GUARDED`, and the version of vLLM it is from."""


def install(scheduler: Any) -> None:
    """Guard the four methods of `scheduler`, on an AsyncScheduler whose KV cache is one group of full attention.

    Raises
    ------
    ConfigError
        Where something about the engine, or the text of vLLM, is not what the guards were written for.
    """
    text = vllm_text.digest(GUARDED)
    manager = scheduler.kv_cache_manager
    groups = manager.coordinator.single_type_managers
    group = groups[0]
    reasons = {
        f"this vLLM: code it restates has changed ({text})": text not in TESTED,
        "an engine without asynchronous scheduling": not isinstance(scheduler, AsyncScheduler),
        "several groups of the KV cache": len(groups) > 1,
        "speculative decoding": scheduler.num_spec_tokens > 0 or scheduler.num_lookahead_tokens > 0,
        "pipeline parallelism": scheduler.use_pp,
        "a KV connector": scheduler.connector is not None,
        f"the KV cache manager {type(group).__name__}": (
            type(group) is not single_type_kv_cache_manager.FullAttentionManager
        ),
        "hashes finer than a block": scheduler.hash_block_size != group.block_size,
        "multi-module prediction": manager.coordinator.num_reprefillable_tokens > 0,
    }
    for what, present in reasons.items():
        if present:
            raise ConfigError(f"wait_core.fast_decode does not cover {what}: leave it out")
    _guard_blocks(manager, group)
    _guard_schedule(scheduler, manager.empty_kv_cache_blocks)
    _guard_update(scheduler, manager, group)


def _guard_blocks(manager: Any, group: Any) -> None:
    """allocate_slots: nothing happens while the tokens fit the blocks held and no further block becomes full."""
    stock = manager.allocate_slots
    blocks_of, cached_of, size = group.req_to_blocks, group.num_cached_block, group.block_size
    caching, longest, nothing = group.enable_caching, manager.max_model_len, manager.empty_kv_cache_blocks
    running = RequestStatus.RUNNING

    def allocate_slots(
        request: Request,
        num_new_tokens: int,
        num_new_computed_tokens: int = 0,
        new_computed_blocks: KVCacheBlocks | None = None,
        num_lookahead_tokens: int = 0,
        **more: Any,
    ) -> KVCacheBlocks | None:
        if request.status is running and new_computed_blocks is None and num_new_tokens and not more:
            name = request.request_id
            end = request.num_computed_tokens + num_new_tokens
            known = len(request._all_token_ids)
            if (
                (end if end < longest else longest) <= len(blocks_of.get(name, ())) * size
                and not (caching and (end if end < known else known) // size > cached_of.get(name, 0))
                and not (num_new_computed_tokens or num_lookahead_tokens)
            ):
                return nothing
        return stock(
            request, num_new_tokens, num_new_computed_tokens, new_computed_blocks, num_lookahead_tokens, **more
        )

    manager.allocate_slots = allocate_slots


def _guard_schedule(scheduler: Any, nothing: KVCacheBlocks) -> None:
    """Replace the two loops over what a step runs: a comprehension per column, one pass instead of two."""
    stock = scheduler._make_cached_request_data
    requests, previous = scheduler.requests, scheduler.prev_step_scheduled_req_ids
    keeps_tokens = not scheduler.use_v2_model_runner

    def make_cached_request_data(
        running: list[Request],
        resumed: list[Request],
        num_scheduled_tokens: dict[str, int],
        spec_decode_tokens: dict[str, list[int]],
        new_blocks: dict[str, KVCacheBlocks],
    ) -> CachedRequestData:
        names = [request.request_id for request in running]
        if resumed or (keeps_tokens and not previous.issuperset(names)):
            return stock(running, resumed, num_scheduled_tokens, spec_decode_tokens, new_blocks)
        taken = [new_blocks[name] for name in names]
        return CachedRequestData(
            req_ids=names,
            resumed_req_ids=set(),
            new_token_ids=[],
            all_token_ids={},
            new_block_ids=[None if new is nothing else new.get_block_ids(allow_none=True) for new in taken],
            num_computed_tokens=[request.num_computed_tokens for request in running],
            num_output_tokens=[len(r._output_token_ids) + r.num_output_placeholders for r in running],
        )

    def update_after_schedule(output: SchedulerOutput) -> None:
        sampled = scheduler.num_sampled_tokens_per_step
        spec_token_ids = scheduler._spec_token_placeholders = [-1] * output.num_spec_tokens_to_schedule
        prefills = scheduler._inflight_prefills
        next_step = scheduler.current_step + scheduler.decode_stagger
        for name, tokens in output.num_scheduled_tokens.items():
            request = requests[name]
            computed = request.num_computed_tokens = request.num_computed_tokens + tokens
            request.num_in_flight_tokens += tokens
            ahead = request.num_output_placeholders
            chunk = request.is_prefill_chunk = computed < len(request._all_token_ids) + ahead
            if chunk:
                continue
            if request.structured_output_request is not None:
                output.has_structured_output_requests = True
                output.pending_structured_output_tokens |= ahead > 0
            if prefills:
                prefills.discard(request)
            request.num_output_placeholders = ahead + sampled
            request.spec_token_ids = spec_token_ids
            if not keeps_tokens:
                request.next_decode_eligible_step = next_step
        scheduler.finished_req_ids = set()
        scheduler.reset_preempted_req_ids = set()

    scheduler._make_cached_request_data = make_cached_request_data
    scheduler._update_after_schedule = update_after_schedule


def _guard_update(scheduler: Any, manager: Any, group: Any) -> None:
    """One token that arrived: hash and cache a block only when one has become full."""
    stock = scheduler._update_request_with_output
    longest, size = scheduler.max_model_len, group.block_size
    cached_of, caching = group.num_cached_block, group.enable_caching
    running = RequestStatus.RUNNING

    def update_request_with_output(
        request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        if len(new_token_ids) != 1:
            return stock(request, new_token_ids, is_stale)  # type: ignore[no-any-return]
        status = request.status
        token = new_token_ids[0]
        tokens, output, sampling = request._all_token_ids, request._output_token_ids, request.sampling_params
        output.append(token)
        tokens.append(token)
        if len(tokens) >= (len(request.block_hashes) + 1) * size:
            request.update_block_hashes()
        stopped = (
            token == sampling.eos_token_id
            or bool(sampling.stop_token_ids)
            or len(tokens) >= longest
            or len(output) >= request.max_tokens
            or sampling.repetition_detection is not None
        ) and check_stop(request, longest)
        if not is_stale:
            request.num_output_placeholders -= 1
            assert request.num_output_placeholders >= 0  # noqa: S101 - stock's own check
        if caching and status is running:
            computed = request.num_computed_tokens - request.num_output_placeholders
            if computed // size > cached_of.get(request.request_id, 0):
                manager.cache_blocks(request, computed)
        return new_token_ids, stopped

    scheduler._update_request_with_output = update_request_with_output
