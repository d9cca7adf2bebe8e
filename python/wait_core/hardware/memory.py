"""How many KV blocks are left, counted as vLLM counts them at start.

vLLM lets a profiling pass run at the full token budget, then a sampling pass for `max_num_seqs` requests, and gives the
KV cache what is left of `gpu_memory_utilization` times the memory that CUDA reports: not the weights, not the peak of
those passes, not what CUDA and NCCL hold, and since 0.21 not the CUDA graphs.

The peak was fitted to start-up lines of vLLM 0.19 on H100 (`python bench/hardware.py --memory` prints them beside what
is computed here): sampling holds 14 bytes for each request and word of the vocabulary (logits in 16 and 32 bits,
probabilities, noise), beside three copies of the hidden states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wait_core.hardware.cache_groups import text_config
from wait_core.hardware.deployment import Memory

if TYPE_CHECKING:
    from collections.abc import Mapping

GIB = 1 << 30
LOGIT_BYTES = 14
HIDDEN_COPIES = 3
RUNTIME = {1: int(0.25 * GIB)}
"""CUDA context and workspaces; with NCCL and custom all-reduce buffers where several GPUs serve one replica."""
RUNTIME_PARALLEL = int(2.1 * GIB)
GRAPHS = int(1.0 * GIB)
"""CUDA graphs, counted since vLLM 0.21: its estimates lie between 0.4 and 1.9 GiB for most models."""
REPORTED = {
    "a100_sxm": 79.25, "a100_pcie": 79.25, "h100_sxm": 79.19, "h100_pcie": 79.19, "h200_sxm": 139.81,
    "b200_sxm": 178.35, "l40s": 44.42,
}  # fmt: skip
"""GiB that CUDA reports, as vLLM's start-up lines and PyTorch's messages print them; a GPU that is absent counts with
what its data sheet says."""


def defaults(gpu: str, total: int) -> tuple[int, int]:
    """`max_num_seqs` and token budget of `vllm serve` on this GPU.

    vllm/engine/arg_utils.py: 1,024 and 8,192 from 70 GiB on, but 256 and 2,048 on the A100.
    """
    return (1024, 8192) if total >= 70 * GIB and not gpu.startswith("a100") else (256, 2048)


def utilization(engine_version: str) -> float:
    """Return vLLM's default of `gpu_memory_utilization`: 0.92 since CUDA graphs are counted (0.21), 0.9 before."""
    return 0.92 if counts_graphs(engine_version) else 0.9


def counts_graphs(engine_version: str) -> bool:
    """Whether this version of vLLM profiles the memory of CUDA graphs."""
    major, minor = (int(part) for part in engine_version.split(".")[:2])
    return (major, minor) >= (0, 21)


def activations(config: Mapping[str, Any], *, gpus: int, seats: int, budget: int) -> int:
    """Peak of the profiling passes, bytes on one GPU."""
    text = text_config(config)
    hidden, vocabulary = int(text.get("hidden_size") or 0), int(text.get("vocab_size") or 0)
    inter = int(text.get("intermediate_size") or 0)
    per_token = int(text.get("num_experts_per_tok") or text.get("num_experts_per_token") or 0)
    expert = int(text.get("moe_intermediate_size") or inter)
    # Fused experts keep their workspace: gate and up, activation, output of every token's experts.
    workspace = budget * per_token * 2 * (3 * expert // gpus + hidden) if per_token else 0
    sampling = LOGIT_BYTES * seats * vocabulary + 2 * HIDDEN_COPIES * budget * hidden
    forward = budget * 2 * (0 if per_token else 3 * inter // gpus) + 2 * (HIDDEN_COPIES + 1) * budget * hidden
    return max(sampling, forward) + workspace


def memory(
    config: Mapping[str, Any],
    *,
    total: int,
    weights: int,
    share: float,
    gpus: int,
    seats: int,
    budget: int,
    engine_version: str,
) -> Memory:
    """Return where the memory of one GPU goes; all in bytes, `share` is gpu_memory_utilization."""
    return Memory(
        total=total,
        usable=int(share * total),
        weights=weights,
        activations=activations(config, gpus=gpus, seats=seats, budget=budget),
        runtime=RUNTIME.get(gpus, RUNTIME_PARALLEL),
        graphs=GRAPHS if counts_graphs(engine_version) else 0,
    )
