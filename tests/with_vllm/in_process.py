"""vLLM's schedulers alone, in this process: no engine, no model, made-up tokens.

What vLLM's own unit tests of its scheduler do: build it from a configuration, and answer each step with a
``ModelRunnerOutput`` as a worker would.
"""

from __future__ import annotations

import atexit
import json
import os
import tempfile
import time
import zlib
from collections import deque
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import ENVIRONMENT, LLAMA

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Container, Sequence

for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

EOS = LLAMA["eos_token_id"]


@dataclass(frozen=True)
class Setup:
    """One engine's configuration."""

    scheduler: str = "AsyncScheduler"  # or "Scheduler", or "WaitScheduler"
    wait_core: dict[str, Any] = field(default_factory=dict)
    num_blocks: int = 1024
    block_size: int = 16
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_model_len: int = 2048
    prefix_caching: bool = True
    policy: str = "fcfs"
    ahead: int = 1  # steps scheduled before the first one's output is in: 1 is what vLLM's GPU engines do
    kv_groups: tuple[dict[str, Any], ...] = ()  # as the core's setting of that name; none: one full group
    watermark: float = 0.0
    long_prefill_token_threshold: int = 0
    draft_tokens: int = 0  # most tokens that n-gram speculation proposes
    connector: dict[str, Any] | None = None  # what `connectors.Connector` does
    encoder_connector: dict[str, Any] | None = None  # what `connectors.EncoderConnector` does
    pooling: bool = False  # a model that embeds

    @property
    def encoder_decoder(self) -> bool:
        """Whether a group holds what an encoder has read."""
        return any(group["kind"] == "cross_attention" for group in self.kv_groups)


@cache
def _model_folder(max_model_len: int) -> str:
    folder = tempfile.TemporaryDirectory(prefix="wait-core-config-")
    atexit.register(folder.cleanup)
    config = LLAMA | {"max_position_embeddings": max_model_len}
    (Path(folder.name) / "config.json").write_text(json.dumps(config))
    return folder.name


def kv_cache_spec(group: dict[str, Any], setup: Setup) -> Any:
    """Translate one of `Setup.kv_groups`. An aligned state is one of vLLM's Mamba cache mode "align".

    The kind "cross_attention" is none of the core's.
    """
    import torch
    from vllm.v1.kv_cache_interface import (
        ChunkedLocalAttentionSpec,
        CrossAttentionSpec,
        FullAttentionSpec,
        MambaSpec,
        SlidingWindowSpec,
    )

    if group["kind"] == "state":
        aligned = group.get("aligned", False)
        return MambaSpec(
            block_size=group.get("block_size", setup.block_size) if aligned else setup.max_model_len,
            shapes=((1,),),
            dtypes=(torch.float32,),
            mamba_cache_mode="align" if aligned else "none",
            num_speculative_blocks=group.get("blocks", 1) - 1,
        )
    page: dict[str, Any] = {"num_kv_heads": 1, "head_size": 1, "dtype": torch.float32}
    page["block_size"] = group.get("block_size", setup.block_size)
    if group["kind"] == "sliding_window":
        return SlidingWindowSpec(sliding_window=group["window"], **page)
    if group["kind"] == "chunked_local":
        return ChunkedLocalAttentionSpec(attention_chunk_size=group["chunk"], **page)
    if group["kind"] == "cross_attention":
        return CrossAttentionSpec(**page)
    return FullAttentionSpec(**page)


def _speculation(setup: Setup, model: Any) -> Any:
    from vllm.config import ParallelConfig, SpeculativeConfig

    return SpeculativeConfig(
        method="ngram",
        num_speculative_tokens=setup.draft_tokens,
        prompt_lookup_max=2,
        target_model_config=model,
        target_parallel_config=ParallelConfig(),
    )


def _transfer(connector: dict[str, Any]) -> Any:
    from vllm.config import KVTransferConfig

    return KVTransferConfig(
        kv_connector="Connector",
        kv_connector_module_path="connectors",
        kv_role="kv_both",
        kv_connector_extra_config=connector,
        kv_load_failure_policy="recompute",
    )


def _encoder_transfer(connector: dict[str, Any]) -> Any:
    from vllm.config import ECTransferConfig

    return ECTransferConfig(
        ec_connector="EncoderConnector",
        ec_connector_module_path="connectors",
        ec_role="ec_consumer",
        ec_connector_extra_config=connector,
    )


def make_scheduler(setup: Setup) -> Any:
    """Build the scheduler as EngineCore does."""
    from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
    from vllm.v1.core.encoder_cache_manager import EncoderDecoderCacheManager
    from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    from wait_core.vllm import WaitScheduler

    model = ModelConfig(
        model=_model_folder(setup.max_model_len),
        runner="pooling" if setup.pooling else "generate",
        skip_tokenizer_init=True,
        dtype="float32",
        seed=0,
    )
    cache_config = CacheConfig(block_size=setup.block_size, enable_prefix_caching=setup.prefix_caching)
    cache_config.num_gpu_blocks = setup.num_blocks
    config = VllmConfig(
        model_config=model,
        cache_config=cache_config,
        scheduler_config=SchedulerConfig(
            max_num_seqs=setup.max_num_seqs,
            max_num_batched_tokens=max(setup.max_num_batched_tokens, setup.max_num_seqs),
            max_model_len=setup.max_model_len,
            is_encoder_decoder=setup.encoder_decoder,
            enable_chunked_prefill=True,  # not with an encoder
            policy=setup.policy,
            watermark=setup.watermark,
            long_prefill_token_threshold=setup.long_prefill_token_threshold,
        ),
        device_config=DeviceConfig("cpu"),
        speculative_config=_speculation(setup, model) if setup.draft_tokens else None,
        kv_transfer_config=None if setup.connector is None else _transfer(setup.connector),
        ec_transfer_config=None if setup.encoder_connector is None else _encoder_transfer(setup.encoder_connector),
        additional_config={"wait_core": setup.wait_core} if setup.wait_core else {},
    )
    # Ours stands on the class that the engine would take; vLLM's second one serves those that plan no step ahead too.
    config.scheduler_config.async_scheduling = setup.scheduler == "AsyncScheduler" or (
        setup.scheduler == "WaitScheduler" and setup.ahead > 0
    )
    specs = [
        kv_cache_spec(group, setup)
        for group in setup.kv_groups or ({"kind": "full"},)
        for _ in range(group.get("count", 1))
    ]
    if any(getattr(spec, "mamba_cache_mode", "none") == "align" for spec in specs):
        cache_config.mamba_cache_mode = "align"
    groups = [KVCacheGroupSpec([f"layer{i}"], spec) for i, spec in enumerate(specs)]
    kv_cache = KVCacheConfig(num_blocks=setup.num_blocks, kv_cache_tensors=[], kv_cache_groups=groups)
    block_size, hash_block_size = resolve_kv_cache_block_sizes(kv_cache, config)
    kinds: dict[str, Callable[..., Any]] = {
        "Scheduler": Scheduler, "AsyncScheduler": AsyncScheduler, "WaitScheduler": WaitScheduler
    }  # fmt: skip
    scheduler = kinds[setup.scheduler](
        vllm_config=config,
        kv_cache_config=kv_cache,
        structured_output_manager=StructuredOutputManager(config),
        block_size=block_size,
        hash_block_size=hash_block_size,
        log_stats=True,
    )
    if setup.encoder_decoder:  # the model is none: as vLLM's own tests do it
        scheduler.is_encoder_decoder = True
        scheduler.max_num_encoder_input_tokens = setup.max_num_batched_tokens
        scheduler.encoder_cache_manager = EncoderDecoderCacheManager(cache_size=setup.max_num_batched_tokens)
    return scheduler


@dataclass
class Step:
    """What one step cost, and what it did."""

    schedule_ns: int
    update_ns: int  # of the step whose output came in, 0 when none did
    scheduled: Any
    outputs: Any


class Driver:
    """Runs one scheduler step by step, with outputs made up per request, the same for every scheduler."""

    def __init__(self, setup: Setup) -> None:
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

        self.setup = setup
        self.scheduler = make_scheduler(setup)
        hash_function = get_hash_fn_by_name("sha256")
        init_none_hash(hash_function)
        hashed = self.scheduler.hash_block_size
        self._hasher = get_request_block_hasher(hashed, hash_function) if setup.prefix_caching else None
        self._in_flight: deque[tuple[Any, Any]] = deque()
        self._arrivals = 0.0

    def add(
        self,
        name: str,
        prompt: Sequence[int],
        max_tokens: int,
        priority: int = 0,
        mm_features: list[Any] | None = None,
        **sampling: Any,
    ) -> None:
        """Queue a request."""
        from vllm import PoolingParams, SamplingParams
        from vllm.v1.request import Request

        self._arrivals += 1.0
        params = None
        if not self.setup.pooling:
            params = SamplingParams(temperature=0.0, max_tokens=max_tokens, **sampling)
            params.update_from_generation_config({}, EOS)
        request = Request(
            request_id=name,
            prompt_token_ids=list(prompt),
            sampling_params=params,
            pooling_params=PoolingParams(task="embed") if self.setup.pooling else None,
            mm_features=mm_features,
            priority=priority,
            arrival_time=self._arrivals,
            block_hasher=self._hasher,
        )
        self.scheduler.add_request(request)

    def abort(self, name: str) -> None:
        """End a request as a client that goes away does."""
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def step(self, ended: Container[str] | None = None, compare: Callable[[Any], None] | None = None) -> Step:
        """Schedule one step and, when more than `ahead` are in flight, bring in the output of the oldest.

        With `ended`, its outputs end those requests and no others, but for their `max_tokens`. `compare` is shown what
        was scheduled before any output comes in.
        """
        clock = time.thread_time_ns
        begin = clock()
        scheduled = self.scheduler.schedule()
        schedule_ns = clock() - begin
        if compare is not None:
            compare(scheduled)
        connector = self.scheduler.connector
        if scheduled.total_num_scheduled_tokens or connector is not None:  # whose transfers go on without a step
            self._in_flight.append((scheduled, self._answer(scheduled, ended)))
        update_ns, outputs = 0, None
        ahead = self.setup.ahead if scheduled.total_num_scheduled_tokens else 0
        if len(self._in_flight) > ahead:
            item = self._in_flight.popleft()
            if connector is not None:
                item[1].kv_connector_output = connector.worker_output()
            begin = clock()
            outputs = self.scheduler.update_from_output(*item)
            update_ns = clock() - begin
            if self.setup.draft_tokens and self.setup.ahead == 0:
                self._draft(item[0])
        return Step(schedule_ns, update_ns, scheduled, outputs)

    def _answer(self, scheduled: Any, ended: Container[str] | None) -> Any:
        from vllm.v1.outputs import ModelRunnerOutput

        requests = self.scheduler.requests
        names = list(scheduled.num_scheduled_tokens)
        if self.setup.pooling:
            return self._embed(names)
        tokens = []
        for name in names:
            request = requests[name]
            # A made-up model: the next token is a function of the request and the position; one in 97 ends it.
            draw = zlib.crc32(f"{name} {request.num_computed_tokens}".encode())
            ends = draw % 97 == 0 if ended is None else name in ended
            token = EOS if ends else 3 + draw % (LLAMA["vocab_size"] - 3)
            # Of the drafts as many are right as the draw says.
            drafts = len(scheduled.scheduled_spec_decode_tokens.get(name, ()))
            right = [3 + (draw + i) % (LLAMA["vocab_size"] - 3) for i in range(draw % (drafts + 1))]
            tokens.append([] if request.is_prefill_chunk else [*right, token])
        return ModelRunnerOutput(
            req_ids=names, req_id_to_index={name: i for i, name in enumerate(names)}, sampled_token_ids=tokens
        )

    def _embed(self, names: list[str]) -> Any:
        """Answer each whole prompt with a number made up of what was computed of it."""
        import torch
        from vllm.v1.outputs import ModelRunnerOutput

        made: list[torch.Tensor | None] = []
        for name in names:
            request = self.scheduler.requests[name]
            whole = request.num_computed_tokens == request.num_prompt_tokens
            made.append(torch.tensor([float(sum(request.prompt_token_ids))]) if whole else None)
        index = {name: i for i, name in enumerate(names)}
        return ModelRunnerOutput(req_ids=names, req_id_to_index=index, pooler_output=made)

    def _draft(self, scheduled: Any) -> None:
        """Propose tokens for the next step of some decodes, as n-gram speculation does."""
        from vllm.v1.outputs import DraftTokenIds

        names = [name for name in scheduled.num_scheduled_tokens if name in self.scheduler.requests]
        drafts = [[3] * self.proposed(name) for name in names]
        self.scheduler.update_draft_token_ids(DraftTokenIds(names, drafts))

    def proposed(self, name: str) -> int:
        """Return how many tokens are proposed behind those that the request has."""
        draw = zlib.crc32(f"{name} {self.scheduler.requests[name].num_tokens}".encode())
        return draw % (self.setup.draft_tokens + 1)


def encoder_input(name: str, tokens: int) -> list[Any]:
    """Return what an encoder of a request reads."""
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

    place = PlaceholderRange(offset=0, length=tokens)
    return [MultiModalFeatureSpec(data=None, modality="audio", identifier=name, mm_position=place)]


def random_prompt(draw: random.Random, length: int) -> list[int]:
    """Draw `length` token ids."""
    return [draw.randrange(3, LLAMA["vocab_size"]) for _ in range(length)]
