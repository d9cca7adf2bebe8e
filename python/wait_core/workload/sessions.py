"""Sessions: which requests belong to one conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt


def first_of_session(before: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """Return for each request the index of the first of its session, shape (n,).

    Parameters
    ----------
    before : ndarray of int64, shape (n,)
        Index of the request that each continues, below its own, or -1.

    """
    first = np.where(before < 0, np.arange(len(before)), before)
    # Each round looks twice as far back.
    while not np.array_equal(further := first[first], first):
        first = further
    return first.astype(np.uint32)
