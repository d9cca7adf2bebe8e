"""Every signature and attribute of vLLM that the adapter relies on: a vLLM that moves one fails here first."""

from __future__ import annotations

import inspect
import re

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")


def test_vllm_is_as_the_adapter_expects() -> None:
    from vllm.config import VllmConfig
    from vllm.config.scheduler import SchedulerConfig
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.sched import scheduler as module
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.interface import PauseState
    from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
    from vllm.v1.core.sched.request_queue import RequestQueue, SchedulingPolicy, create_request_queue
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec
    from vllm.v1.request import Request, RequestStatus

    def parameters(function: object) -> list[str]:
        return list(inspect.signature(function).parameters)  # type: ignore[arg-type]

    # What is overridden, and that the asynchronous scheduler does not override it too.
    assert parameters(Scheduler.schedule) == ["self", "throttle_prefills"]
    assert inspect.signature(Scheduler.schedule).parameters["throttle_prefills"].default is False
    assert parameters(Scheduler.add_request) == ["self", "request"]
    assert issubclass(AsyncScheduler, Scheduler)
    assert "schedule" not in vars(AsyncScheduler)
    assert "add_request" not in vars(AsyncScheduler)

    # Attributes read or set.
    built = inspect.getsource(Scheduler.__init__)
    for name in [
        "requests",
        "waiting",
        "running",
        "kv_holding_waiting",
        "finished_req_ids",
        "reset_preempted_req_ids",
        "current_step",
        "max_num_scheduled_tokens",
        "max_num_active_reqs",
        "max_model_len",
        "num_spec_tokens",
        "block_size",
        "policy",
        "vllm_config",
        "scheduler_config",
        "kv_cache_config",
        "kv_cache_manager",
        "connector",
        "ec_connector",
        "is_encoder_decoder",
        "dcp_world_size",
    ]:
        assert re.search(rf"self\.{name}\b[^=\n]*=", built), f"Scheduler.{name}"
    assert isinstance(Scheduler.pause_state, property)
    assert {"UNPAUSED", "PAUSED_NEW", "PAUSED_ALL"} <= set(PauseState.__members__)
    made = inspect.getsource(Request.__init__)
    for name in [
        "request_id",
        "status",
        "num_prompt_tokens",
        "max_tokens",
        "sampling_params",
        "priority",
        "resumable",
        "num_computed_tokens",
        "is_prefill_chunk",
        "next_decode_eligible_step",
        "structured_output_request",
    ]:
        assert f"self.{name}" in made, f"Request.{name}"
    statuses = set(RequestStatus.__members__)
    assert {"WAITING", "RUNNING", "PREEMPTED", "FINISHED_ABORTED", "FINISHED_STOPPED"} <= statuses
    assert "self.block_pool =" in inspect.getsource(KVCacheManager.__init__)
    assert "self.num_gpu_blocks =" in inspect.getsource(BlockPool.__init__)
    assert parameters(BlockPool.get_num_free_blocks) == ["self"]
    for name in ["watermark", "enable_chunked_prefill", "scheduler_cls", "async_scheduling"]:
        assert name in SchedulerConfig.__dataclass_fields__, f"SchedulerConfig.{name}"
    assert "additional_config" in VllmConfig.__dataclass_fields__
    for name in [
        "num_scheduled_tokens",
        "total_num_scheduled_tokens",
        "scheduled_spec_decode_tokens",
        "scheduled_new_reqs",
        "scheduled_cached_reqs",
        "preempted_req_ids",
        "finished_req_ids",
    ]:
        assert name in SchedulerOutput.__dataclass_fields__, f"SchedulerOutput.{name}"
    assert "req_id" in NewRequestData.__dataclass_fields__
    assert "resumed_req_ids" in CachedRequestData.__dataclass_fields__
    assert inspect.isclass(FullAttentionSpec)

    # The queue that takes the place of Scheduler.waiting.
    assert RequestQueue.__abstractmethods__ == {
        "add_request", "pop_request", "peek_request", "prepend_request", "prepend_requests", "remove_request",
        "remove_requests", "__bool__", "__len__", "__iter__",
    }  # fmt: skip
    assert parameters(create_request_queue) == ["policy"]
    assert {"FCFS", "PRIORITY"} == set(SchedulingPolicy.__members__)

    # How schedule() treats them. These are statements of its source because no signature shows them.
    source = inspect.getsource(Scheduler.schedule)
    first = re.sub(r"\s+", " ", source.split(":\n", 1)[1]).strip()
    assert first.startswith("self.current_step += 1"), "a pause is set for current_step + 2"
    assert "if self.current_step < request.next_decode_eligible_step:" in source, "the pause"
    assert "token_budget = self.max_num_scheduled_tokens" in source, "the token budget of a step"
    assert "request_queue = self.waiting" in source, "the gate"
    assert "if not request_queue or" in source, "the gate is asked for its truth value, not its length"
    assert "if not preempted_reqs and" in source, "no admission in a step that preempts"
    assert "preempted_req_ids=self.reset_preempted_req_ids" in source
    assert "finished_req_ids=self.finished_req_ids" in source
    assert "self.waiting.prepend_request(request)" in inspect.getsource(Scheduler._preempt_request)
    # Nobody else takes from the queue.
    everything = inspect.getsource(module)
    assert everything.count("pop_request()") == 2
    assert everything.count("peek_request()") == 1


def test_the_way_of_our_figures_is_as_expected() -> None:
    from vllm.config import ParallelConfig
    from vllm.plugins import STAT_LOGGER_PLUGINS_GROUP
    from vllm.v1.core.sched import scheduler as module
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.metrics import loggers
    from vllm.v1.metrics.stats import SchedulerStats
    from vllm.v1.request import Request
    from vllm.version import __version__

    assert "make_stats" not in vars(AsyncScheduler)
    # Once a step, and the difference reaches a front end.
    assert inspect.getsource(module).count("self.make_stats(") == 1
    field = SchedulerStats.__dataclass_fields__["num_kv_fetch_reqs_by_stage"]
    assert str(field.type) == "dict[str, int]"
    assert field.default_factory is dict
    # vLLM's loggers read the names they know and sums only.
    uses = re.findall(r"(?:kv_fetch|num_kv_fetch_reqs_by_stage)\.(\w+)\(", inspect.getsource(loggers))
    assert set(uses) <= {"get", "values", "items"}
    assert STAT_LOGGER_PLUGINS_GROUP == "vllm.stat_logger_plugins"
    base = loggers.AggregateStatLoggerBase
    assert base.__abstractmethods__ == {"__init__", "record", "log_engine_initialized"}
    record = inspect.signature(base.record).parameters
    assert list(record) == ["self", "scheduler_stats", "iteration_stats", "mm_cache_stats", "engine_idx"]
    assert list(inspect.signature(base.__init__).parameters) == ["self", "vllm_config", "engine_indexes"]
    assert hasattr(base, "record_admission_rejection")
    assert isinstance(Request.num_output_tokens, property)
    assert {"data_parallel_size", "data_parallel_rank"} <= set(ParallelConfig.__dataclass_fields__)
    assert __version__
