"""What the core can account for: everything else is refused when the engine starts, not when it fails."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vllm import envs
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import SchedulingPolicy

from wait_core.vllm import kv_groups
from wait_core.vllm.config import KEY, ConfigError

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.scheduler import Scheduler

    from wait_core.vllm.config import Settings

HEEDS_PRIORITY = "adaptive"
"""The policy that admits by priority; the others admit in the order of arrival."""
WITHOUT_US = "start vLLM without --scheduler-cls"
WITHOUT_HYBRID = "--disable-hybrid-kv-cache-manager keeps all layers in full, at more memory"


RUST_FRONTEND = (
    "wait-core schedules behind vLLM's Rust front end, which loads no Python: there are no wait_core_* metrics, and "
    "AdmissionMiddleware, /get_load and /v1/loads are not there; max_wait_s, late, vllm_xargs, logs and files work"
)
"""What is said at the start where `has_rust_frontend`."""


def has_rust_frontend() -> bool:
    """Whether vLLM's front end is the one in Rust, which shows none of our figures and might stumble over them."""
    return bool(getattr(envs, "VLLM_USE_RUST_FRONTEND", False))


def waits_for_tokens(vllm_config: VllmConfig) -> bool:
    """Whether a request's next token may be planned only when its last is there, though batches overlap.

    So it is with several pipeline stages where vLLM schedules no step ahead: each batch has requests of its own.
    """
    stages: int = vllm_config.parallel_config.pipeline_parallel_size
    return stages > 1 and not vllm_config.scheduler_config.async_scheduling


def engine(scheduler: Scheduler) -> dict[str, Any]:
    """Return the core's settings that follow the engine.

    Raises
    ------
    ConfigError
        Where the engine does what the core cannot account for: what, and what to do about it.
    """
    model = scheduler.vllm_config.model_config
    ahead = isinstance(scheduler, AsyncScheduler)
    reasons = {
        "a diffusion model (it needs vLLM's own scheduler)": model.is_diffusion,
        "a pooling model (it has no decode phase to plan)": model.runner_type == "pooling",
        "an encoder-decoder model (cross-attention blocks)": scheduler.is_encoder_decoder,
        "an encoder-cache connector": scheduler.ec_connector is not None,
        "decode context parallelism": scheduler.dcp_world_size > 1,
        "pipeline stages that wait for tokens, under a subclass that does not (derive it from SyncWaitScheduler)": (
            ahead and waits_for_tokens(scheduler.vllm_config)
        ),
    }
    for what, present in reasons.items():
        if present:
            raise ConfigError(f"wait-core cannot account for {what}: {WITHOUT_US}")
    try:
        cache = kv_groups.settings(scheduler)
    except kv_groups.NotServedError as error:
        others = len(kv_groups.managers(scheduler)) > 1
        remedy = f"{WITHOUT_HYBRID}; or {WITHOUT_US}" if others else WITHOUT_US
        raise ConfigError(f"wait-core cannot account for a KV cache group of kind {error}: {remedy}") from error
    return cache | {
        "max_num_seqs": scheduler.max_num_active_reqs,
        "token_budget": scheduler.max_num_scheduled_tokens,
        "max_model_len": scheduler.max_model_len,
        "long_prefill_token_threshold": scheduler.scheduler_config.long_prefill_token_threshold or None,
        "host_preempts": True,
    }


def with_priorities(scheduler: Scheduler, settings: Settings) -> Settings:
    """Return `settings` as vLLM's scheduling policy wants them: strictly by priority, unless they set an ageing.

    Raises
    ------
    ConfigError
        Where the policy would ignore the priorities that vLLM is told to obey.
    """
    if scheduler.policy == SchedulingPolicy.FCFS:
        return settings
    if settings.policy != HEEDS_PRIORITY:
        raise ConfigError(
            f"{KEY}: policy {settings.policy!r} admits in the order of arrival and would ignore --scheduling-policy "
            f"priority: leave that out, or use policy {HEEDS_PRIORITY!r}"
        )
    core, sources = {"ageing": None, **settings.core}, {"ageing": "vLLM", **settings.sources}
    return replace(settings, core=core, sources=sources)
