"""Figures as PNG files: KV use over time, latency distributions, latency against rate.

Functions take plain arrays keyed by policy name and write one file. Matplotlib is imported when the first figure is
drawn, draws without a display, and leaves the caller's settings alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core.plot_style import INK, LIMIT, new_figure, plain_log, styles

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

_MOST_POINTS = 4_000

Floats = Any
"""Anything that numpy turns into a vector of numbers."""


def kv_over_time(
    path: str | os.PathLike[str],
    kv: Mapping[str, tuple[Floats, Floats]],
    *,
    capacity_tokens: float,
    title: str = "KV cache in use",
) -> Path:
    """Draw KV use over time, one panel per policy on the same axes.

    Parameters
    ----------
    path : path
        The PNG to write.
    kv : dict of str to (time_s, kv_tokens)
        By policy: times (s), shape (n,), never decreasing, and the KV tokens in use from each time to the next.
    capacity_tokens : float
        Capacity C in tokens, drawn as the limit.
    title : str
        Title of the figure.

    Returns
    -------
    Path
        The file written.

    """
    series = {name: _steps(name, *pair) for name, pair in _some(kv, "kv").items()}
    _check(capacity_tokens > 0, "capacity_tokens", capacity_tokens, "above 0")
    with new_figure(path, (8.0, 1.0 + 1.35 * len(series))) as figure:
        axes = figure.subplots(len(series), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        _draw_kv(axes, series, capacity_tokens)
        axes[-1].set_xlabel("time (s)")
        figure.supylabel("KV cache (thousand tokens)", fontsize="medium")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return Path(path)


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
    values = {name: _vector(name, data) for name, data in _some(latency_s, "latency_s").items()}
    with new_figure(path, (6.4, 4.0)) as figure:
        axis = figure.subplots()
        _draw_cdf(axis, values, metric, log)
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
    _some(metrics, "metrics")
    policies = list(dict.fromkeys(policy for row in metrics.values() for policy in row))
    height = 1.3 + 0.34 * len(policies)
    looks = styles(policies)
    with new_figure(path, (1.6 + 2.3 * len(metrics), height)) as figure:
        axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axis, (metric, row) in zip(axes, metrics.items(), strict=True):
            for place, policy in enumerate(policies):
                if policy in row:
                    _draw_bar(axis, place, looks[policy][0], _vector(f"{metric}, {policy}", np.atleast_1d(row[policy])))
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
    rates = _vector("rate", rate)
    _check(bool(np.all(np.diff(rates) > 0)), "rate", rate, "rising")
    with new_figure(path, (6.4, 4.2)) as figure:
        axis = figure.subplots()
        looks = styles(latency_s)
        for name, data in _some(latency_s, "latency_s").items():
            runs = np.atleast_2d(np.asarray(data, np.float64))
            right = runs.ndim == 2 and runs.shape[1] == len(rates) and not np.any(np.isinf(runs))
            _check(right, f"latency_s[{name!r}]", runs.shape, f"finite, of shape (seeds, {len(rates)})")
            there = ~np.all(np.isnan(runs), axis=0)
            _check(bool(there.any()), f"latency_s[{name!r}]", data, "known at any rate")
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


def overview(
    path: str | os.PathLike[str],
    kv: Mapping[str, tuple[Floats, Floats]],
    latency_s: Mapping[str, Floats],
    *,
    capacity_tokens: float,
    title: str,
) -> Path:
    """Draw KV use over time on the left and the latency distribution on the right, for the same policies.

    Parameters
    ----------
    path : path
        The PNG to write.
    kv, capacity_tokens : dict of str to (time_s, kv_tokens), float
        As for `kv_over_time`.
    latency_s : dict of str to array
        As for `latency_cdf`.
    title : str
        Title of the figure.

    Returns
    -------
    Path
        The file written.

    """
    series = {name: _steps(name, *pair) for name, pair in _some(kv, "kv").items()}
    values = {name: _vector(name, data) for name, data in _some(latency_s, "latency_s").items()}
    _check(capacity_tokens > 0, "capacity_tokens", capacity_tokens, "above 0")
    with new_figure(path, (11.0, max(4.2, 1.0 + 1.35 * len(series)))) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(1.45, 1.0))
        axes = left.subplots(len(series), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        _draw_kv(axes, series, capacity_tokens)
        axes[-1].set_xlabel("time (s)")
        left.supylabel("KV cache (thousand tokens)", fontsize="medium")
        _draw_cdf(right.subplots(), values, "end-to-end latency", log=False)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
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
        Largest rates (requests/s): fluid (constant composition), engine (FCFS), bound (of any schedule).
    rate, capacity_tokens : float
        The point.
    title : str
        Title.

    Returns
    -------
    Path
        The file written.

    """
    memory = _vector("capacity_tokens_grid", capacity_tokens_grid) / 1e3
    _check(bool(np.all(np.diff(memory) > 0)), "capacity_tokens_grid", capacity_tokens_grid, "rising")
    lines = {name: _vector(name, data) for name, data in _some(rates, "rates").items()}
    looks = {
        "fluid": ("#0072B2", "-", "constant composition (fluid)"),
        "engine": ("#009E73", (0, (4, 2)), "saturated engine, FCFS"),
        "bound": ("#D55E00", "-", "no schedule beyond"),
    }
    right = max(1.12 * max(float(line.max()) for line in lines.values()), 1.1 * rate)
    with new_figure(path, (6.4, 4.4)) as figure:
        axis = figure.subplots()
        for name, line in lines.items():
            _check(len(line) == len(memory), name, line.shape, f"as long as the capacities, {memory.shape}")
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


def _draw_kv(axes: Sequence[Any], series: Mapping[str, tuple[Any, Any]], capacity: float) -> None:
    looks = styles(series)
    for axis, (name, (time, tokens)) in zip(axes, series.items(), strict=True):
        colour = looks[name][0]
        mean = float(np.sum(tokens[:-1] * np.diff(time)) / (time[-1] - time[0])) if time[-1] > time[0] else tokens[0]
        low, high, at = _envelope(time, tokens)
        axis.fill_between(at, high / 1e3, step="post", color=colour, alpha=0.25, linewidth=0)
        axis.fill_between(at, low / 1e3, high / 1e3, step="post", color=colour, alpha=0.9, linewidth=0.8)
        axis.axhline(capacity / 1e3, color=LIMIT, linestyle=(0, (4, 2)), linewidth=1.2)
        axis.set_title(name, fontsize=10, color=INK)
        axis.set_title(f"mean {mean / capacity:.0%} of capacity", loc="right", fontsize=9, fontweight="normal")
        axis.set_ylim(0, max(capacity, *(float(t.max()) for _, t in series.values())) * 1.12 / 1e3)
    end = max(float(time[-1]) for time, _ in series.values())
    axes[0].set_xlim(min(0.0, *(float(time[0]) for time, _ in series.values())), end or 1.0)
    axes[0].annotate(
        f"capacity {capacity:,.0f}", (0.995, capacity / 1e3), xycoords=("axes fraction", "data"),
        xytext=(0, 1.5), textcoords="offset points", ha="right", va="bottom", fontsize=8, color="#6a6a6a",
    )  # fmt: skip


def _draw_cdf(axis: Any, values: Mapping[str, npt.NDArray[np.float64]], metric: str, log: bool) -> None:
    looks = styles(values)
    for name, data in values.items():
        colour, line, _ = looks[name]
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


def _envelope(time: Any, tokens: Any) -> tuple[Any, Any, Any]:
    """Return lowest and highest use in each of at most `_MOST_POINTS` stretches of time, and where each starts."""
    if len(time) <= _MOST_POINTS:
        return tokens, tokens, time
    starts = np.unique(np.searchsorted(time, np.linspace(time[0], time[-1], _MOST_POINTS)))
    return np.minimum.reduceat(tokens, starts), np.maximum.reduceat(tokens, starts), time[starts]


def _short(value: float) -> str:
    """Return `value` with three significant digits, never in powers of ten."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _some(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    _check(len(data) > 0, name, dict(data), "a dict of at least one entry")
    return data


def _check(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}: {value!r} is not {expected}")


def _vector(name: str, data: Floats) -> npt.NDArray[np.float64]:
    values = np.asarray(data, np.float64)
    right = values.ndim == 1 and len(values) > 0 and bool(np.all(np.isfinite(values)))
    _check(right, name, data, "a vector of finite numbers, at least one")
    return values


def _steps(name: str, time_s: Floats, tokens: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    time, used = _vector(f"{name}: time_s", time_s), _vector(f"{name}: kv_tokens", tokens)
    _check(len(time) == len(used), f"{name}: kv_tokens", used.shape, f"as long as time_s, {time.shape}")
    _check(bool(np.all(np.diff(time) >= 0)), f"{name}: time_s", time_s, "a vector that never decreases")
    return time, used
