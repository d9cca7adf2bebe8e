"""The times that the adapter reads: one place, so that a benchmark may let them pass as a law of iteration times says.

Each is called by its full name, such as ``clock.now_ns()``, so that it may be replaced.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

now_ns: Callable[[], int] = time.monotonic_ns
"""Return the time in ns since some instant; it never goes back."""
unix_ns: Callable[[], int] = time.time_ns
"""Return the time in ns since 1970, for what another machine reads."""
tick_ns: Callable[[], int] = time.perf_counter_ns
"""Return a time in ns for how long the adapter itself takes: no benchmark replaces it."""
