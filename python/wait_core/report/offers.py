"""Offers as a picture and as a table: GPUs needed, cost, headroom."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wait_core._core import WaitCoreError
from wait_core.report.plot_style import INK, LIMIT, new_figure

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from wait_core.planning.offers import Offer

COLOURS = ("#0072B2", "#D55E00", "#009E73")


def offers_picture(path: str | os.PathLike[str], offers: Sequence[Offer], *, title: str) -> Path:
    """Draw one bar an offer in each of up to three panels, and write a PNG.

    What an offer cannot do, because no number of GPUs meets the objective, is written where its bar would be.

    Raises
    ------
    WaitCoreError
        If there is nothing to draw.

    """
    if not offers:
        raise WaitCoreError("offers: none to draw")
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415  # slow to import, and most uses draw nothing

    panels: dict[str, Sequence[float | None]] = {"GPUs": [each.gpus for each in offers]}
    costs = [each.dollars_per_million_output_tokens for each in offers]
    if any(cost is not None for cost in costs):
        panels["dollars per million output tokens"] = costs
    rooms = [None if each.gpus is None else 100 * each.headroom for each in offers]
    panels["headroom, % more traffic"] = rooms
    places = list(range(len(offers)))
    with new_figure(path, (3.4 * len(panels) + 1.4, 0.42 * len(offers) + 1.5)) as figure:
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (label, values), colour in zip(axes, panels.items(), COLOURS, strict=False):
            axis.barh(places, [value or 0.0 for value in values], color=colour, height=0.6)
            for place, value in zip(places, values, strict=True):
                said = "objective not met" if value is None else f"{value:,.3g}" if value < 100 else f"{value:,.0f}"
                axis.annotate(
                    f" {said}", (value or 0.0, place), va="center", fontsize=9, color=LIMIT if value is None else INK
                )
            axis.set_xlabel(label)
            axis.set_xlim(0, 1.25 * max([value for value in values if value is not None], default=1.0))
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=label == "GPUs"))
            axis.grid(visible=False, axis="y")
        axes[0].set_yticks(places, [each.deployment.name for each in offers])
        axes[0].invert_yaxis()
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return Path(path)


def offers_table(offers: Sequence[Offer]) -> tuple[list[str], list[list[object]]]:
    """Return header and rows of a table, one row an offer."""
    objective = any(offer.goodput is not None for offer in offers)
    priced = any(offer.dollars_per_hour is not None for offer in offers)
    header = ["replica", "saturated/s", "GPUs", "rate/s each", "utilisation", "headroom", "TTFT ms", "TPOT ms"]
    header += ["meet the objective"] if objective else []
    header += ["$/h", "$/M output tokens", "$/M tokens"] if priced else []
    rows = []
    for offer in offers:
        row = [
            f"{offer.deployment.tensor_parallel_size} x {offer.deployment.gpu}",
            offer.saturated_rate,
            "objective not met" if offer.gpus is None else offer.gpus,
            offer.rate_each,
            f"{offer.utilisation:.0%}",
            f"{offer.headroom:+.0%}",
            offer.ttft_s * 1e3,
            offer.tpot_s * 1e3,
        ]
        row += [f"{offer.goodput:.1%}"] if offer.goodput is not None else []
        money = (offer.dollars_per_hour, offer.dollars_per_million_output_tokens, offer.dollars_per_million_tokens)
        row += ["-" if value is None else f"{value:,.2f}" for value in money] if priced else []
        rows.append(row)
    return header, rows
