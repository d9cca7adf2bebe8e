"""The gateway to `aiconfigurator-core`, the optional package of measured kernels: the only file that imports it.

It is queried for which GPUs, models and engines it covers together; a model's configuration and weights; how long one
iteration's kernels take. Its Rust estimator answers in 0.1 ms, without GPU or network.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wait_core._core import WaitCoreError
from wait_core.extras import install
from wait_core.files import read_object

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACKAGE = "aiconfigurator-core"
PADDED_TO = 256
"""vLLM pads the width of MXFP4 experts to a multiple of this."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def version() -> str:
    """Return name and version of the package.

    Raises
    ------
    WaitCoreError
        If it is not installed; the message says how to.

    """
    try:
        return f"{PACKAGE} {metadata.version(PACKAGE)}"
    except metadata.PackageNotFoundError:
        raise WaitCoreError(f"this needs the kernel times of {PACKAGE}: {install('hardware')}") from None


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model: the package's name for it or the user's file, and its configuration.

    Attributes
    ----------
    name : str
        As on Hugging Face, or the path of a user's configuration.
    config : mapping
        Its `config.json`.
    own : bool
        Whether the configuration is the user's.
    kv_cache_dtype : {"bfloat16", "fp8"}
        What its KV cache holds.

    """

    name: str
    config: Mapping[str, Any]
    own: bool
    kv_cache_dtype: str


@cache
def support() -> dict[tuple[str, str], dict[str, str]]:
    """Return {(gpu, engine): {model: engine version}} of what was measured together."""
    version()
    from aiconfigurator_core.sdk.common import get_support_matrix  # noqa: PLC0415

    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in get_support_matrix():
        if row["Mode"] == "agg" and row["Status"] == "PASS" and row.get("Source", "silicon") == "silicon":
            found.setdefault((row["System"], row["Backend"]), {})[row["HuggingFaceID"]] = row["Version"]
    return found


def engine_version(gpu: str, engine: str) -> str:
    """Return the version of the engine whose kernel times there are for this GPU."""
    from aiconfigurator_core.sdk.perf_database import resolve_query_version  # noqa: PLC0415

    return str(resolve_query_version(gpu, engine, "current"))


def capacity(gpu: str) -> int:
    """Return the memory of a GPU as its data sheet says, bytes."""
    import aiconfigurator_core  # noqa: PLC0415
    import yaml  # noqa: PLC0415

    folder = Path(aiconfigurator_core.__file__).parent / "systems"
    spec = yaml.safe_load((folder / f"{gpu}.yaml").read_text(encoding="utf-8"))
    return int(spec["gpu"]["mem_capacity"])


def configuration(model: str, kind: str = "config") -> dict[str, Any]:
    """Return the `config.json` of a model that the package holds, or its `hf_quant_config`; empty if it has none."""
    import aiconfigurator_core  # noqa: PLC0415

    folder = Path(aiconfigurator_core.__file__).parent / "model_configs"
    path = folder / f"{model.replace('/', '--')}_{kind}.json"
    # Some hold Infinity, which Python's reader takes.
    return read_object(path) if path.is_file() else {}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the package's warnings off standard error: what they say of a model is in `Kernels.filled`."""
    logger = logging.getLogger("aiconfigurator_core")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """One model on one GPU type, compiled: answers in seconds, kernel by kernel, each with its source.

    Attributes
    ----------
    handle : object
        The package's estimator.
    filled : tuple of str
        Tables of kernels in which rows of another engine fill what was not measured under this one (the package calls
        them low-fidelity), with that engine.

    """

    handle: Any
    filled: tuple[str, ...]

    def decodes(self, count: int, context: int) -> list[tuple[str, float, str]]:
        """(kernel, s, source) of an iteration of `count` decodes that read `context` tokens each."""
        # The package's mean context is isl + osl / 2.
        return _rows(self.handle.decode_step_per_op(count, max(1, context - 1), 2))

    def tokens(self, prefill: int, decodes: int) -> list[tuple[str, float, str]]:
        """(kernel, s, source) of everything but attention, for an iteration of this many tokens."""
        shared, _, _ = self.handle.mixed_step_breakdown_per_op(prefill, decodes, prefill, 2)
        return _rows(shared)

    def prefill_attention(self, prompts: int, tokens: int, before: int) -> list[tuple[str, float, str]]:
        """(kernel, s, source) of the attention of `prompts` chunks, each of `tokens` after `before` computed ones."""
        length = before + tokens
        _, attention, _ = self.handle.mixed_step_breakdown_per_op(prompts * tokens, 0, length, 2, before)
        # The package spreads a prompt's attention evenly over the steps that it takes.
        pieces = -(-length // (prompts * tokens))
        return [(name, seconds * pieces, source) for name, seconds, source in _rows(attention)]

    def decode_attention(self, count: int, context: int) -> list[tuple[str, float, str]]:
        """(kernel, s, source) of the attention of `count` decodes that read `context` tokens each."""
        _, _, attention = self.handle.mixed_step_breakdown_per_op(1, count, max(1, context - 1), 2)
        return _rows(attention)


def _rows(operations: Any) -> list[tuple[str, float, str]]:
    return [(str(name), milliseconds * 1e-3, str(source)) for name, milliseconds, _, source in operations]


def kernels(model: Model, gpu: str, engine: str, gpus: int) -> Kernels:
    """Compile a model for a GPU; `gpus` is the tensor-parallel size.

    Raises
    ------
    WaitCoreError
        If the package cannot answer for them together.

    """
    from aiconfigurator_core.sdk.engine import EngineHandle  # noqa: PLC0415

    with _described(model) as path, _quiet(), _answers(f"{model.name} on {gpu} with {engine}"):
        handle = EngineHandle.compile(
            path, gpu, engine, tp_size=gpus, moe_tp_size=_expert_parts(model, gpus),
            kvcache_quant_mode=model.kv_cache_dtype,
        )  # fmt: skip
        handle.decode_step_latency(1, 128, 2)
        return Kernels(handle=handle, filled=_filled(gpu, engine))


def _filled(gpu: str, engine: str) -> tuple[str, ...]:
    """Return the tables that another engine's rows fill; the package says so only the first time that it loads them."""
    from aiconfigurator_core.sdk.perf_database import get_database  # noqa: PLC0415

    database = get_database(gpu, engine, engine_version(gpu, engine))
    database._materialize_source_reports()  # noqa: SLF001
    tables = {
        f"{Path(table).name.removesuffix('_perf.parquet')} ({'/'.join(Path(path).parts[-3:-1])})"
        for table, path in database._fallback_warned  # noqa: SLF001
    }
    return tuple(sorted(tables))


def weights(model: Model, engine: str, gpus: int) -> int:
    """Return the weights of one of `gpus` GPUs, bytes.

    Raises
    ------
    WaitCoreError
        If the package does not know models of this architecture.

    """
    from aiconfigurator_core.sdk.config_builders import build_model_config  # noqa: PLC0415
    from aiconfigurator_core.sdk.models import get_model  # noqa: PLC0415

    with _described(model) as path, _quiet(), _answers(f"{model.name} with {engine}"):
        parallel = build_model_config(
            gpus, 1, 1, _expert_parts(model, gpus), 1, kvcache_quant_mode=model.kv_cache_dtype
        )
        described = get_model(path, parallel, engine)
        held = {str(operation._name): float(operation.get_weights()) for operation in described.context_ops}  # noqa: SLF001
    text = model.config.get("text_config") or model.config
    if not text.get("tie_word_embeddings") and not any("logits" in name for name, size in held.items() if size):
        # Its MoE models omit the output embedding.
        held["logits"] = 2.0 * int(text.get("vocab_size") or 0) * int(text.get("hidden_size") or 0) / gpus
    if "mxfp4" in str(described.config.moe_quant_mode):
        # Beside 4 bits a value it has none of the scales, 8 bits for 32 values, and vLLM pads each part of an expert.
        width = int(text.get("moe_intermediate_size") or text.get("intermediate_size") or 0) // gpus
        padded = -(-width // PADDED_TO) * PADDED_TO / width if width else 1.0
        held = {name: size * (padded * 4.25 / 4 if "moe" in name else 1.0) for name, size in held.items()}
    return int(sum(held.values()))


def _expert_parts(model: Model, gpus: int) -> int:
    """Into how many parts each expert is cut: as many as GPUs, as vLLM does unless expert parallelism is asked for."""
    text = model.config.get("text_config") or model.config
    return gpus if any(text.get(key) for key in EXPERTS) else 1


@contextlib.contextmanager
def _described(model: Model) -> Iterator[str]:
    """Yield what the package accepts as a model: its name, or a folder with a user's own configuration."""
    if not model.own:
        yield model.name
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(model.config), encoding="utf-8")
        yield folder


@contextlib.contextmanager
def _answers(what: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, RuntimeError, AttributeError, AssertionError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise WaitCoreError(f"{PACKAGE} has no answer for {what}: {reason}") from None
