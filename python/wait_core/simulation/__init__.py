"""A simulated engine on a virtual clock: from requests to what they experience.

`simulate` runs a policy on a workload, on one engine or on a fleet behind a router, where prefill and decode may be
apart (`Disaggregated`), `sweep` many runs, `probe` compares what a policy expects with the outcome, and `trial`
plays the runs that a plan asks for. Deliberately absent: the rules of routing (`wait_core.fleet`), a real clock, and
what the figures mean for capacity (`wait_core.planning`).
"""

from wait_core.simulation.fleet import Change, Disaggregated
from wait_core.simulation.forecasts import Forecasts, probe
from wait_core.simulation.run import Report, simulate
from wait_core.simulation.sweep import Cell, sweep
from wait_core.simulation.transfer import Transfer

__all__ = ["Cell", "Change", "Disaggregated", "Forecasts", "Report", "Transfer", "probe", "simulate", "sweep"]
