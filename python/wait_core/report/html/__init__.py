"""A report as one self-contained page of HTML: no network, no script, charts as inline SVG.

`page_of_simulations`, `page_of_sweep`, `page_of_plan`, `page_of_offers`, `page_of_fleet_plan` and `page_of_replay`
define its contents, `rendered` writes it out and needs Jinja2. svg.py draws. Deliberately absent: the computation of
what is shown.
"""

from wait_core.report.html.fleets import page_of_fleet_plan
from wait_core.report.html.offers import page_of_offers
from wait_core.report.html.page import Figure, Page, Section, Table, check_page, rendered
from wait_core.report.html.plans import page_of_plan
from wait_core.report.html.replays import Replayed, page_of_replay
from wait_core.report.html.simulations import page_of_simulations
from wait_core.report.html.sweeps import page_of_sweep

__all__ = [
    "Figure",
    "Page",
    "Replayed",
    "Section",
    "Table",
    "check_page",
    "page_of_fleet_plan",
    "page_of_offers",
    "page_of_plan",
    "page_of_replay",
    "page_of_simulations",
    "page_of_sweep",
    "rendered",
]
