"""Transcribe noise with a tiny Whisper of random weights; print the tokens of each request as JSON.

A program like ``engine.py``. Two seconds of audio are a hundred tokens to the decoder, in blocks beside its own.
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
from engine import ENVIRONMENT, Watch

RATE, SECONDS = 16_000, 2
READS = 50 * SECONDS
"""Tokens that the encoder makes of it: one for two frames of 10 ms."""
VOCABULARY = 260
WHISPER: dict[str, Any] = {
    "architectures": ["WhisperForConditionalGeneration"],
    "model_type": "whisper",
    "is_encoder_decoder": True,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "num_mel_bins": 80,
    "max_source_positions": READS,
    "max_target_positions": 128,
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "decoder_start_token_id": 1,
    "torch_dtype": "float32",
}


def write_model(folder: Path) -> Path:
    """Write the configuration, a tokenizer of single bytes and the feature extractor."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import WhisperFeatureExtractor, WhisperTokenizerFast

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(WHISPER))
    vocabulary = {"<unk>": 0, "<|startoftranscript|>": 1, "<|endoftext|>": 2}
    vocabulary |= {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=3)}
    tokenizer = Tokenizer(kinds.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    WhisperTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<|startoftranscript|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    ).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80, sampling_rate=RATE, chunk_length=SECONDS).save_pretrained(folder)
    return folder


def serve(job: dict[str, Any]) -> dict[str, Any]:
    """Serve the workload with the scheduler of `job`."""
    import numpy as np
    from vllm import EngineArgs, SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine

    folder = tempfile.TemporaryDirectory(prefix="wait-core-whisper-")
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(write_model(Path(folder.name) / "model")),
            load_format="dummy",
            dtype="float32",
            enforce_eager=True,
            max_model_len=128,
            block_size=32,
            num_gpu_blocks_override=40,
            max_num_seqs=16,
            max_num_batched_tokens=512,
            seed=0,
            scheduler_cls=job.get("scheduler_cls"),
            additional_config={"wait_core": job["wait_core"]} if "wait_core" in job else {},
        )
    )
    core = engine.engine_core.engine_core
    models.draw_weights(core)
    scheduler = core.scheduler
    watch = Watch(scheduler)
    draw = random.Random(0)
    noise = np.random.default_rng(0)
    todo = []
    for i in range(40):
        audio = noise.standard_normal(RATE * SECONDS).astype(np.float32) * draw.uniform(0.01, 1)
        prompt = [1, *(draw.randrange(3, VOCABULARY - 1) for _ in range(draw.randint(0, 20)))]
        length = draw.randint(4, 90)
        params = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True, detokenize=False)
        todo.append((f"r{i}", {"prompt_token_ids": prompt, "multi_modal_data": {"audio": (audio, RATE)}}, params))
    todo.reverse()
    tokens: dict[str, list[int]] = {}
    while todo or engine.has_unfinished_requests():
        for _ in range(min(2, len(todo))):
            engine.add_request(*todo.pop())
        for output in engine.step():
            tokens[output.request_id] = list(output.outputs[0].token_ids)
    while scheduler.has_requests():
        engine.step()
    pool = scheduler.kv_cache_manager.block_pool
    answer = {
        "tokens": tokens,
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
