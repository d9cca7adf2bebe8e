"""Types of the keyword arguments that are settings. Made by scripts/settings.py."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict


class _KvGroupKind(TypedDict):
    kind: Literal["full", "sliding_window", "chunked_local", "state"]


class KvGroup(_KvGroupKind, total=False):
    """See docs/settings.md."""

    window: int
    chunk: int
    blocks: int
    aligned: bool
    block_size: int
    count: int


class Protection(TypedDict):
    """See docs/settings.md."""

    failure_probability: float
    horizon: float


class RequestType(TypedDict):
    """See docs/settings.md."""

    prompt: int
    output: int
    rate: float


class EngineSettings(TypedDict, total=False):
    """Settings of the core but the policy and the law; see docs/settings.md."""

    kv_blocks: int
    block_size: int
    kv_groups: Sequence[KvGroup]
    prefix_caching: bool
    num_speculative_tokens: int
    num_lookahead_tokens: int
    max_num_seqs: int
    token_budget: int
    long_prefill_token_threshold: int | None
    max_model_len: int | None
    watermark: float
    preemption: Literal["recompute", "restart"]
    host_preempts: bool
    max_queued_requests: int | None
    max_queued_tokens: int | None
    convention: Literal["paper", "vllm"]
    types: Sequence[RequestType]
    thresholds: Sequence[float] | None
    boundaries: Sequence[int] | None
    margin: float
    protection: Protection | None
    order: Literal["fcfs", "paced", "srpt"]
    ageing: float | None
    skip_ahead: int
    tpot_target: float | None
    ttft_target: float | None
    late: Literal["park", "refuse"]
    tenant_weights: Sequence[float]
    overflow_probability: float | None
    without: Sequence[Literal["token-budget", "pacing", "forgetting", "classes", "buffer", "horizons"]]
    work_conserving: bool
    literal_boundaries: bool
    max_hold: float | None


class Settings(EngineSettings, total=False):
    """Settings of the core but the policy; see docs/settings.md."""

    iteration_time: Mapping[str, Any] | None
