"""Tiny models with several kinds of KV cache: a configuration each, and weights that are drawn in the engine.

The weights of ``load_format="dummy"`` are so small that the next token depends on the last one only: a corrupted cache
would go unseen. So they are drawn anew once the engine has its model, large enough that the context matters.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_ALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
_ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "rope_theta": 10000.0}
_WINDOWS = {
    "num_hidden_layers": 4,
    "sliding_window": 64,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
MODELS: dict[str, dict[str, Any]] = {
    "gemma-3": _ALL
    | _ATTENTION
    | _WINDOWS
    | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 32,
        "rope_local_base_freq": 10000.0,
    },
    "gpt-oss": _ALL
    | _ATTENTION
    | _WINDOWS
    | {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "swiglu_limit": 7.0,
        "hidden_act": "silu",
    },
    "falcon-h1": _ALL
    | _ATTENTION
    | {
        "architectures": ["FalconH1ForCausalLM"],
        "model_type": "falcon_h1",
        "num_hidden_layers": 2,
        "head_dim": 64,
        "mamba_d_ssm": 128,
        "mamba_n_heads": 2,
        "mamba_d_head": 64,
        "mamba_n_groups": 1,
        "mamba_d_state": 64,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_chunk_size": 64,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    },
}


def write_config(folder: Path, name: str) -> Path:
    """Write the configuration of a model as a Hugging Face folder without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(MODELS[name]))
    return folder


def draw_weights(engine_core: Any, seed: int = 0) -> None:
    """Give the model of an engine in this process weights that are the same in every run; norms stay near one."""
    import torch

    model = engine_core.model_executor.driver_worker.model_runner.model
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim >= 2:
                weights.copy_(torch.randn(weights.shape, generator=draw) * 2 / weights.shape[-1] ** 0.5)
            elif name.endswith(".A"):
                weights.copy_(-torch.rand(weights.shape, generator=draw) - 0.1)
            elif "norm" in name:
                weights.fill_(0.0 if "Gemma" in type(model).__name__ else 1.0)  # Gemma adds one
            else:
                weights.copy_(torch.randn(weights.shape, generator=draw) / 2)
