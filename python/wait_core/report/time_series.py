"""KV use over time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core.report.arrays import check, some, vector
from wait_core.report.plot_style import INK, LIMIT, new_figure, styles

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from wait_core.report.arrays import Floats

_MOST_POINTS = 4_000


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
    series = {name: steps(name, *pair) for name, pair in some(kv, "kv").items()}
    check(capacity_tokens > 0, "capacity_tokens", capacity_tokens, "above 0")
    with new_figure(path, (8.0, 1.0 + 1.35 * len(series))) as figure:
        axes = figure.subplots(len(series), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        draw_kv(axes, series, capacity_tokens)
        axes[-1].set_xlabel("time (s)")
        figure.supylabel("KV cache (thousand tokens)", fontsize="medium")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return Path(path)


def draw_kv(axes: Sequence[Any], series: Mapping[str, tuple[Any, Any]], capacity: float) -> None:
    """Draw KV use on `axes`, one a policy."""
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


def steps(name: str, time_s: Floats, tokens: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return times (s) and KV tokens as vectors, checked."""
    time, used = vector(f"{name}: time_s", time_s), vector(f"{name}: kv_tokens", tokens)
    check(len(time) == len(used), f"{name}: kv_tokens", used.shape, f"as long as time_s, {time.shape}")
    check(bool(np.all(np.diff(time) >= 0)), f"{name}: time_s", time_s, "a vector that never decreases")
    return time, used


def _envelope(time: Any, tokens: Any) -> tuple[Any, Any, Any]:
    """Return lowest and highest use in each of at most `_MOST_POINTS` stretches of time, and where each starts."""
    if len(time) <= _MOST_POINTS:
        return tokens, tokens, time
    starts = np.unique(np.searchsorted(time, np.linspace(time[0], time[-1], _MOST_POINTS)))
    return np.minimum.reduceat(tokens, starts), np.maximum.reduceat(tokens, starts), time[starts]
