"""Figures of the documentation that show a table: docs/figures/NAME.png, drawn from docs/data alone.

python bench/figures.py           all of them
python bench/figures.py trace     one
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from contract import ROOT
from matplotlib.ticker import LogLocator
from pages import read

from wait_core.report.plot_style import LIMIT, new_figure, plain_log, styles

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pages import Row

OURS, OTHER, FAR = "#0072b2", "#8a8a8a", "#d55e00"


def column(rows: Sequence[Row], name: str) -> list[float]:
    """Return the numbers of a column."""
    return [float(row[name]) for row in rows]


def diagonal(axis: Any, low: float, high: float) -> None:
    """Draw where both axes agree, and a quarter to either side."""
    axis.plot([low, high], [low, high], color=LIMIT, linewidth=1.0, zorder=0)
    axis.fill_between([low, high], [0.75 * low, 0.75 * high], [1.25 * low, 1.25 * high], color="#eeeeee", zorder=-1)
    axis.set_xscale("log")
    axis.set_yscale("log")
    for each in (axis.xaxis, axis.yaxis):
        plain_log(each)
        if high / low > 1e3:
            each.set_major_locator(LogLocator())  # its labels 2 and 5 would overlap


def trace(figure: Any) -> None:
    """Draw the recorded trace at rising rates."""
    rows = read("trace")
    looks = styles(dict.fromkeys(row["policy"] for row in rows))
    left, right = figure.subplots(1, 2)
    for policy, (colour, line, marker) in looks.items():
        own = [row for row in rows if row["policy"] == policy]
        for axis, name in ((left, "mean E2E s"), (right, "goodput")):
            axis.plot(
                column(own, "requests/s"), column(own, name), color=colour, linestyle=line, marker=marker, label=policy
            )
    left.set_yscale("log")
    plain_log(left.yaxis)
    left.set_ylabel("mean end-to-end latency, s")
    right.set_ylabel("goodput")
    for axis in (left, right):
        axis.set_xlabel("requests/s")
    left.legend(fontsize=9)


def deadlines(figure: Any) -> None:
    """Draw the goodput of each rule beside what no scheduler exceeds."""
    rows = read("deadlines")
    axis = figure.subplots()
    arms = {"stock": OTHER, "adaptive": "#56b4e9", "park": OURS, "refuse": FAR}
    for i, (arm, colour) in enumerate(arms.items()):
        at = [x + 0.2 * (i - 1.5) for x in range(len(rows))]
        axis.bar(at, column(rows, f"goodput, {arm}"), 0.18, color=colour, label=arm)
    for x, row in enumerate(rows):
        label = "no scheduler exceeds" if x == 0 else None
        axis.plot([x - 0.42, x + 0.42], [float(row["bound"])] * 2, color="#000000", linewidth=1.6, label=label)
    axis.set_xticks(range(len(rows)), [f"{row['workload']}\nload {row['load']}" for row in rows], fontsize=8)
    axis.set_ylabel("goodput")
    axis.set_ylim(0.0, 1.05)
    axis.legend(fontsize=8, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


def virtual(figure: Any) -> None:
    """Draw what `adaptive` gains in vLLM's own scheduler, cell by cell."""
    rows = read("vllm-virtual")[::-1]
    ratios = {
        "ours / stock": "output tok/s / stock's",
        "mean E2E / best": "mean E2E / that of the best of stock and watermarks",
    }
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (name, label) in zip(axes, ratios.items(), strict=True):
        values = column(rows, name)
        axis.axvline(1.0, color=LIMIT, linewidth=1.0)
        axis.hlines(range(len(rows)), [1.0] * len(rows), values, color=OTHER, linewidth=1.2)
        axis.plot(values, range(len(rows)), color=OURS, marker="o", markersize=5, linestyle="")
        axis.set_xlabel(label, fontsize=9)
    axes[0].set_yticks(range(len(rows)), [row["cell"] for row in rows], fontsize=8)


def plan(figure: Any) -> None:
    """Draw planned against simulated times, a point a cell."""
    rows = read("plan-clairvoyant")
    recorded = ("azure_conv", "azure_code")
    for axis, name in zip(figure.subplots(1, 2), ("TTFT s", "latency s"), strict=True):
        for traces, colour, marker, label in (
            (False, OURS, "o", "other seeds"),
            (True, FAR, "^", "other half of a trace"),
        ):
            own = [row for row in rows if (row["workload"] in recorded) == traces]
            planned, simulated = column(own, f"{name}: planned"), column(own, f"{name}: simulated")
            axis.plot(simulated, planned, color=colour, marker=marker, markersize=4.5, linestyle="", label=label)
        both = column(rows, f"{name}: planned") + column(rows, f"{name}: simulated")
        diagonal(axis, min(both) / 1.2, max(both) * 1.2)
        axis.set_xlabel(f"simulated {name.removesuffix(' s')}, s")
        axis.set_ylabel(f"planned {name.removesuffix(' s')}, s")
        axis.legend(fontsize=8)


def hardware(figure: Any) -> None:
    """Draw simulated against published throughput, a point a published figure."""
    rows = read("hardware-throughput")
    axis = figure.subplots()
    groups = {"TensorRT-LLM": (OURS, "o"), "vLLM": (FAR, "^")}
    for name, (colour, marker) in groups.items():
        own = [row for row in rows if row["ran"].startswith(name)]
        label = f"{name}{', 0.5 to 0.11' if name == 'vLLM' else ''}"
        axis.plot(
            column(own, "published"), column(own, "simulated"), color=colour, marker=marker, linestyle="", label=label
        )
    both = column(rows, "published") + column(rows, "simulated")
    diagonal(axis, min(both) / 1.3, max(both) * 1.3)
    axis.set_xlabel("published output tok/s")
    axis.set_ylabel("simulated output tok/s")
    axis.legend(fontsize=9)


def order(figure: Any) -> None:
    """Draw the mean and the p99 latency in overload, shortest work first, as the starvation bound is loosened."""
    rows = {row["variant"]: row for row in read("adaptive-variants")}
    bounds = {"30 s": "30 s", "300 s": "300 s", "1e+06 s": "none"}
    kinds = {"srpt": ("lengths hidden", OTHER, "o", "-"), "srpt known": ("lengths known", OURS, "^", "--")}
    columns = {"mean E2E, load >= 1": "mean E2E", "p99 E2E, load >= 1": "p99 E2E"}
    for axis, (column_name, label) in zip(figure.subplots(1, 2), columns.items(), strict=True):
        for kind, (name, colour, marker, line) in kinds.items():
            values = [float(rows[f"{kind}, ageing {bound}"][column_name]) for bound in bounds]
            axis.plot(range(len(bounds)), values, color=colour, marker=marker, linestyle=line, label=name)
        axis.axhline(1.0, color=LIMIT, linewidth=1.0)
        axis.set_xticks(range(len(bounds)), bounds.values())
        axis.set_xlabel("bound on being overtaken (ageing)")
        axis.set_ylabel(f"{label} / first come, first served")
        axis.set_ylim(0.0)
        axis.legend(fontsize=9)


FIGURES: dict[str, tuple[Callable[[Any], None], tuple[float, float]]] = {
    "trace": (trace, (8.6, 3.4)),
    "deadlines": (deadlines, (8.6, 3.6)),
    "vllm-virtual": (virtual, (8.6, 4.4)),
    "order": (order, (8.6, 3.4)),
    "plan": (plan, (8.6, 3.8)),
    "hardware-throughput": (hardware, (5.2, 4.2)),
}
"""By name: what draws it, and its size in inches."""


def main() -> None:
    """Draw those that are named, or all."""
    names = sys.argv[1:] or list(FIGURES)
    if unknown := [name for name in names if name not in FIGURES]:
        sys.exit(f"{unknown[0]}: no such figure; there are {', '.join(FIGURES)}")
    for name in names:
        draw, size = FIGURES[name]
        with new_figure(ROOT / "docs" / "figures" / f"{name}.png", size) as figure:
            draw(figure)


if __name__ == "__main__":
    main()
