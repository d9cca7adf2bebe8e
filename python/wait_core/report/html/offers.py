"""The page of offers: how many GPUs of each kind the traffic takes, at what cost, with how much room."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wait_core.report.html.page import Figure, Page, Section, Table, reproduction
from wait_core.report.html.svg import bars, number
from wait_core.report.offers import offers_table
from wait_core.report.tables import cells, counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wait_core.planning import Offer


def page_of_offers(offers: Sequence[Offer], *, command: str, notes: Sequence[str] = ()) -> Page:
    """Return the page of offers for one traffic.

    Parameters
    ----------
    offers : sequence of Offer
        At least one.
    command : str
        The command line that gives it again.
    notes : sequence of str
        Where the figures of each deployment come from.

    """
    met = [offer for offer in offers if offer.gpus is not None]
    figures = [_figure({offer.deployment.name: float(offer.gpus or 0) for offer in met}, "GPUs")]
    costs = {
        offer.deployment.name: offer.dollars_per_million_output_tokens
        for offer in met
        if offer.dollars_per_million_output_tokens is not None
    }
    if costs:
        figures.append(_figure(costs, "Dollars per million output tokens"))
    header, rows = offers_table(offers)
    best = min(met, key=lambda offer: (offer.dollars_per_hour or 0.0, offer.gpus or 0), default=None)
    verdict = "none meets the objective" if best is None else f"{best.gpus} x {best.deployment.gpu}"
    compared = f"{counted(len(offers), 'kind')} of replica compared"
    named = f"; the title names the one with {'the least cost' if costs else 'the fewest GPUs'}" if best else ""
    return Page(
        title=f"{number(offers[0].request_rate)} requests/s: {verdict}",
        summary=f"{offers[0].deployment.model}: {compared}{named}.",
        notes=notes,
        sections=[
            Section(heading="What each takes", figures=figures if met else []),
            Section(heading="All figures", tables=[Table(header=header, rows=[cells(row) for row in rows])]),
            reproduction(command),
        ],
    )


def _figure(values: dict[str, float], title: str) -> Figure:
    return Figure(
        heading=title, svg=bars({name: {title: value} for name, value in values.items()}, title=title, unit="")
    )
