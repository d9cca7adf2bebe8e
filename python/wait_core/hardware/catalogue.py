"""Names of GPUs, models and engines: which go together, and the nearest names."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wait_core._core import WaitCoreError
from wait_core.files import FileError, read_object
from wait_core.hardware import package
from wait_core.hardware.cache_groups import text_config

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def gpus(engine: str = "vllm") -> list[str]:
    """Return the GPUs whose kernels were measured under an engine.

    Raises
    ------
    WaitCoreError
        If there is no such engine.

    """
    if engine not in engines():
        raise WaitCoreError(f"engine = {engine!r}: one of {', '.join(engines())}")
    return sorted(gpu for gpu, backend in package.support() if backend == engine)


def engines() -> list[str]:
    """Return the engines."""
    return sorted({engine for _, engine in package.support()})


def models(gpu: str, engine: str = "vllm") -> list[str]:
    """Return the models whose kernels were all measured on this GPU under this engine."""
    return sorted(package.support().get((gpu, engine), {}))


def find_gpu(name: str, engine: str) -> str:
    """Return the package's name of a GPU; one form factor of it is enough ("h100" is h100_sxm).

    Raises
    ------
    WaitCoreError
        If the engine or the GPU is unknown, with the nearest names.

    """
    known = gpus(engine)
    wanted = name.lower().replace("-", "_")
    for candidate in (wanted, f"{wanted}_sxm"):
        if candidate in known:
            return candidate
    raise WaitCoreError(f"gpu = {name!r}: unknown to {package.PACKAGE} with {engine}; {_nearest(wanted, known)}")


def find_model(name: str, gpu: str, engine: str, kv_cache_dtype: str = "auto") -> package.Model:
    """Return a model by its name on Hugging Face (the part after the slash is enough), or from a `config.json`.

    Its KV cache holds 16-bit values, unless the checkpoint says fp8 (as vLLM's "auto") or `kv_cache_dtype` does.

    Raises
    ------
    WaitCoreError
        If there is no such model, or not for this GPU and engine, with the nearest names; or the file is no
        configuration.

    """
    path = Path(name)
    if path.suffix == ".json" or path.is_dir():
        config = _read(path / "config.json" if path.is_dir() else path)
        return package.Model(name=name, config=config, own=True, kv_cache_dtype=_dtype(kv_cache_dtype, config, {}))
    known = sorted({model for supported in package.support().values() for model in supported})
    wanted = name.lower()
    found = [model for model in known if wanted in {model.lower(), model.lower().partition("/")[2]}]
    if not found:
        raise WaitCoreError(f"model = {name!r}: unknown to {package.PACKAGE}; {_nearest(wanted, known)}")
    model = found[0]
    if model not in package.support().get((gpu, engine), {}):
        others = [other for other in gpus(engine) if model in package.support()[other, engine]]
        where = f"on {', '.join(others)}" if others else f"on no GPU with {engine}"
        raise WaitCoreError(f"model = {model!r}: not measured on {gpu} with {engine}; it is {where}")
    config = package.configuration(model)
    dtype = _dtype(kv_cache_dtype, config, package.configuration(model, "hf_quant_config"))
    return package.Model(name=model, config=config, own=False, kv_cache_dtype=dtype)


def _dtype(asked: str, config: Mapping[str, Any], quantization: Mapping[str, Any]) -> str:
    """Return what the KV cache holds: the requested type, or what the checkpoint says."""
    if asked in {"bfloat16", "fp8"}:
        return asked
    if asked != "auto":
        raise WaitCoreError(f"kv_cache_dtype = {asked!r}: auto, bfloat16 or fp8")
    scheme: Any = text_config(config)
    for key in ("quantization_config", "kv_cache_scheme"):
        scheme = (scheme.get(key) or config.get(key)) if isinstance(scheme, dict) else None
    said = (quantization.get("quantization") or {}).get("kv_cache_quant_algo")
    return (
        "fp8"
        if str(said).upper() == "FP8" or (isinstance(scheme, dict) and scheme.get("num_bits") == 8)
        else "bfloat16"
    )


def _read(path: Path) -> dict[str, object]:
    try:
        value = read_object(path)
    except (FileError, OSError) as error:
        raise WaitCoreError(f"model = {str(path)!r}: not a configuration ({error})") from None
    if "architectures" not in value:
        raise WaitCoreError(f"model = {str(path)!r}: not a configuration (no architectures)")
    return value


def _nearest(wanted: str, known: Iterable[str]) -> str:
    """Say which names are nearest, whole or without the organisation before the slash."""
    names = {short: name for name in known for short in (name.lower(), name.lower().partition("/")[2]) if short}
    close = dict.fromkeys(names[short] for short in difflib.get_close_matches(wanted, names, n=6, cutoff=0.4))
    return f"nearest: {', '.join(list(close)[:3])}" if close else f"known: {', '.join(known)}"
