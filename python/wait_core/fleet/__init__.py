"""Many replicas: which of them a request goes to.

`Router` is compiled, and the same that the simulated fleet runs. `wait_core.fleet.dispatcher` keeps one in step with a
host that has replicas, and `wait_core.fleet.ray` is such a host: Ray Serve. Absent: what a replica does with a request;
`wait_core.simulation` has a fleet on a virtual clock.
"""

from wait_core._core import ROUTERS, Choice, Router

__all__ = ["ROUTERS", "Choice", "Router"]
