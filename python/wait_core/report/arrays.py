"""The checks that every figure makes of its data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core._core import WaitCoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

Floats = Any
"""Anything that numpy turns into a vector of numbers."""


def some(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return `data`, refused where it is empty."""
    check(len(data) > 0, name, dict(data), "a dict of at least one entry")
    return data


def check(holds: bool, name: str, value: object, expected: str) -> None:
    """Refuse `value`, called `name`, unless `right` holds."""
    if not holds:
        raise WaitCoreError(f"{name}: {value!r} is not {expected}")


def vector(name: str, data: Floats) -> npt.NDArray[np.float64]:
    """Return `data` as a vector of finite numbers, at least one."""
    values = np.asarray(data, np.float64)
    right = values.ndim == 1 and len(values) > 0 and bool(np.all(np.isfinite(values)))
    check(right, name, data, "a vector of finite numbers, at least one")
    return values
