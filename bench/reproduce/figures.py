"""Figures of the experiments, in the look of `wait_core.report`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core.report.plot_style import LIMIT, new_figure, plain_log, styles

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from reproduce.runs import Cell


def draw(axis: Any, cells: Mapping[str, Mapping[float, Cell]], figure: str) -> None:
    """One line a name: the mean over the seeds, and a band from the smallest to the largest."""
    looks = styles(cells)
    for name, by_rate in cells.items():
        # Colour and marker tell the lines apart; a dash between few points would not be seen whole.
        colour, _, marker = looks[name]
        at = sorted(by_rate)
        values = np.array([by_rate[x].values(figure) for x in at])
        axis.fill_between(at, values.min(1), values.max(1), color=colour, alpha=0.18, linewidth=0)
        axis.plot(at, values.mean(1), color=colour, marker=marker, markersize=4.5, label=name)


def rate_sweep(path: Path, found: Mapping[str, Mapping[str, Mapping[float, Cell]]], *, title: str) -> None:
    """Latency above and completion rate below, a column for each set of settings."""
    with new_figure(path, (4.9 * len(found), 6.4)) as figure:
        grid = figure.subplots(2, len(found), sharex=True, sharey="row", squeeze=False, height_ratios=(2.0, 1.0))
        for column, (settings, cells) in enumerate(found.items()):
            top, bottom = grid[0][column], grid[1][column]
            draw(top, cells, "latency_s")
            draw(bottom, cells, "completion")
            top.set_yscale("log")
            plain_log(top.yaxis)
            top.set_title(settings)
            top.legend(fontsize=9)
            bottom.axhline(1.0, color=LIMIT, linestyle=(0, (4, 2)), linewidth=1.2)
            bottom.set_xlabel("arrival rate (requests/s)")
        grid[0][0].set_ylabel("mean end-to-end latency (s)")
        grid[1][0].set_ylabel("completions / arrivals")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")


def lines(
    path: Path, panels: Mapping[str, Mapping[str, Mapping[float, Cell]]], x: str, title: str, log_x: bool = False
) -> None:
    """Latency against `x`, a panel for each name."""
    with new_figure(path, (4.9 * len(panels) if len(panels) < 4 else 3.4 * len(panels), 4.2)) as figure:
        row = figure.subplots(1, len(panels), squeeze=False, sharey=False)[0]
        for axis, (name, cells) in zip(row, panels.items(), strict=True):
            draw(axis, cells, "latency_s")
            axis.set_yscale("log")
            plain_log(axis.yaxis)
            if log_x:
                axis.set_xscale("log")
                plain_log(axis.xaxis)
            axis.set_title(name)
            axis.set_xlabel(x)
            axis.legend(fontsize=9)
        row[0].set_ylabel("mean end-to-end latency (s)")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")


def memory_curve(
    path: Path, rates: Any, curves: Mapping[str, Any], points: Mapping[int, float], capacity: float
) -> None:
    """M* against the rate, with the paper's table as points and C as the limit."""
    with new_figure(path, (6.4, 4.2)) as figure:
        axis = figure.subplots()
        for (name, curve), line in zip(curves.items(), ("-", (0, (4, 2)), (0, (1, 1))), strict=False):
            axis.plot(rates, np.asarray(curve) / 1e3, linestyle=line, label=name)
        axis.plot(list(points), [value / 1e3 for value in points.values()], "o", color="#333333", label="paper's table")
        axis.axhline(capacity / 1e3, color=LIMIT, linestyle=(0, (4, 2)), linewidth=1.2)
        place = (rates[0], capacity / 1e3)
        axis.annotate(f"C = {capacity:,.0f}", place, xytext=(0, 3), textcoords="offset points", fontsize=8)
        axis.set_yscale("log")
        plain_log(axis.yaxis)
        axis.set_xlabel("arrival rate (requests/s)")
        axis.set_ylabel("M* (thousand KV tokens)")
        axis.set_title("Fluid equilibrium memory of lmsys, paper's law")
        axis.legend()


def segment_memory(path: Path, panels: Mapping[str, Mapping[int, Mapping[str, float]]], title: str) -> None:
    """Draw the terms of Nested WAIT's memory and their sum against the number of segments, a panel for each name."""
    names = {"batches": "M^π", "entry": "entry queues, n_k", "buffer": "their excess, ln(·)/θ_k", "total": "sum"}
    looks = styles(names)
    with new_figure(path, (4.9 * len(panels), 4.2)) as figure:
        row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, (name, terms) in zip(row, panels.items(), strict=True):
            for key, label in names.items():
                colour, _, marker = looks[key]
                at = sorted(terms)
                axis.plot(at, [terms[x][key] / 1e3 for x in at], color=colour, marker=marker, markersize=4, label=label)
            axis.set_yscale("log")
            plain_log(axis.yaxis)
            axis.set_title(name)
            axis.set_xlabel("segments, L")
        row[0].set_ylabel("memory (thousand KV tokens)")
        row[0].legend(fontsize=9)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
