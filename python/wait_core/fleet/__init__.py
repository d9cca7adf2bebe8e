"""Many replicas: which of them a request goes to.

`Router` is the compiled one that the simulated fleet runs too. Absent: what a replica does with a request, and the way
there; `wait_core.simulation` has a fleet on a virtual clock.
"""

from wait_core._core import ROUTERS, Choice, Router

__all__ = ["ROUTERS", "Choice", "Router"]
