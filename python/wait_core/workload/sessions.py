"""Sessions: which requests belong to one conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt


def first_of_session(before: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """Return for each request the index of the first of its session.

    `before` has the index of the request that each goes on from, below its own, or -1.
    """
    first = np.where(before < 0, np.arange(len(before)), before)
    # Twice as far back each time.
    while not np.array_equal(further := first[first], first):
        first = further
    return first.astype(np.uint32)
