"""An engine at different rates: its latency, and where the stability region ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wait_core.report.arrays import check, some, vector
from wait_core.report.plot_style import INK, LIMIT, new_figure, plain_log, styles

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from wait_core.report.arrays import Floats


def latency_against_rate(
    path: str | os.PathLike[str],
    rate: Floats,
    latency_s: Mapping[str, Floats],
    *,
    capacity_rate: float | None = None,
    log: bool = True,
    metric: str = "mean end-to-end latency",
    title: str = "Latency against arrival rate",
) -> Path:
    """Draw latency against arrival rate: the mean over seeds, and a band from the smallest to the largest.

    Parameters
    ----------
    path : path
        The PNG to write.
    rate : array, shape (r,)
        Arrival rates (requests/s), rising.
    latency_s : dict of str to array, shape (r,) or (seeds, r)
        By policy: latency (s) at each rate; NaN where a run is missing.
    capacity_rate : float, optional
        The largest rate that can be carried, drawn as a limit.
    log : bool
        Logarithmic latency axis.
    metric : str
        What is measured, for the axis.
    title : str
        Title of the figure.

    Returns
    -------
    Path
        The file written.

    """
    rates = vector("rate", rate)
    check(bool(np.all(np.diff(rates) > 0)), "rate", rate, "rising")
    with new_figure(path, (6.4, 4.2)) as figure:
        axis = figure.subplots()
        looks = styles(latency_s)
        for name, data in some(latency_s, "latency_s").items():
            runs = np.atleast_2d(np.asarray(data, np.float64))
            right = runs.ndim == 2 and runs.shape[1] == len(rates) and not np.any(np.isinf(runs))
            check(right, f"latency_s[{name!r}]", runs.shape, f"finite, of shape (seeds, {len(rates)})")
            there = ~np.all(np.isnan(runs), axis=0)
            check(bool(there.any()), f"latency_s[{name!r}]", data, "known at any rate")
            colour, line, marker = looks[name]
            x, runs = rates[there], runs[:, there]
            axis.fill_between(x, np.nanmin(runs, 0), np.nanmax(runs, 0), color=colour, alpha=0.18, linewidth=0)
            mean = np.nanmean(runs, 0)
            axis.plot(x, mean, color=colour, linestyle=line, marker=marker, markersize=5, label=name)
        if log:
            axis.set_yscale("log")
            plain_log(axis.yaxis)
        else:
            axis.set_ylim(bottom=0)
        if capacity_rate is not None:
            axis.axvline(capacity_rate, color=LIMIT, linestyle=(0, (4, 2)), linewidth=1.2, label="capacity")
        axis.set_xlabel("arrival rate (requests/s)")
        axis.set_ylabel(f"{metric} (s)")
        axis.set_title(title)
        axis.legend()
    return Path(path)


def stability_region(
    path: str | os.PathLike[str],
    capacity_tokens_grid: Floats,
    rates: Mapping[str, Floats],
    *,
    rate: float,
    capacity_tokens: float,
    title: str = "Stability region",
) -> Path:
    """Draw the largest stable rate of a mix against the memory, and a workload on a GPU as a point.

    Parameters
    ----------
    path : path
        The PNG to write.
    capacity_tokens_grid : array, shape (c,)
        KV capacities (tokens), rising.
    rates : dict of str to array, shape (c,)
        Largest rates (requests/s): fluid (constant composition), engine, bound (of any schedule).
    rate, capacity_tokens : float
        The point.
    title : str
        Title.

    Returns
    -------
    Path
        The file written.

    """
    memory = vector("capacity_tokens_grid", capacity_tokens_grid) / 1e3
    check(bool(np.all(np.diff(memory) > 0)), "capacity_tokens_grid", capacity_tokens_grid, "rising")
    lines = {name: vector(name, data) for name, data in some(rates, "rates").items()}
    looks = {
        "fluid": ("#0072B2", "-", "constant composition (fluid)"),
        "engine": ("#009E73", (0, (4, 2)), "saturated engine"),
        "bound": ("#D55E00", "-", "no schedule beyond"),
    }
    right = max(1.12 * max(float(line.max()) for line in lines.values()), 1.1 * rate)
    with new_figure(path, (6.4, 4.4)) as figure:
        axis = figure.subplots()
        for name, line in lines.items():
            check(len(line) == len(memory), name, line.shape, f"as long as the capacities, {memory.shape}")
            colour, dashes, label = looks[name]
            axis.plot(line, memory, color=colour, linestyle=dashes, label=label)
        if "fluid" in lines:
            axis.fill_betweenx(memory, 0, lines["fluid"], color=looks["fluid"][0], alpha=0.12, linewidth=0)
        if "bound" in lines:
            axis.fill_betweenx(memory, lines["bound"], right, color=looks["bound"][0], alpha=0.08, linewidth=0)
        axis.axhline(capacity_tokens / 1e3, color=LIMIT, linestyle=(0, (4, 2)), linewidth=1.2)
        axis.plot([rate], [capacity_tokens / 1e3], "o", color=INK, markersize=7, label="this workload, this GPU")
        axis.set_xlim(0, right)
        axis.set_ylim(0, float(memory[-1]))
        axis.set(xlabel="arrival rate (requests/s)", ylabel="KV capacity (thousand tokens)")
        axis.set_title(title)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=9)
    return Path(path)
