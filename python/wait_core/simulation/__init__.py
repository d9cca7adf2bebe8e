"""One engine on a virtual clock: requests in, what becomes of them out.

`simulate` runs a policy on a workload, `sweep` many of them, `probe` compares what a policy expects with what comes,
and `trial` plays the runs that a plan asks for. Deliberately absent: more than one engine, a real clock, and what the
figures mean for capacity (`wait_core.planning`).
"""

from wait_core.simulation.forecasts import Forecasts, probe
from wait_core.simulation.run import Report, simulate
from wait_core.simulation.sweep import Cell, sweep

__all__ = ["Cell", "Forecasts", "Report", "probe", "simulate", "sweep"]
