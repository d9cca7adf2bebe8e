"""KV cache groups from a model's own configuration (`config.json` of Hugging Face): which layers keep what."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from wait_core._core import WaitCoreError
from wait_core.hardware.deployment import CacheGroup
from wait_core.hardware.kv_groups import CHUNKED, FULL, SLIDING

if TYPE_CHECKING:
    from collections.abc import Mapping

STATE = ("linear_attn_config", "hybrid_override_pattern", "mamba_num_heads", "mamba_d_state", "ssm_cfg")
"""Keys of models with layers that keep a state of constant size (Mamba, linear attention)."""
COMPRESSED = ("compress_ratios", "index_head_dim")
"""Keys of models with compressed or indexed sparse attention, whose cache is not just a number of bytes per
token."""


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a configuration that describes the language model."""
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(key), dict):
            return dict(config[key])
    return config


def cache_groups(config: Mapping[str, Any], *, tensor_parallel_size: int, bytes_per_value: int) -> list[CacheGroup]:
    """Return the cache groups of one GPU, the largest first.

    Keys and values are divided by heads: a GPU holds at least one head of each layer. A compressed latent (MLA) is not
    divided.

    Parameters
    ----------
    config : mapping
        `config.json`.
    tensor_parallel_size : int
        GPUs of one replica.
    bytes_per_value : int
        2 for 16-bit caches, 1 for fp8.

    Raises
    ------
    WaitCoreError
        If layers keep a state instead of tokens, compress their cache, or the configuration does not say what is kept.

    """
    text = text_config(config)
    kinds = _layers(text)
    if any(text.get(key) for key in STATE) or kinds["state"]:
        raise WaitCoreError(
            f"{_name(text)}: layers that keep a state of constant size (Mamba, linear attention) are not supported yet"
        )
    if any(text.get(key) for key in COMPRESSED):
        raise WaitCoreError(f"{_name(text)}: sparse attention with an index or a compressed cache is not supported yet")
    window = text.get("sliding_window") or text.get("sliding_window_size")
    found = []
    for kind, length in ((FULL, None), (SLIDING, window), (CHUNKED, text.get("attention_chunk_size"))):
        if not kinds[kind]:
            continue
        if kind != FULL and not length:
            raise WaitCoreError(f"{_name(text)}: the configuration has {kind} layers but not how long they are")
        values = _values_per_token(text, kind, tensor_parallel_size)
        found.append(
            CacheGroup(
                kind=kind,
                layers=kinds[kind],
                bytes_per_token=kinds[kind] * values * bytes_per_value,
                window=None if length is None else int(length),
            )
        )
    return sorted(found, key=lambda group: -group.bytes_per_token)


def check_division(config: Mapping[str, Any], tensor_parallel_size: int) -> None:
    """Refuse a tensor-parallel size that does not divide the model's attention heads, as engines do.

    Raises
    ------
    WaitCoreError
        With the sizes that do.

    """
    text = text_config(config)
    heads, kv = _positive(text, "num_attention_heads"), int(text.get("num_key_value_heads") or 0)
    # Where there are fewer KV heads than GPUs, each KV head is held by several.
    sizes = [n for n in (1, 2, 4, 8, 16) if heads % n == 0 and (kv == 0 or kv % n == 0 or n % kv == 0)]
    if tensor_parallel_size not in sizes:
        raise WaitCoreError(
            f"tensor_parallel_size = {tensor_parallel_size}: {_name(text)} has {heads} attention heads and"
            f" {kv or heads} KV heads, which divide by {', '.join(map(str, sizes))}"
        )


def _layers(text: Mapping[str, Any]) -> Counter[str]:  # noqa: PLR0911  one for each way of saying it
    """How many layers there are of each kind."""
    number = _positive(text, "num_hidden_layers")
    if isinstance(text.get("layer_types"), list):
        return Counter(_kind(str(name)) for name in text["layer_types"])
    if isinstance(text.get("hybrid_layer_pattern"), list):  # MiMo: 1 is a sliding window
        return Counter(SLIDING if window else FULL for window in text["hybrid_layer_pattern"])
    if text.get("attention_chunk_size"):  # Llama 4: every n-th layer has no position embedding and sees everything
        positions = text.get("no_rope_layers")
        if isinstance(positions, list) and positions:
            return Counter(CHUNKED if rotary else FULL for rotary in positions)
        full = number // int(text.get("no_rope_layer_interval") or 4)
        return Counter({CHUNKED: number - full, FULL: full})
    window, pattern = text.get("sliding_window"), text.get("sliding_window_pattern")
    if window and pattern:  # Gemma: one full layer in `pattern`
        full = number // int(pattern)
        return Counter({SLIDING: number - full, FULL: full})
    if window and text.get("use_sliding_window", True):
        return Counter({SLIDING: number})
    return Counter({FULL: number})


def _kind(name: str) -> str:
    if "linear" in name or "mamba" in name or "recurrent" in name:
        return "state"
    return SLIDING if "sliding" in name else CHUNKED if "chunk" in name else FULL


def _values_per_token(text: Mapping[str, Any], kind: str, gpus: int) -> int:
    """Values that one layer of this kind keeps of a token on one GPU."""
    if text.get("kv_lora_rank"):
        return int(text["kv_lora_rank"]) + int(text.get("qk_rope_head_dim") or 0)
    heads = int(text.get("num_key_value_heads") or _positive(text, "num_attention_heads"))
    size = int(text.get("head_dim") or 0) or _positive(text, "hidden_size") // _positive(text, "num_attention_heads")
    values = int(text.get("v_head_dim") or 0) or size
    if kind == FULL and text.get("global_head_dim"):  # Gemma 4: full layers have heads of their own
        size = values = int(text["global_head_dim"])
        heads = int(text.get("num_global_key_value_heads") or heads)
    if kind == SLIDING and text.get("swa_num_key_value_heads"):  # MiMo
        heads = int(text["swa_num_key_value_heads"])
        size = int(text.get("swa_head_dim") or size)
        values = int(text.get("swa_v_head_dim") or values)
    return max(1, -(-heads // gpus)) * (size + values)


def _positive(text: Mapping[str, Any], key: str) -> int:
    value = text.get(key)
    if not isinstance(value, int) or value < 1:
        raise WaitCoreError(f"{_name(text)}: the configuration does not say {key}")
    return value


def _name(text: Mapping[str, Any]) -> str:
    return str(text.get("_name_or_path") or text.get("model_type") or "the model")
