"""Embed random prompts with a tiny model; print the embedding of each request as JSON.

A program like ``engine.py``: its Llama as an embedding model, whose prompts are computed in chunks, or an encoder that
has no KV cache.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import models
from engine import ENVIRONMENT, LLAMA, Watch, write_model

LONGEST = 256
BERT: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": LLAMA["vocab_size"],
    "max_position_embeddings": LONGEST,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "torch_dtype": "float32",
}


def serve(job: dict[str, Any]) -> dict[str, Any]:
    """Serve the workload with the model and the scheduler of `job`."""
    from vllm import EngineArgs, PoolingParams
    from vllm.v1.engine.llm_engine import LLMEngine

    folder = tempfile.TemporaryDirectory(prefix="wait-core-embed-")
    path = Path(folder.name) / "model"
    if job["model"] == "llama":
        settings = {"model": str(write_model(path)), "num_gpu_blocks_override": 20, "max_num_batched_tokens": 96}
    else:
        path.mkdir()
        (path / "config.json").write_text(json.dumps(BERT))
        settings = {"model": str(path), "load_format": "dummy", "max_num_batched_tokens": 300}
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            runner="pooling",
            skip_tokenizer_init=True,
            dtype="float32",
            enforce_eager=True,
            max_model_len=LONGEST,
            block_size=32,
            max_num_seqs=8,
            seed=0,
            scheduler_cls=job.get("scheduler_cls"),
            additional_config={"wait_core": job["wait_core"]} if "wait_core" in job else {},
            **settings,
        )
    )
    core = engine.engine_core.engine_core
    if job["model"] != "llama":
        models.draw_weights(core)
    scheduler = core.scheduler
    watch = Watch(scheduler)
    draw = random.Random(0)
    lengths = [LONGEST if i % 10 == 9 else draw.randint(1, 200) for i in range(60)]
    todo = [(f"r{i}", [draw.randrange(3, LLAMA["vocab_size"]) for _ in range(n)]) for i, n in enumerate(lengths)]
    todo.reverse()
    embeddings: dict[str, list[float]] = {}
    while todo or engine.has_unfinished_requests():
        for _ in range(min(3, len(todo))):
            name, prompt = todo.pop()
            engine.add_request(name, {"prompt_token_ids": prompt}, PoolingParams(task="embed"))
        for output in engine.step():
            embeddings[output.request_id] = output.outputs.data.tolist()
    while scheduler.has_requests():
        engine.step()
    pool = scheduler.kv_cache_manager.block_pool
    answer = {
        "embeddings": embeddings,
        "usable_blocks": pool.num_gpu_blocks - 1,
        "free_blocks_at_end": pool.get_num_free_blocks(),
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
