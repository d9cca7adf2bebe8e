"""A simulated engine on a virtual clock: from requests to what they experience.

`simulate` runs a policy on a workload, on one engine or on a fleet behind a router, `simulate_pools` one engine that
prefills and one that decodes, `sweep` many runs, `probe` compares what a policy expects with the outcome, and `trial`
plays the runs that a plan asks for. Deliberately absent: the rules of routing (`wait_core.fleet`), a real clock, and
what the figures mean for capacity (`wait_core.planning`).
"""

from wait_core.simulation.fleet import Change
from wait_core.simulation.forecasts import Forecasts, probe
from wait_core.simulation.pools import Pools, simulate_pools
from wait_core.simulation.run import Report, Transfer, simulate
from wait_core.simulation.sweep import Cell, sweep

__all__ = ["Cell", "Change", "Forecasts", "Pools", "Report", "Transfer", "probe", "simulate", "simulate_pools", "sweep"]
