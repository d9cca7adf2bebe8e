"""A picture of a fleet's plan: the share of the requests in time against the number of GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wait_core.report.plot_style import INK, LIMIT, new_figure, styles

if TYPE_CHECKING:
    import os

    from wait_core.planning import FleetPlan


def fleet_picture(path: str | os.PathLike[str], plan: FleetPlan) -> Path:
    """Draw the share in time of all simulated fleets against their GPUs, beside the fluid bound, and write a PNG.

    At each number of GPUs the best split of a router is shown; the fleet that is recommended is named.
    """
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415  # slow to import, and most uses draw nothing

    curves = plan.curves()
    looks = styles(name for name in curves if not name.startswith("fluid"))
    with new_figure(path, (6.8, 4.6)) as figure:
        axis = figure.subplots()
        for name, (gpus, shares) in curves.items():
            if name in looks:
                colour, dashes, marker = looks[name]
                axis.plot(gpus, shares, color=colour, linestyle=dashes, marker=marker, markersize=5, label=name)
            else:
                dashes = "-" if name.endswith("colocated") else (0, (1, 1))
                axis.plot(gpus, shares, color=LIMIT, linestyle=dashes, linewidth=1.2, label=name)
        axis.axhline(plan.attainment, color=LIMIT, linestyle=(0, (4, 2)), linewidth=1.0)
        if (best := plan.recommended) is not None:
            said = f"{best.gpus} GPUs: {best.split}, {best.router}"
            look = {"markersize": 12, "markerfacecolor": "none", "linestyle": "none"}
            axis.plot([best.gpus], [best.goodput], "o", color=INK, label=said, **look)
        axis.set_ylim(0, 1.05)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="GPUs", ylabel=f"share within {plan.objective} ms")
        axis.set_title(f"{plan.workload} at {plan.request_rate:.4g} requests/s")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=9)
    return Path(path)
