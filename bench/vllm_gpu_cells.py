"""The settings of bench/vllm_gpu.py, and the requests of its rounds."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from contract import ROOT

FIXED: dict[str, Any] = json.loads((ROOT / "bench" / "vllm_gpu.json").read_text(encoding="utf-8"))
CELLS: dict[str, dict[str, Any]] = FIXED["cells"]
ARMS: dict[str, dict[str, Any]] = json.loads((ROOT / "bench" / "vllm_ab.json").read_text(encoding="utf-8"))["arms"]
STOCK, OURS = "stock", "ours"
Lengths = list[tuple[int, int]]
"""Prompt and output tokens of each request."""


def drawn(cell: dict[str, Any], number: int, part: int) -> Lengths:
    """Draw prompt and output tokens of the requests of a round; a `part` of 4 leaves a quarter of them."""
    draw = np.random.default_rng([number, cell["requests"]])
    columns = []
    for key in ("prompt", "output"):
        sizes = draw.lognormal(cell[key]["mu"], cell[key]["sigma"], cell["requests"])
        columns.append(np.clip(np.rint(sizes), cell[key]["least"], cell[key]["most"]).astype(int).tolist())
    return list(zip(*columns, strict=True))[: cell["requests"] // part]
