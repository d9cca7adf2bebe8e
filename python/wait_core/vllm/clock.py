"""The time that the adapter reads: one place, so that a benchmark may let it pass as a law of iteration times says."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

now_ns: Callable[[], int] = time.monotonic_ns
"""Return the time in ns since some instant. Called by its full name, ``clock.now_ns()``, so that it may be replaced."""
