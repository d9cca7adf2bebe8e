"""Serve one workload in which requests use vLLM's features side by side; print what each received as JSON.

A program like ``engine.py``, whose model it uses: one engine runs chunked prefill and prefix caching for requests with
several samples, structured output and streaming, all with a LoRA adapter where the job enables it, while requests are
aborted in every state they pass through, the prefix cache is reset, the engine is paused and resumed, and sleeps and
wakes.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from engine import ENVIRONMENT, LLAMA, Watch, force_async_scheduling, write_model

STATES = ("waiting", "prefilling", "decoding", "preempted", "finished")


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of single bytes: what structured output needs to know a token's text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=3)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def write_adapter(folder: Path) -> Path:
    """Write a LoRA adapter large enough to change what the model says."""
    import torch
    from safetensors.torch import save_file

    rank, hidden = 8, LLAMA["hidden_size"]
    draw = torch.Generator().manual_seed(1)
    weights = {}
    for layer in range(LLAMA["num_hidden_layers"]):
        for side, shape in (("A", (rank, hidden)), ("B", (hidden, rank))):
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight"
            weights[name] = torch.randn(shape, generator=draw) / rank**0.5
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def state_of(scheduler: Any, name: str) -> str | None:
    """Return which of `STATES` the request is in."""
    request = next((r for key, r in scheduler.requests.items() if key.startswith(name)), None)
    if request is None:
        return "finished"
    if request.status.name == "RUNNING":
        return "prefilling" if request.is_prefill_chunk else "decoding"
    return {"WAITING": "waiting", "PREEMPTED": "preempted"}.get(request.status.name)


def serve(job: dict[str, Any]) -> dict[str, Any]:
    """Serve the workload with the engine settings of `job`."""
    from vllm import EngineArgs, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
    from vllm.v1.engine.llm_engine import LLMEngine

    if job.get("async_scheduling"):
        force_async_scheduling()
    folder = tempfile.TemporaryDirectory(prefix="wait-core-features-")
    model = write_model(Path(folder.name) / "model")
    write_tokenizer(model)
    adapter = LoRARequest("adapter", 1, str(write_adapter(Path(folder.name) / "adapter")))
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(model),
            dtype="float32",
            enforce_eager=True,
            max_model_len=256,
            block_size=32,
            num_gpu_blocks_override=30,
            max_num_seqs=16,
            max_num_batched_tokens=96,
            enable_prefix_caching=True,
            seed=0,
            scheduler_cls=job.get("scheduler_cls"),
            additional_config={"wait_core": job["wait_core"]} if "wait_core" in job else {},
            **job.get("engine", {}),
        )
    )
    core = engine.engine_core.engine_core
    scheduler = core.scheduler
    watch = Watch(scheduler)
    # All or none: in vLLM 0.32 on the CPU, adapters leak into requests of the same batch that have none.
    lora = bool(job.get("engine", {}).get("enable_lora"))

    draw = random.Random(0)
    prefix = [draw.randrange(3, 259) for _ in range(40)]
    received: dict[str, dict[int, list[int]]] = {}
    streamed: dict[str, int] = {}
    aborting = {f"abort-{state}-{i}": state for state in STATES for i in range(8 if state == "preempted" else 3)}
    kinds = ["plain", "samples", "structured", "streaming"] * 12 + [*aborting]
    draw.shuffle(kinds)
    todo = []
    for i, kind in enumerate(kinds):
        prompt = (prefix if i % 3 == 0 else []) + [draw.randrange(3, 259) for _ in range(draw.randint(8, 150))]
        more: dict[str, Any] = {"max_tokens": draw.randint(8, 60), "temperature": 0.0, "ignore_eos": True}
        if kind == "samples" and not scheduler.num_spec_tokens:  # nor sample by top_k when nothing is to be verified
            more |= {"n": 3, "temperature": 1.0, "top_k": 1}  # vLLM refuses n > 1 with temperature 0
        if kind == "structured":
            shape = StructuredOutputsParams(regex="[a-f]{5}(0|1){9}z+")
            more |= {"ignore_eos": False, "max_tokens": 30, "structured_outputs": shape}
        if kind == "streaming":
            more |= {"output_kind": RequestOutputKind.DELTA}
        params = SamplingParams(detokenize=False, **more)
        name = kind if kind in aborting else f"{kind}-{i}"
        todo.append((name, prompt, params, adapter if lora else None))
    aborted: dict[str, str] = {}

    def step() -> None:
        for output in engine.step():
            mine = received.setdefault(output.request_id, {})
            streamed[output.request_id] = streamed.get(output.request_id, 0) + 1
            for sample in output.outputs:
                tokens = list(sample.token_ids)
                delta = output.request_id.startswith("streaming")
                mine[sample.index] = mine.get(sample.index, []) + tokens if delta else tokens

    todo.reverse()
    steps = 0
    while todo or engine.has_unfinished_requests():
        for _ in range(min(2, len(todo))):
            name, prompt, params, request_lora = todo.pop()
            engine.add_request(name, {"prompt_token_ids": prompt}, params, lora_request=request_lora)
        step()
        steps += 1
        if steps % 40 == 0:
            engine.reset_prefix_cache(reset_running_requests=True)  # preempts all that run
        absent = {name for name, *_ in todo}
        for name, wanted in aborting.items():
            if name not in aborted and name not in absent and state_of(scheduler, name) == wanted:
                engine.abort_request([name])
                engine.abort_request([name, "never-existed"])  # twice, and one that was never there
                aborted[name] = wanted
        if steps in (60, 90):
            before = watch.steps
            core.pause_scheduler("keep", clear_cache=False) if steps == 60 else engine.sleep(0, "keep")
            for _ in range(10):
                step()
            if watch.steps > before + core.batch_queue_size:
                raise RuntimeError("a paused engine went on")
            core.resume_scheduler() if steps == 60 else engine.wake_up(["scheduling"])
        if steps > 5_000:
            raise TimeoutError(f"no end: {scheduler.get_request_counts()} (running, waiting)")
    while scheduler.has_requests():
        engine.step()
    pool = scheduler.kv_cache_manager.block_pool
    answer = {
        "scheduler": type(scheduler).__name__,
        "async_scheduling": scheduler.scheduler_config.async_scheduling,
        "received": received,
        "streamed": streamed,
        "aborted": aborted,
        "usable_blocks": pool.num_gpu_blocks - 1,
        "free_blocks_at_end": pool.get_num_free_blocks(),
        "spec": scheduler.num_spec_tokens,
        **watch.report(),
    }
    engine.engine_core.shutdown()
    folder.cleanup()
    return answer


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    for _name, _value in ENVIRONMENT.items():
        os.environ.setdefault(_name, _value)
    print(json.dumps(serve(asked)))
