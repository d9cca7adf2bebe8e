"""One engine on a virtual clock: requests in, what becomes of them out.

`simulate` runs a policy on a workload, `probe` compares what it expects with what comes, and `trial` plays the runs
that a plan asks for. Deliberately absent: more than one engine, a real clock, and what the figures mean for capacity
(`wait_core.planning`).
"""

from wait_core.simulation.forecasts import Forecasts, probe
from wait_core.simulation.run import Report, simulate

__all__ = ["Forecasts", "Report", "probe", "simulate"]
