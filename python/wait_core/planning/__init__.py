"""Capacity planning: whether a GPU keeps up with traffic, with which thresholds and delays, and how many are needed.

`plan` answers for one GPU, `plan_fleet` for many behind a router, `offers` compares kinds of GPU, `goodput_bound` is
the limit of every scheduler. They use the linear program and the fluid model of the core, and run trials in
`wait_core.simulation`.
Deliberately absent: the scheduler itself, laws of hardware, and anything printed or drawn.
"""

from wait_core.planning.fleet import plan_fleet
from wait_core.planning.fleet_plan import FleetPlan, FleetTrial, FluidSplit
from wait_core.planning.goodput import goodput_bound
from wait_core.planning.offers import Offer, offers
from wait_core.planning.plan import plan
from wait_core.planning.plan_report import PlannedEngine, PlannedGpus, PlanReport, StabilityRegion
from wait_core.planning.rates import CapacityBound, Composition, FluidEquilibrium, FluidLimit, Goodput, Prices
from wait_core.planning.thresholds import (
    Caps,
    Delays,
    NestedThresholds,
    SafetyBuffer,
    Segment,
    Violation,
    WaitThresholds,
)
from wait_core.simulation.trial import Expected, Figures, SaturatedRate

__all__ = [
    "CapacityBound",
    "Caps",
    "Composition",
    "Delays",
    "Expected",
    "Figures",
    "FleetPlan",
    "FleetTrial",
    "FluidEquilibrium",
    "FluidLimit",
    "FluidSplit",
    "Goodput",
    "NestedThresholds",
    "Offer",
    "PlanReport",
    "PlannedEngine",
    "PlannedGpus",
    "Prices",
    "SafetyBuffer",
    "SaturatedRate",
    "Segment",
    "StabilityRegion",
    "Violation",
    "WaitThresholds",
    "goodput_bound",
    "offers",
    "plan",
    "plan_fleet",
]
