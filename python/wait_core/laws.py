"""Iteration-time laws by name, by value or from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wait_core._core import WaitCoreError
from wait_core.files import read_object

if TYPE_CHECKING:
    from collections.abc import Mapping

A100 = "llama-2-7b-a100-80gb"
"""Llama-2-7B on one A100-80GB (fp16, TP 1), fitted from Vidur's published profile: see rust/core/src/cost.rs."""

KV_BLOCKS = {A100: 7424}
"""KV capacity in blocks of 16 tokens that goes with a law: 80 GB with a margin of 10 %."""


def iteration_time(law: str | Mapping[str, Any]) -> dict[str, Any]:
    """Resolve a law to what the core reads.

    Parameters
    ----------
    law : str or mapping
        "llama-2-7b-a100-80gb" (or "a100"); "linear:D0,D1", the paper's d0 + d1 x KV with D0 in seconds and D1 in
        seconds per KV token; the path of a JSON file; or the law's fields as a mapping.

    """
    if not isinstance(law, str):
        return dict(law)
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
        raise WaitCoreError(f"iteration_time = {law!r}: neither {A100}, linear:D0,D1, nor a file")
    return read_object(path)


def kv_blocks_of(law: Mapping[str, Any], block_size: int) -> int:
    """Return the KV capacity in blocks that goes with a law, if there is one.

    Raises
    ------
    WaitCoreError
        Only named laws have one, for blocks of 16 tokens.

    """
    if law != iteration_time(A100) or block_size != 16:
        raise WaitCoreError("kv_blocks is missing: it has a default for the A100 law and block_size 16 only")
    return KV_BLOCKS[A100]
