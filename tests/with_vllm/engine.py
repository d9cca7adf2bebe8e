"""Run one workload through a real vLLM engine in this process and print what happened as JSON.

Started as a program, once per engine, by ``conftest.py`` and by ``examples/``: vLLM reads its settings from the
environment at import, and two engines in one process share state. The request is one JSON object on standard input;
the answer is the last line of standard output.

The model is made on the spot: a Llama of two layers in fp32, with random weights large enough that attention, and so
every cached key and value, decides the next token. (The weights of ``load_format="dummy"`` are so small that the next
token depends on the last one only: a corrupted KV cache would go unseen.)
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import models

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_CI_ENV": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


@dataclass
class Fault:
    """The fault to inject into the core."""

    call: str  # the method of `wait_core.Scheduler`
    after: int  # how many calls go well
    kind: str  # "error", "panic" (no subclass of Exception, as PyO3 raises for a Rust panic) or "stall" (empty plans)


class Panic(BaseException):
    """What a panic in an extension module looks like from Python."""


class FaultyCore:
    """A core that fails as specified, otherwise the real one."""

    def __init__(self, core: Any, fault: Fault) -> None:
        self.core = core
        self.fault = fault
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.core, name)
        if name != self.fault.call:
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls <= self.fault.after:
                return method(*args, **kwargs)
            if self.fault.kind == "stall":
                return SimpleNamespace(
                    admitted=[],
                    resumed=[],
                    preempted=[],
                    refused=[],
                    cached=[],
                    prefill=[],
                    only_decodes=False,
                    paused=[],
                    num_decodes=0,
                    token_budget=2048,
                    held=len(self.core),
                    wake_ns=None,
                    iteration=0,
                )
            raise {"error": RuntimeError, "panic": Panic}[self.fault.kind](f"injected into {name}")

        return call


@dataclass
class Job:
    """One run: the engine's settings and the workload."""

    scheduler_cls: str | None = None
    wait_core: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    async_scheduling: bool = False
    requests: int = 200
    prompt_tokens: tuple[int, int] = (8, 150)
    output_tokens: tuple[int, int] = (4, 64)
    shared_prefix: int = 0
    prompts: int | None = None  # of which requests have one in turn; each has its own otherwise
    arrivals_per_step: int | None = None
    abort_every: int = 0
    seed: int = 0
    time_limit_s: float = 120.0
    fault: Fault | None = None
    reset_prefix_cache_every: int = 0
    priorities: int = 0  # levels, drawn for each request
    model: str = "llama"  # or one of `models.MODELS`


def write_model(folder: Path, seed: int = 0) -> Path:
    """Write the tiny Llama, configuration and weights, as a Hugging Face folder."""
    import torch
    from safetensors.torch import save_file

    hidden, inner, vocabulary = LLAMA["hidden_size"], LLAMA["intermediate_size"], LLAMA["vocab_size"]
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
    for layer in range(LLAMA["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.{p}_proj.weight": (hidden, hidden) for p in "qkvo"}
        shapes |= {f"{name}.mlp.{p}_proj.weight": (inner, hidden) for p in ("gate", "up")}
        shapes[f"{name}.mlp.down_proj.weight"] = (hidden, inner)
    draw = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=draw) * 2 / shape[1] ** 0.5 for name, shape in shapes.items()}
    norms = [
        f"model.layers.{i}.{n}.weight"
        for i in range(LLAMA["num_hidden_layers"])
        for n in ("input_layernorm", "post_attention_layernorm")
    ]
    weights |= {name: torch.ones(hidden) for name in ["model.norm.weight", *norms]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def workload(job: Job) -> list[tuple[str, list[int], int]]:
    """Draw (id, prompt token ids, output tokens) for every request, the same for equal jobs."""
    draw = random.Random(job.seed)
    prefix = [draw.randrange(3, LLAMA["vocab_size"]) for _ in range(job.shared_prefix)]
    requests: list[tuple[str, list[int], int]] = []
    for i in range(job.requests):
        prompt = [draw.randrange(3, 512) for _ in range(draw.randint(*job.prompt_tokens))]
        if job.prompts is not None and i >= job.prompts:
            prompt = requests[i - job.prompts][1][job.shared_prefix :]
        requests.append((f"r{i}", prefix + prompt, draw.randint(*job.output_tokens)))
    return requests


def force_async_scheduling() -> None:
    """Let the CPU engine schedule one step ahead, as GPU engines do.

    vLLM's CPU platform switches it off because it gains nothing there, not because it cannot work.
    """
    from vllm.platforms import current_platform

    platform = type(current_platform)
    stock = platform.check_and_update_config

    def check_and_update_config(vllm_config: Any) -> None:
        stock(vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    platform.check_and_update_config = staticmethod(check_and_update_config)


def run(job: Job) -> dict[str, Any]:
    """Serve the workload to its end and return tokens per request, steps and preemptions."""
    from vllm import EngineArgs, SamplingParams
    from vllm.config import KVTransferConfig
    from vllm.v1.engine.llm_engine import LLMEngine

    if job.async_scheduling:
        force_async_scheduling()
    folder = tempfile.TemporaryDirectory(prefix="wait-core-llama-")
    plain = job.model == "llama"
    settings: dict[str, Any] = {
        "model": str(write_model(Path(folder.name)) if plain else models.write_config(Path(folder.name), job.model)),
        "load_format": "auto" if plain else "dummy",
        "skip_tokenizer_init": True,
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 256,
        "block_size": 32,
        "num_gpu_blocks_override": 40,  # one is vLLM's null block: 39 usable
        "max_num_seqs": 32,
        "max_num_batched_tokens": 2048,
        "enable_prefix_caching": False,
        "seed": 0,
        "scheduler_cls": job.scheduler_cls,
        "additional_config": {"wait_core": job.wait_core} if job.wait_core else {},
        **job.engine,
    }
    if transfer := settings.pop("kv_transfer_config", None):
        settings["kv_transfer_config"] = KVTransferConfig(**transfer)
    engine = LLMEngine.from_engine_args(EngineArgs(**settings))
    core = engine.engine_core.engine_core
    if not plain:
        models.draw_weights(core)
    watch = Watch(core.scheduler)
    if job.fault is not None:
        core.scheduler.wait_core.core = FaultyCore(core.scheduler.wait_core.core, job.fault)

    todo = workload(job)
    todo.reverse()
    levels = random.Random(job.seed + 1)
    priorities = {name: levels.randrange(job.priorities or 1) for name, _, _ in todo}
    tokens: dict[str, list[int]] = {}
    reasons: dict[str, str | None] = {}
    aborted: list[str] = []
    steps = 0
    began = time.monotonic()
    first_s: dict[str, float] = {}
    end_s: dict[str, float] = {}
    deadline = began + job.time_limit_s
    while todo or engine.has_unfinished_requests():
        for _ in range(min(len(todo), job.arrivals_per_step or len(todo))):
            name, prompt, length = todo.pop()
            params = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True, detokenize=False)
            engine.add_request(name, {"prompt_token_ids": prompt}, params, priority=priorities[name])
            if job.abort_every and int(name[1:]) % job.abort_every == 0:
                aborted.append(name)
        for output in engine.step():
            tokens[output.request_id] = list(output.outputs[0].token_ids)
            now_s = time.monotonic() - began
            first_s.setdefault(output.request_id, now_s)
            if output.finished:
                end_s[output.request_id] = now_s
                reasons[output.request_id] = output.outputs[0].finish_reason
        steps += 1
        if aborted and steps % 3 == 0:  # from both ends: some run, some still wait
            name = aborted.pop(-1 if steps % 2 else 0)
            if name not in reasons:
                engine.abort_request([name])
                reasons[name] = "abort"
        if job.reset_prefix_cache_every and steps % job.reset_prefix_cache_every == 0:
            engine.reset_prefix_cache(reset_running_requests=True)
        if time.monotonic() > deadline:
            message = f"no end after {steps} steps: {core.scheduler.get_request_counts()} (running, waiting)"
            raise TimeoutError(message)
    # One more step lets the scheduler see the last finishes, as the engine's own loop does.
    while core.scheduler.has_requests():
        engine.step()
    answer = {
        "job": asdict(job),
        "scheduler": type(core.scheduler).__name__,
        "async_scheduling": core.async_scheduling,
        "batch_queue_size": core.batch_queue_size,
        "usable_blocks": core.scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1,
        "free_blocks_at_end": core.scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
        "calls": steps,
        "tokens": tokens,  # in the order of the first ones
        "priorities": priorities,
        "reasons": reasons,
        "first_s": first_s,
        "end_s": end_s,
        **watch.report(),
    }
    engine.engine_core.shutdown()
    folder.cleanup()
    return answer


class Watch:
    """Counts, outside the scheduler under test, what it scheduled."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.steps = 0
        self.empty_steps = 0
        self.preemptions = 0
        self.max_running = 0
        stock_schedule = scheduler.schedule

        def schedule(*args: Any, **kwargs: Any) -> Any:
            output = stock_schedule(*args, **kwargs)
            scheduled = output.total_num_scheduled_tokens > 0
            self.steps += scheduled
            self.empty_steps += not scheduled
            self.preemptions += len(output.preempted_req_ids or ())
            self.max_running = max(self.max_running, len(scheduler.running))
            return output

        scheduler.schedule = schedule
        self.loaded_tokens = 0
        if (connector := scheduler.connector) is not None:
            stock_update = connector.update_state_after_alloc

            def update_state_after_alloc(request: Any, blocks: Any, tokens: int) -> None:
                self.loaded_tokens += tokens
                stock_update(request, blocks, tokens)

            connector.update_state_after_alloc = update_state_after_alloc

    def report(self) -> dict[str, Any]:
        """Return the counts, and the adapter's own where there is one."""
        counts = {
            "steps": self.steps,
            "empty_steps": self.empty_steps,
            "preemptions": self.preemptions,
            "max_running": self.max_running,
            "loaded_tokens": self.loaded_tokens,
        }
        bridge = getattr(self.scheduler, "wait_core", None)
        if bridge is not None:
            counts["adapter"] = bridge.report()
        return counts


def main() -> None:
    """Read a job from standard input, write the answer as the last line of standard output."""
    raw = json.load(sys.stdin)
    for pair in ("prompt_tokens", "output_tokens"):
        if pair in raw:
            raw[pair] = tuple(raw[pair])
    if raw.get("fault"):
        raw["fault"] = Fault(**raw["fault"])
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    print(json.dumps(run(Job(**raw))))


if __name__ == "__main__":
    main()
