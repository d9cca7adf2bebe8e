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
    from vllm.v1.core.sched.scheduler import Scheduler

    from wait_core.vllm.config import Settings

BY_PRIORITY = ("vllm", "adaptive")
"""The policies that admit by priority; the others admit in the order of arrival."""
WITHOUT_US = "start vLLM without --scheduler-cls"


RUST_FRONTEND = (
    "wait-core schedules behind vLLM's Rust front end, which loads no Python: there are no wait_core_* metrics, and "
    "AdmissionMiddleware, /get_load and /v1/loads are not there; max_wait_s, late, vllm_xargs, logs and files work"
)
"""What is said at the start where `has_rust_frontend`."""


def has_rust_frontend() -> bool:
    """Whether vLLM's front end is the one in Rust, which shows none of our figures and might stumble over them."""
    return bool(getattr(envs, "VLLM_USE_RUST_FRONTEND", False))


def engine(scheduler: Scheduler) -> dict[str, Any]:
    """Return the core's settings that follow the engine.

    Raises
    ------
    ConfigError
        Where the engine does what the core cannot account for: what, and what to do about it.
    """
    model = scheduler.vllm_config.model_config
    # Without asynchronous scheduling a token is planned only when the one before it is there, and the batches of the
    # stages are of other requests.
    has_stages = scheduler.vllm_config.parallel_config.pipeline_parallel_size > 1
    waits = has_stages and not scheduler.vllm_config.scheduler_config.async_scheduling
    reasons = (
        (model.is_diffusion, "a diffusion model (it needs vLLM's own scheduler)", None),
        (scheduler.dcp_world_size > 1, "decode context parallelism", "--decode-context-parallel-size 1"),
        (
            waits and isinstance(scheduler, AsyncScheduler),
            "pipeline stages that wait for tokens, under a subclass that does not",
            "derive it from SyncWaitScheduler",
        ),
    )
    for present, what, remedy in reasons:
        if present:
            raise _refused(what, remedy)
    try:
        cache = kv_groups.settings(scheduler)
    except kv_groups.NotServedError as error:
        raise _refused(f"a KV cache group of kind {error}", error.remedy) from error
    return cache | {
        "max_num_seqs": scheduler.max_num_active_reqs,
        "token_budget": scheduler.max_num_scheduled_tokens,
        # The core counts a token for what a step samples, of which a pooling model has none.
        "max_model_len": scheduler.max_model_len + 1 - scheduler.num_sampled_tokens_per_step,
        "long_prefill_token_threshold": scheduler.scheduler_config.long_prefill_token_threshold or None,
        "host_preempts": True,
    }


def _refused(what: str, remedy: str | None) -> ConfigError:
    """Return the error that names `what`, and what to do about it."""
    return ConfigError(f"wait-core cannot account for {what}: {f'{remedy}; or ' if remedy else ''}{WITHOUT_US}")


def with_priorities(scheduler: Scheduler, settings: Settings) -> Settings:
    """Return `settings` as vLLM's scheduling policy wants them: strictly by priority, unless they set an ageing.

    Raises
    ------
    ConfigError
        Where the policy would ignore the priorities that vLLM is configured to follow, or requests of a pooling model
        would end late.
    """
    pools = scheduler.vllm_config.model_config.runner_type == "pooling"
    if pools and (settings.max_wait_s is not None or settings.core.get("late") == "refuse"):
        raise ConfigError(
            f'{KEY}: max_wait_s and late = "refuse" end requests without an answer, for which vLLM\'s front end has no '
            "form where the model pools: leave them out"
        )
    if scheduler.policy == SchedulingPolicy.FCFS:
        return settings
    if settings.policy not in BY_PRIORITY:
        raise ConfigError(
            f"{KEY}: policy {settings.policy!r} admits in the order of arrival and would ignore --scheduling-policy "
            f"priority: leave that out, or use policy {' or '.join(map(repr, BY_PRIORITY))}"
        )
    core, sources = {"ageing": None, **settings.core}, {"ageing": "vLLM", **settings.sources}
    return replace(settings, core=core, sources=sources)
