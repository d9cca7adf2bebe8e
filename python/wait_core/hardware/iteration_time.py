"""Iteration-time laws by name, by value or from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wait_core._core import WaitCoreError
from wait_core.files import read_object, shown
from wait_core.hardware.shipped_data import shipped

if TYPE_CHECKING:
    from wait_core.hardware.deployment import Deployment

A100 = "llama-2-7b-a100-80gb"
"""Llama-2-7B on one A100-80GB (fp16, TP 1), fitted from Vidur's profile: rust/core/src/model/iteration_time.rs."""

KV_BLOCKS = {A100: 7424}
"""KV capacity in blocks of 16 tokens that goes with a law: 80 GB with a margin of 10 %."""

MODEL = {A100: "meta-llama/Llama-2-7b-hf"}
"""The model that a law is of."""

KV_BYTES = {A100: 524_288}
"""KV bytes a token, of all layers: keys and values of 32 layers, 4,096 numbers of 2 bytes each."""


def iteration_time(law: str | Mapping[str, Any]) -> dict[str, Any]:
    """Resolve a law to what the core reads.

    Parameters
    ----------
    law : str or mapping
        "llama-2-7b-a100-80gb" (or "a100"); the name of a shipped deployment, as "qwen3-32b-h100-sxm-tp2";
        "linear:D0,D1", the paper's d0 + d1 x KV with D0 in seconds and D1 in seconds per KV token; the path of a JSON
        file, of a law or of a deployment; or the law's fields as a mapping.

    Raises
    ------
    WaitCoreError
        If it is none of these.

    """
    if isinstance(law, Mapping):
        return dict(law)
    if not isinstance(law, str):
        raise WaitCoreError(f"iteration_time = {shown(law)}: neither a name nor the fields of a law")
    if law in {A100, "a100"}:
        return {"law": "a100"}
    if law.startswith("linear:"):
        try:
            d0, d1 = (float(part) for part in law.removeprefix("linear:").split(","))
        except ValueError:
            raise WaitCoreError(f"iteration_time = {law!r}: expected linear:D0,D1 with two numbers") from None
        return {"law": "linear", "d0": d0, "d1": d1}
    path = Path(law)
    if not path.is_file():
        deployments = shipped()
        if law in deployments:
            return deployments[law].iteration_time
        names = ", ".join(deployments)
        raise WaitCoreError(f"iteration_time = {law!r}: neither {A100}, linear:D0,D1, a file, nor one of {names}")
    value = read_object(path)
    # A deployment holds its law, beside the memory that goes with it.
    fields: dict[str, Any] = value.get("iteration_time", value)
    return fields


def kv_blocks_of(law: Mapping[str, Any], block_size: int) -> int:
    """Return the KV capacity that goes with a law, if there is one: blocks of all layers, counted as full ones.

    Raises
    ------
    WaitCoreError
        Only named laws have one, for blocks of the size that goes with it.

    """
    if law == iteration_time(A100) and block_size == 16:
        return KV_BLOCKS[A100]
    return _deployment_of(law, block_size).kv_blocks


def kv_cache_of(law: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the KV cache that go with a law, where `settings` do not say how large it is.

    Parameters
    ----------
    law : mapping
        The fields of a law.
    settings : mapping
        Those of the core; `block_size` is among them.

    Raises
    ------
    WaitCoreError
        The law has no KV cache, or `kv_groups` are given, whose blocks are of another size.

    """
    if "kv_blocks" in settings:
        return {}
    if settings.get("kv_groups"):
        raise WaitCoreError("kv_blocks is missing: how large the blocks of your kv_groups are is not known")
    if law == iteration_time(A100):
        return {"kv_blocks": kv_blocks_of(law, settings["block_size"])}
    return _deployment_of(law, settings["block_size"]).kv_cache()


def kv_bytes_of(law: Mapping[str, Any], block_size: int = 16) -> int:
    """Return the KV bytes of one token on one GPU, of all layers, of the model that goes with a law.

    Raises
    ------
    WaitCoreError
        Only named laws have a model.

    """
    if law == iteration_time(A100):
        return KV_BYTES[A100]
    return _deployment_of(law, block_size, "bytes_per_token").kv_bytes_per_token


def model_of(law: Mapping[str, Any]) -> str | None:
    """Return the model that a shipped law is of; None for a law of your own."""
    if law == iteration_time(A100):
        return MODEL[A100]
    return next((each.model for each in shipped().values() if law == each.iteration_time), None)


def _deployment_of(law: Mapping[str, Any], block_size: int, wanted: str = "kv_blocks") -> Deployment:
    for deployment in shipped().values():
        if law == deployment.iteration_time and block_size == deployment.block_size:
            return deployment
    raise WaitCoreError(f"{wanted} is missing: only named laws and their block_size have a default")
