"""`engine`: one model, served by one engine on one group of GPUs, with the engine's defaults."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wait_core._core import WaitCoreError
from wait_core.checked import checked
from wait_core.files import read_object, replacing
from wait_core.hardware import cache_groups, catalogue, law, memory, package, shipped_data
from wait_core.hardware.deployment import Deployment
from wait_core.hardware.kv_groups import FULL

if TYPE_CHECKING:
    from collections.abc import Callable

    from wait_core.hardware.deployment import CacheGroup, Memory
    from wait_core.hardware.package import Model

HOST_S = 0.5e-3
"""Time between the kernels of two iterations, s: an assumption, as kernel times include none of it. vLLM prepares a
step while the one before runs (asynchronous scheduling, its default), so what is left is launching, sampling and
copies. Published times per token at one to four requests exceed the kernels by 0.1 to 1.7 ms (docs/hardware.md)."""
SIZES = (1, 2, 4, 8, 16)
LONGEST_ASKED = 65_536
"""Longest context in the grid: beyond it the law is extrapolated linearly."""
GOAL = (0.03, 0.10)
"""Median error, and that of 95 %, beyond which a law is marked as less exact."""
REVISION = 3
"""Version of the fit: a law cached under another version is fitted again."""


@checked
def engine(
    gpu: str,
    model: str,
    *,
    tensor_parallel_size: int = 1,
    engine: str = "vllm",
    gpu_memory_utilization: float | None = None,
    max_num_seqs: int | None = None,
    token_budget: int | None = None,
    block_size: int | None = None,
    kv_cache_dtype: str = "auto",
    host_s: float = HOST_S,
) -> Deployment:
    """Describe a model on a group of GPUs: law, KV cache, `max_num_seqs` and token budget.

    A deployment that ships is used as it is, unless the package of kernel times is installed in another version than it
    came from. Else the law is fitted in seconds and cached in the user's cache folder (`WAIT_CORE_CACHE`, or
    `XDG_CACHE_HOME`/wait-core, or ~/.cache/wait-core).

    Parameters
    ----------
    gpu : str
        "h100_sxm", "a100_sxm", "l40s", ...: `wait-core hardware` lists them.
    model : str
        Name on Hugging Face, or the path of a `config.json`.
    tensor_parallel_size : int
        GPUs of one replica.
    engine : str
        "vllm", "sglang" or "trtllm": whose kernels. Memory, `max_num_seqs` and budget follow vLLM for all of them.
    gpu_memory_utilization : float, optional
        Share of the memory that the engine may fill (vLLM's default: 0.92, 0.9 before 0.21).
    max_num_seqs, token_budget : int, optional
        Most residents and most tokens per iteration (vLLM's default: 1,024 and 8,192 on GPUs of 70 GiB and more, 256
        and 2,048 on smaller ones and on the A100).
    block_size : int, optional
        Tokens per KV block (16; 64 where the cache is a compressed latent).
    kv_cache_dtype : {"auto", "bfloat16", "fp8"}
        What the KV cache holds; "auto" is what the checkpoint says, else 16 bits, as in vLLM.
    host_s : float
        Time between the kernels of two iterations, s; in the law.

    Raises
    ------
    WaitCoreError
        The GPU or the model is unknown, the model does not fit or has layers that are not supported, the size does not
        divide its heads, or the package is not installed.

    """
    least = {
        "tensor_parallel_size": tensor_parallel_size, "max_num_seqs": max_num_seqs, "token_budget": token_budget,
        "block_size": block_size,
    }  # fmt: skip
    for name, number in least.items():
        if number is not None and number < 1:
            raise WaitCoreError(f"{name} = {number}: must be at least 1")
    if gpu_memory_utilization is not None and not 0 < gpu_memory_utilization <= 1:
        raise WaitCoreError(f"gpu_memory_utilization = {gpu_memory_utilization}: must be above 0 and at most 1")
    ready = shipped_data.find(gpu, model, tensor_parallel_size, engine)
    as_shipped = max_num_seqs is token_budget is block_size is None and kv_cache_dtype == "auto"
    if ready is not None and as_shipped and _is_current(ready):
        found = ready if gpu_memory_utilization is None else ready.with_memory(gpu_memory_utilization)
        return found.with_host(host_s)
    device = catalogue.find_gpu(gpu, engine)
    described = catalogue.find_model(model, device, engine, kv_cache_dtype)
    asked: dict[str, Any] = {
        "gpu": device, "gpus": tensor_parallel_size, "engine": engine, "share": gpu_memory_utilization,
        "seats": max_num_seqs, "budget": token_budget, "block_size": block_size,
    }  # fmt: skip
    file = _cache_file(described, asked)
    # A truncated file or one of another form is ignored.
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Deployment.from_dict(read_object(file)).with_host(host_s)
    try:
        made = _make(described, **asked)
    except WaitCoreError:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        if not described.own:
            raise
        raise WaitCoreError(f"model = {model!r}: the configuration cannot be interpreted ({error!r})") from None
    _keep(file, made)
    return made.with_host(host_s)


def _make(
    model: Model,
    *,
    gpu: str,
    gpus: int,
    engine: str,
    share: float | None,
    seats: int | None,
    budget: int | None,
    block_size: int | None,
) -> Deployment:
    """Fit the law, without time for the host."""
    cache_groups.check_division(model.config, gpus)
    version = package.engine_version(gpu, engine)
    # vLLM's way of counting, for other engines too: they log no start-up figures to compare with.
    counted = version if engine == "vllm" else "0.24"
    total = int(memory.REPORTED[gpu] * memory.GIB) if gpu in memory.REPORTED else package.capacity(gpu)
    default_seats, default_budget = memory.defaults(gpu, total)
    seats, budget = seats or default_seats, budget or default_budget
    share = memory.utilization(counted) if share is None else share

    def held(number: int) -> Memory:
        weight = package.weights(model, engine, number)
        return memory.memory(
            model.config, total=total, weights=weight, share=share, gpus=number, seats=seats, budget=budget,
            engine_version=counted,
        )  # fmt: skip

    value = 1 if model.kv_cache_dtype == "fp8" else 2
    groups = cache_groups.cache_groups(model.config, tensor_parallel_size=gpus, bytes_per_value=value)
    found = held(gpus)
    latent = bool(cache_groups.text_config(model.config).get("kv_lora_rank"))
    block = block_size or (64 if latent else 16)
    blocks = max(0, found.kv_cache) // (sum(group.bytes_per_token for group in groups) * block)
    if blocks < 1:
        raise WaitCoreError(_too_large(model, gpu, gpus, found, held))
    longest = int(cache_groups.text_config(model.config).get("max_position_embeddings") or LONGEST_ASKED)
    longest = min(longest, blocks * block)
    kernels = package.kernels(model, gpu, engine, gpus)
    queries = law.grid(kv_tokens=blocks * block, seats=seats, budget=budget, longest=min(longest, LONGEST_ASKED))
    fitted = law.fit(kernels, queries, budget)
    return Deployment(
        name=name_of(model.name, gpu, gpus, engine),
        gpu=gpu,
        model=model.name,
        tensor_parallel_size=gpus,
        engine=engine,
        engine_version=version,
        source=package.version(),
        iteration_time=fitted.iteration_time,
        host_s=0.0,
        accuracy=fitted.accuracy,
        sources=fitted.sources,
        cache_groups=tuple(groups),
        memory=found,
        kv_blocks=blocks,
        block_size=block,
        max_num_seqs=seats,
        token_budget=budget,
        max_model_len=longest,
        notes=tuple(_notes(model, gpu, groups, kernels, fitted)),
    )


def name_of(model: str, gpu: str, gpus: int, engine: str) -> str:
    """Return the short name of a deployment, as "qwen3-32b-h100-sxm-tp2"."""
    short = Path(model).parent.name if model.endswith(".json") else model.rpartition("/")[2]
    parts = [short.lower().removeprefix("meta-"), gpu.replace("_", "-")]
    parts += [f"tp{gpus}"] if gpus > 1 else []
    parts += [engine] if engine != "vllm" else []
    return "-".join(part for part in parts if part)


def _too_large(model: Model, gpu: str, gpus: int, found: Memory, held: Callable[[int], Memory]) -> str:
    needed = (found.usable - found.kv_cache) / memory.GIB
    start = f"{model.name} does not fit on {gpus} x {gpu}: {needed:.1f} GiB on each before any KV cache,"
    start += f" {found.usable / memory.GIB:.1f} GiB may be filled"
    for number in SIZES:
        try:
            cache_groups.check_division(model.config, number)
            if number > gpus and held(number).kv_cache > 0:
                return f"{start}; it takes {number}"
        except WaitCoreError:
            continue
    return f"{start}; nor on {SIZES[-1]}"


def _notes(model: Model, gpu: str, groups: list[CacheGroup], kernels: package.Kernels, fitted: law.Fitted) -> list[str]:
    notes = []
    windows = [group for group in groups if group.kind != FULL]
    if windows:
        layers = " and ".join(f"{group.layers} {group.kind} layers of {group.window:,} tokens" for group in windows)
        notes.append(f"{layers} keep that much in the KV cache")
    if model.kv_cache_dtype == "fp8":
        notes.append("the KV cache holds fp8 values")
    if gpu not in memory.REPORTED:
        notes.append(f"the memory of {gpu} is that of its data sheet, not what CUDA reports")
    if any(text in model.config for text in ("vision_config", "audio_config")):
        notes.append("weights of other modalities than text are not counted: there is less room for KV")
    missed = [each.name for each in fitted.accuracy if each.median_error > GOAL[0] or each.p95_error > GOAL[1]]
    if missed:
        notes.append(f"the law is less exact than others ({GOAL[0]:.0%} and {GOAL[1]:.0%}): {'; '.join(missed)}")
    used = {name.split("_", 1)[-1] for name, _, _ in kernels.tokens(1, 1) + kernels.decodes(1, 128)}
    # Tables are the GPU's; one matters where this model has such kernels.
    filled = [table for table in kernels.filled if any(table.split("_", 1)[0] in name for name in used)]
    if filled:
        notes.append(f"low fidelity: rows of other engines fill gaps in {', '.join(filled)}")
    return notes + ([f"the model is described by {model.name}"] if model.own else [])


def _is_current(ready: Deployment) -> bool:
    """Whether the installed package, if there is one, is that from which a shipped deployment was made."""
    try:
        return package.version() == ready.source
    except WaitCoreError:
        return True


def _cache_file(model: Model, asked: dict[str, Any]) -> Path:
    key = {"package": package.version(), "revision": REVISION} | vars(model) | asked
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
    folder = os.environ.get("WAIT_CORE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "wait-core"
    name = name_of(model.name, asked["gpu"], asked["gpus"], asked["engine"])
    return Path(folder).expanduser() / "hardware" / f"{name}-{digest}.json"


def _keep(file: Path, made: Deployment) -> None:
    """Write it whole or not at all: a reader never sees half a file. A folder that cannot be written keeps nothing."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as out:
            out.write(made.to_json())
