"""Latency over the requests: distributions, and bars of their figures."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core.report.arrays import some, vector
from wait_core.report.plot_style import INK, new_figure, plain_log, styles

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from wait_core.report.arrays import Floats

_LINES = ("-", (0, (5, 2)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
"""Line styles of the curves of a figure: they cross, and must be distinguishable without colour."""


def latency_cdf(
    path: str | os.PathLike[str],
    latency_s: Mapping[str, Floats],
    *,
    log: bool = False,
    metric: str = "end-to-end latency",
    title: str = "Latency of the requests",
) -> Path:
    """Draw the share of requests that finished within each latency, a line per policy, the mean in the legend.

    Parameters
    ----------
    path : path
        The PNG to write.
    latency_s : dict of str to array
        By policy: one latency (s) per request.
    log : bool
        Logarithmic latency axis.
    metric : str
        What is measured.
    title : str
        Title of the figure.

    Returns
    -------
    Path
        The file written.

    """
    values = {name: vector(name, data) for name, data in some(latency_s, "latency_s").items()}
    with new_figure(path, (6.4, 4.0)) as figure:
        axis = figure.subplots()
        draw_cdf(axis, values, metric, log)
        axis.set_title(title)
    return Path(path)


def latency_bars(
    path: str | os.PathLike[str],
    metrics: Mapping[str, Mapping[str, float | Sequence[float]]],
    *,
    unit: str = "s",
    title: str = "Latency by policy",
) -> Path:
    """Draw one small panel per metric, a bar per policy, with the spread over seeds where there are several values.

    Parameters
    ----------
    path : path
        The PNG to write.
    metrics : dict of str to (dict of str to float or sequence of float)
        By metric ("mean E2E", "p99 TTFT"), by policy: one value, or one per seed (bar: mean; whisker: smallest to
        largest).
    unit : str
        Unit of all values.
    title : str
        Title of the figure.

    Returns
    -------
    Path
        The file written.

    """
    some(metrics, "metrics")
    policies = list(dict.fromkeys(policy for row in metrics.values() for policy in row))
    height = 1.3 + 0.34 * len(policies)
    looks = styles(policies)
    with new_figure(path, (1.6 + 2.3 * len(metrics), height)) as figure:
        axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axis, (metric, row) in zip(axes, metrics.items(), strict=True):
            for place, policy in enumerate(policies):
                if policy in row:
                    _draw_bar(axis, place, looks[policy][0], vector(f"{metric}, {policy}", np.atleast_1d(row[policy])))
            axis.set_title(metric, fontweight="normal", fontsize=10)
            axis.set_yticks(range(len(policies)), policies)
            axis.set_ylim(len(policies) - 0.45, -0.55)
            axis.set_xlim(left=0)
            axis.margins(x=0.22)
            axis.grid(visible=False, axis="y")
            axis.tick_params(axis="y", length=0)
            axis.spines["left"].set_visible(False)
            axis.set_xlabel(unit)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return Path(path)


def draw_cdf(axis: Any, values: Mapping[str, npt.NDArray[np.float64]], metric: str, log: bool) -> None:
    """Draw the share of requests that finished within each latency on `axis`."""
    looks = styles(values)
    for (name, data), line in zip(values.items(), cycle(_LINES), strict=False):
        colour = looks[name][0]
        ordered = np.sort(data)
        share = np.arange(1, len(ordered) + 1) / len(ordered) * 100
        label = f"{name}: mean {_short(float(data.mean()))} s, p99 {_short(float(np.percentile(data, 99)))} s"
        axis.step(ordered, share, where="post", color=colour, linestyle=line, label=label)
    if log:
        axis.set_xscale("log")
        plain_log(axis.xaxis)
    else:
        axis.set_xlim(left=0)
    axis.set_ylim(0, 101)
    axis.set_xlabel(f"{metric} (s)")
    axis.set_ylabel("requests finished within (%)")
    # Below the axes: no curve can run through it there.
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=9)


def _draw_bar(axis: Any, place: int, colour: str, runs: npt.NDArray[np.float64]) -> None:
    mean = float(runs.mean())
    spread = None if len(runs) == 1 else [[mean - float(runs.min())], [float(runs.max()) - mean]]
    axis.barh(place, mean, height=0.66, color=colour, alpha=0.9, xerr=spread, ecolor=INK, capsize=2.5)
    axis.annotate(
        _short(mean), (float(runs.max()), place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8
    )


def _short(value: float) -> str:
    """Return `value` with three significant digits, never in powers of ten."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
