"""Deployments that ship as data: common ones, planned without the optional package.

`python bench/hardware.py --make-laws` writes them; each states the package and the engine version it comes from.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from wait_core.files import read_object
from wait_core.hardware.deployment import Deployment


@cache
def shipped() -> dict[str, Deployment]:
    """Return all shipped deployments by name, in alphabetical order."""
    values = [read_object(file) for file in sorted((Path(__file__).parent / "data").glob("*.json"))]
    return {value["name"]: Deployment.from_dict(value) for value in values}


def find(gpu: str, model: str, tensor_parallel_size: int, engine: str) -> Deployment | None:
    """Return the shipped deployment of these, if there is one; the model with or without its organisation."""
    wanted, device = model.lower(), gpu.lower().replace("-", "_")
    for each in shipped().values():
        if (
            wanted in {each.model.lower(), each.model.lower().partition("/")[2]}
            and device in {each.gpu, each.gpu.removesuffix("_sxm")}
            and (tensor_parallel_size, engine) == (each.tensor_parallel_size, each.engine)
        ):
            return each
    return None
