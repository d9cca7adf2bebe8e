"""A simulated engine on a virtual clock: from requests to what they experience.

`simulate` runs a policy on a workload, `simulate_pools` one engine that prefills and one that decodes, `sweep` many
runs, `probe` compares a policy's forecast with the outcome, and `trial` runs the simulations that a plan needs.
Deliberately absent: routing, a real clock, and what the figures mean for capacity (`wait_core.planning`).
"""

from wait_core.simulation.forecasts import Forecasts, probe
from wait_core.simulation.pools import Pools, simulate_pools
from wait_core.simulation.run import Report, Transfer, simulate
from wait_core.simulation.sweep import Cell, sweep

__all__ = ["Cell", "Forecasts", "Pools", "Report", "Transfer", "probe", "simulate", "simulate_pools", "sweep"]
