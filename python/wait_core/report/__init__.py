"""Presentation: tables for the terminal, and figures as PNG files.

Figures take plain arrays keyed by policy name, or the results of a plan, and write one file each. Matplotlib is
imported when the first one is drawn, draws without a display, and leaves the caller's settings alone. Deliberately
absent: any
computation of what is shown, and the wording of the commands (`wait_core.cli`).
"""

from wait_core.report.distributions import latency_bars, latency_cdf
from wait_core.report.fleets import fleet_picture
from wait_core.report.offers import offers_picture
from wait_core.report.overview import overview
from wait_core.report.rates import latency_against_rate, stability_region
from wait_core.report.tables import bars, table
from wait_core.report.time_series import kv_over_time

__all__ = [
    "bars",
    "fleet_picture",
    "kv_over_time",
    "latency_against_rate",
    "latency_bars",
    "latency_cdf",
    "offers_picture",
    "overview",
    "stability_region",
    "table",
]
