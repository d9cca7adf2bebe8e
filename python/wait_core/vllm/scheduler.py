"""What is overridden in vLLM's scheduler: this page, and nothing else.

The core decides which requests may be admitted, which pause and how many tokens a step may take; vLLM does everything
else, with its own code. docs/vllm.md says why each override is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from wait_core.vllm import refusal
from wait_core.vllm.bridge import Bridge

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.metrics.stats import SchedulerStats
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request


class SyncWaitScheduler(Scheduler):
    """vLLM's scheduler with admission gated by the core, where a token has to be there before the next is planned."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with refusal.left_behind():
            self.wait_core = Bridge(self)
            if self.wait_core.settings.fast_decode:
                from wait_core.vllm import fast_decode  # noqa: PLC0415  names much of vLLM that nothing else here needs

                fast_decode.install(self)
            if (path := self.wait_core.settings.step_log_file) is not None:
                from wait_core.vllm import step_log  # noqa: PLC0415

                step_log.install(self, path, int(self.wait_core.settings.log_max_mb * 1e6))

    def add_request(self, request: Request) -> None:
        """Queue `request` with vLLM, then tell the core."""
        super().add_request(request)
        self.wait_core.added(request)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Let the core decide, vLLM schedule within that decision, and report to the core what came of it."""
        bridge = self.wait_core
        bridge.before_step()
        try:
            output = super().schedule(throttle_prefills)
        finally:
            bridge.release()
        bridge.after_step(output)
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Take the time of the step, from which the core learns its law; answer those that ended while they waited."""
        bridge = self.wait_core
        bridge.step_ended(scheduler_output)
        outputs = bridge.late.tell(super().update_from_output(scheduler_output, model_runner_output))
        bridge.step_handled(model_runner_output)
        return outputs

    def get_kv_cache_usage(self) -> float:
        """Tell vLLM's data-parallel balancer, which alone asks, what the core expects, where that is wanted."""
        return self.wait_core.telemetry.kv_usage(self.wait_core, super().get_kv_cache_usage())

    def shutdown(self) -> None:
        """Let the core's side end before vLLM's."""
        self.wait_core.keep(ends=True)
        super().shutdown()

    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        """Let our figures travel with vLLM's to the front end."""
        stats = super().make_stats(*args, **kwargs)
        # Then vLLM asks nothing of us until the next one, and may be killed before.
        if not self.running and not self.has_unfinished_requests():
            self.wait_core.keep(ends=False)
        if stats is not None:
            self.wait_core.telemetry.send(stats, self.wait_core)
        return stats


class WaitScheduler(SyncWaitScheduler, AsyncScheduler):
    """vLLM's scheduler with admission gated by the core; named by ``--scheduler-cls wait_core.vllm.WaitScheduler``.

    On vLLM's `AsyncScheduler` where scheduling is asynchronous, as on a GPU. Elsewhere that class would cost time for
    nothing, and what is made is a `SyncWaitScheduler`, on the class that vLLM would take. A subclass of this one stays
    on `AsyncScheduler`, which serves both kinds of engines.

    Raises
    ------
    wait_core.vllm.config.ConfigError
        At start, where a setting is wrong or the model needs what the core cannot account for. After the start nothing
        of ours raises: an error degrades to stock scheduling for the rest of the process, and is logged.
    """

    def __new__(cls, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> Any:
        """Choose the base that the engine needs."""
        if cls is WaitScheduler and not vllm_config.scheduler_config.async_scheduling:
            return SyncWaitScheduler(vllm_config, *args, **kwargs)
        return super().__new__(cls)
