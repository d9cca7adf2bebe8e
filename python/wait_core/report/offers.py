"""A picture of offers: GPUs needed, cost, headroom."""

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
