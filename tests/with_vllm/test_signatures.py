"""Every signature and attribute of vLLM that the adapter relies on: a vLLM that moves one fails here first.

Read from its text, without importing it, so that a vLLM which cannot run here can be looked at:

    pip download --no-deps 'vllm==0.33.*' -d wheels
    WAIT_CORE_VLLM_WHEEL=wheels/vllm-0.33.0-….whl python -m pytest tests/with_vllm/test_signatures.py
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from vllm_source import Source

WHEEL = "WAIT_CORE_VLLM_WHEEL"


@pytest.fixture(autouse=True)
def _needs_vllm() -> None:
    """Need none: texts are read."""


@pytest.fixture(params=["installed", "wheel"])
def vllm(request: pytest.FixtureRequest) -> Source:
    if request.param == "installed":
        found = Source.installed()
        if found is None:
            pytest.skip("vLLM is not installed here")
        return found
    if WHEEL not in os.environ:
        pytest.skip(f"{WHEEL} names no wheel")
    return Source.at(os.environ[WHEEL])


def test_vllm_is_as_the_adapter_expects(vllm: Source) -> None:
    module = vllm["v1.core.sched.scheduler"]
    following = vllm["v1.core.sched.async_scheduler"]

    # What is overridden, and that the asynchronous scheduler does not override it too.
    assert module.parameters("Scheduler.schedule") == ["self", "throttle_prefills"]
    assert module.default("Scheduler.schedule", "throttle_prefills") is False
    assert module.parameters("Scheduler.add_request") == ["self", "request"]
    assert module.parameters("Scheduler.shutdown") == ["self"]
    assert "self.scheduler.shutdown()" in vllm["v1.engine.core"].source("EngineCore.shutdown")
    assert following.bases("AsyncScheduler") == ["Scheduler"]
    assert module.parameters("Scheduler.get_kv_cache_usage") == ["self"]
    assert vllm["v1.engine.core"].text.count(".get_kv_cache_usage()") == 2, "asked for vLLM's balancer only"
    assert "get_kv_cache_usage" not in module.source("Scheduler.make_stats")
    for name in ["schedule", "add_request", "make_stats", "shutdown", "update_from_output", "get_kv_cache_usage"]:
        assert not following.has(f"AsyncScheduler.{name}")

    # Attributes read or set.
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
        "num_sampled_tokens_per_step",
        "dcp_world_size",
        "hash_block_size",
    ]:
        assert module.sets("Scheduler", name), f"Scheduler.{name}"
    # Requests that hold blocks and wait; those that have ended, whose blocks a KV connector may keep.
    assert module.sets("Scheduler", "kv_holding_waiting")
    assert "delay_free_blocks" in module.source("Scheduler._free_request")
    assert "request_queue = self.kv_holding_waiting" in module.source("Scheduler.schedule")
    outputs = vllm["v1.outputs"]
    assert "kv_connector_output" in outputs.fields("ModelRunnerOutput")
    assert "invalid_block_ids" in outputs.fields("KVConnectorOutput")
    assert "pause_state" in module.properties("Scheduler")
    assert {"UNPAUSED", "PAUSED_NEW", "PAUSED_ALL"} <= vllm["v1.core.sched.interface"].members("PauseState")
    request = vllm["v1.request"]
    for name in [
        "request_id",
        "status",
        "num_prompt_tokens",
        "max_tokens",
        "sampling_params",
        "pooling_params",
        "mm_features",
        "priority",
        "arrival_time",
        "resumable",
        "num_computed_tokens",
        "is_prefill_chunk",
        "next_decode_eligible_step",
        "structured_output_request",
    ]:
        assert request.sets("Request", name), f"Request.{name}"
    assert {"num_output_tokens", "num_tokens", "has_encoder_inputs"} <= request.properties("Request")
    # What an encoder reads is counted when a request is admitted, and has blocks in groups of their own.
    assert "request.get_num_encoder_embeds(i)" in module.source("Scheduler.schedule")
    coordinator = vllm["v1.core.kv_cache_coordinator"]
    assert "isinstance(manager, CrossAttentionManager)" in coordinator.source("KVCacheCoordinator.allocate_new_blocks")
    # A request of a pooling model ends with its prompt, and may be as long as the model allows.
    assert "request.status = RequestStatus.FINISHED_STOPPED" in module.source("Scheduler.update_from_output")
    # By priority, then by arrival: the order of the queue under vLLM's priority policy.
    assert "return self.priority < other.priority" in request.source("Request.__lt__")
    assert "return self.arrival_time < other.arrival_time" in request.source("Request.__lt__")
    statuses = request.members("RequestStatus")
    assert {"WAITING", "RUNNING", "PREEMPTED", "FINISHED_ABORTED", "FINISHED_STOPPED"} <= statuses
    assert {"FINISHED_LENGTH_CAPPED", "WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR"} <= statuses
    assert "grammar" in vllm["v1.structured_output.request"].properties("StructuredOutputRequest")
    assert "struct_output_req.grammar is None" in module.source("Scheduler._handle_blocked_waiting_request")
    sampling = vllm["sampling_params"].fields("SamplingParams")
    assert {"ignore_eos", "stop", "stop_token_ids", "repetition_detection"} <= sampling.keys()
    assert vllm["v1.core.kv_cache_manager"].sets("KVCacheManager", "block_pool")
    pool = vllm["v1.core.block_pool"]
    assert pool.sets("BlockPool", "num_gpu_blocks")
    assert pool.parameters("BlockPool.get_num_free_blocks") == ["self"]
    # What the prefix cache has of a waiting request, and whether any request holds it.
    assert pool.parameters("BlockPool.get_cached_block") == ["self", "block_hash", "kv_cache_group_ids"]
    manager = vllm["v1.core.kv_cache_manager"]
    assert manager.sets("KVCacheManager", "enable_caching")
    assert manager.sets("KVCacheManager", "coordinator")
    assert manager.parameters("KVCacheManager.prefix_cache_lookup_enabled") == ["self", "request"]
    look_up = vllm["v1.core.kv_cache_coordinator"].parameters("UnitaryKVCacheCoordinator.find_longest_cache_hit")
    assert look_up == ["self", "block_hashes", "max_cache_hit_length"]
    source = manager.source("KVCacheManager.get_computed_blocks")
    assert "max_cache_hit_length = request.num_tokens - 1" in source
    assert request.sets("Request", "block_hashes")
    assert "ref_cnt" in vllm["v1.core.kv_cache_utils"].fields("KVCacheBlock")
    assert "block_hash" in vllm["v1.core.kv_cache_utils"].properties("KVCacheBlock")
    config = vllm["config.scheduler"].fields("SchedulerConfig")
    assert {"watermark", "enable_chunked_prefill", "scheduler_cls", "async_scheduling", "policy"} <= config.keys()
    names = {"additional_config", "model_config", "parallel_config", "scheduler_config"}
    assert names <= vllm["config.vllm"].fields("VllmConfig").keys()
    parallel = vllm["config.parallel"].fields("ParallelConfig")
    assert {"data_parallel_index", "pipeline_parallel_size"} <= parallel.keys()
    model = vllm["config.model"]
    assert model.has("ModelConfig.is_diffusion")
    assert "model" in model.fields("ModelConfig")
    assert re.search(r"self\.runner_type\b", model.text)
    output = vllm["v1.core.sched.output"]
    assert output.fields("SchedulerOutput").keys() >= {
        "num_scheduled_tokens", "total_num_scheduled_tokens", "scheduled_spec_decode_tokens", "scheduled_new_reqs",
        "scheduled_cached_reqs", "preempted_req_ids", "finished_req_ids",
    }  # fmt: skip
    assert {"req_id", "num_computed_tokens"} <= output.fields("NewRequestData").keys()
    cached = output.fields("CachedRequestData").keys()
    assert {"req_ids", "resumed_req_ids", "num_computed_tokens"} <= cached
    caches = vllm["v1.kv_cache_interface"]
    assert caches.has("FullAttentionSpec")
    assert caches.has("MLAAttentionSpec")
    assert "kv_cache_groups" in caches.fields("KVCacheConfig")
    assert "kv_cache_spec" in caches.fields("KVCacheGroupSpec")
    wrapped = module.parameters("Scheduler.update_from_output")
    assert wrapped == ["self", "scheduler_output", "model_runner_output"], "the step log wraps it"

    # The queue that takes the place of Scheduler.waiting.
    queue = vllm["v1.core.sched.request_queue"]
    assert queue.abstract("RequestQueue") == {
        "add_request", "pop_request", "peek_request", "prepend_request", "prepend_requests", "remove_request",
        "remove_requests", "__bool__", "__len__", "__iter__",
    }  # fmt: skip
    assert queue.parameters("create_request_queue") == ["policy"]
    assert queue.members("SchedulingPolicy") == {"FCFS", "PRIORITY"}

    # How schedule() treats them. These are statements of its source because no signature shows them.
    source = module.source("Scheduler.schedule")
    first = re.sub(r"\s+", " ", source.split(":\n", 1)[1]).strip()
    assert first.startswith("self.current_step += 1"), "a pause is set for current_step + 2"
    assert "if self.current_step < request.next_decode_eligible_step:" in source, "the pause"
    assert "token_budget = self.max_num_scheduled_tokens" in source, "the token budget of a step"
    assert "request_queue = self.waiting" in source, "the gate"
    assert "if not request_queue or" in source, "the gate is asked for its truth value, not its length"
    assert "if not preempted_reqs and" in source, "no admission in a step that preempts"
    assert "preempted_req_ids=self.reset_preempted_req_ids" in source
    assert "finished_req_ids=self.finished_req_ids" in source
    assert "self.waiting.prepend_request(request)" in module.source("Scheduler._preempt_request")
    # Nothing else takes from the queue.
    assert module.text.count("pop_request()") == 2
    assert module.text.count("peek_request()") == 1


def test_ending_a_request_that_waits_is_as_expected(vllm: Source) -> None:
    scheduler = vllm["v1.core.sched.scheduler"]
    assert scheduler.parameters("Scheduler.finish_requests") == ["self", "request_ids", "finished_status"]
    assert scheduler.parameters("Scheduler.get_request_counts") == ["self"]
    # As vLLM itself reports a request that it ends between two outputs.
    update = re.sub(r"\s+", " ", scheduler.source("Scheduler.update_from_output"))
    ours = "new_token_ids=[], finish_reason=request.get_finished_reason(), events=request.take_events(),"
    assert ours in update
    assert "outputs[request.client_index].append( EngineCoreOutput(" in update
    engine = vllm["v1.engine"]
    assert {"request_id", "new_token_ids", "finish_reason", "stop_reason", "events", "trace_headers"} <= engine.fields(
        "EngineCoreOutput"
    ).keys()
    assert "outputs" in engine.fields("EngineCoreOutputs")
    assert "ABORT" in engine.members("FinishReason")
    assert {"extra_args", "output_kind"} <= vllm["sampling_params"].fields("SamplingParams").keys()
    assert "DELTA" in vllm["sampling_params"].members("RequestOutputKind")
    serving = vllm["entrypoints.openai.completion.serving"].source(
        "OpenAIServingCompletion.completion_stream_generator"
    )
    assert serving.index("_raise_if_error") < serving.index("don't return empty chunks"), "only an error is passed on"
    # A class of ASGI is put around the application, and made with nothing but that.
    middleware = vllm["entrypoints.serve.middleware.register"]
    assert "app.add_middleware(imported)" in middleware.text
    for protocol in ("completion", "chat_completion"):
        assert "vllm_xargs" in vllm[f"entrypoints.openai.{protocol}.protocol"].text


def test_the_way_of_our_figures_is_as_expected(vllm: Source) -> None:
    # Once a step, and the difference reaches a front end.
    assert vllm["v1.core.sched.scheduler"].text.count("self.make_stats(") == 1
    stats = vllm["v1.metrics.stats"]
    assert stats.fields("SchedulerStats")["num_kv_fetch_reqs_by_stage"] == "dict[str, int]"
    text = stats.source("SchedulerStats")
    assert re.search(r"num_kv_fetch_reqs_by_stage: dict\[str, int\] = field\(default_factory=dict\)", text)
    # vLLM's loggers read the names they know and sums only.
    loggers = vllm["v1.metrics.loggers"]
    uses = re.findall(r"(?:kv_fetch|num_kv_fetch_reqs_by_stage)\.(\w+)\(", loggers.text)
    assert set(uses) <= {"get", "values", "items"}
    assert vllm["plugins"].constant("DEFAULT_PLUGINS_GROUP") == "vllm.general_plugins"
    assert vllm["plugins"].constant("STAT_LOGGER_PLUGINS_GROUP") == "vllm.stat_logger_plugins"
    base = "AggregateStatLoggerBase"
    declared = set.union(*(loggers.abstract(name) for name in ("StatLoggerBase", base)))
    assert declared == {"__init__", "record", "log_engine_initialized"}
    assert loggers.bases(base) == ["StatLoggerBase"]
    record = loggers.parameters("StatLoggerBase.record")
    assert record == ["self", "scheduler_stats", "iteration_stats", "mm_cache_stats", "engine_idx"]
    assert loggers.parameters(f"{base}.__init__") == ["self", "vllm_config", "engine_indexes"]
    assert loggers.has(f"{base}.record_admission_rejection")
    assert vllm["version"].text


def test_vllm_has_the_options_that_a_refusal_names(vllm: Source) -> None:
    folder = Path(__file__).parents[2] / "python" / "wait_core" / "vllm"
    texts = [(folder / f"{name}.py").read_text(encoding="utf-8") for name in ("support", "kv_groups")]
    named = set(re.findall(r"--(?:no-)?([a-z]+[a-z-]+)", " ".join(texts)))
    assert {"mamba-cache-mode", "swa-bounded-replay", "scheduler-cls"} <= named
    text = vllm["engine.arg_utils"].text
    assert {name for name in named if f'"--{name}"' not in text} == set()
