"""What the core can account for: everything else is refused when the engine starts, not when it fails."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vllm import envs
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec

from wait_core.vllm.config import KEY, ConfigError

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler

    from wait_core.vllm.config import Settings

HEEDS_PRIORITY = "adaptive"
"""The policy that admits by priority; the others admit in the order of arrival."""


RUST_FRONTEND = (
    "wait-core schedules behind vLLM's Rust front end, which loads no Python: there are no wait_core_* metrics, and "
    "AdmissionMiddleware, /get_load and /v1/loads are not there; max_wait_s, late, vllm_xargs, logs and files work"
)
"""What is said at the start where `has_rust_frontend`."""


def has_rust_frontend() -> bool:
    """Whether vLLM's front end is the one in Rust, which shows none of our figures and might stumble over them."""
    return bool(getattr(envs, "VLLM_USE_RUST_FRONTEND", False))


def check(scheduler: Scheduler) -> None:
    """Refuse engines in which a token does not cost one slot of one block.

    Raises
    ------
    ConfigError
        Naming the feature and what to do about it.
    """
    groups = scheduler.kv_cache_config.kv_cache_groups
    kinds = sorted({type(group.kv_cache_spec).__name__ for group in groups})
    model, parallel = scheduler.vllm_config.model_config, scheduler.vllm_config.parallel_config
    reasons = {
        "a diffusion model (it needs vLLM's own scheduler)": model.is_diffusion,
        "a pooling model (it has no decode phase to plan)": model.runner_type == "pooling",
        "an encoder-decoder model (cross-attention blocks)": scheduler.is_encoder_decoder,
        "a KV connector": scheduler.connector is not None,
        "an encoder-cache connector": scheduler.ec_connector is not None,
        f"KV cache groups {kinds} (one group of full attention is what a token's cost is known for)": (
            # Not their other subclasses: some drop tokens, so that a token does not keep its slot.
            len(groups) != 1 or type(groups[0].kv_cache_spec) not in (FullAttentionSpec, MLAAttentionSpec)
        ),
        "decode context parallelism": scheduler.dcp_world_size > 1,
        "pipeline parallelism (a step runs only some of those that decode)": parallel.pipeline_parallel_size > 1,
    }
    for what, present in reasons.items():
        if present:
            raise ConfigError(f"wait-core cannot account for {what}: start vLLM without --scheduler-cls")


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
