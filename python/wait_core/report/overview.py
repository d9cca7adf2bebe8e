"""KV use and latency of the same policies in one figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wait_core.report.arrays import check, some, vector
from wait_core.report.distributions import draw_cdf
from wait_core.report.plot_style import new_figure
from wait_core.report.time_series import draw_kv, steps

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from wait_core.report.arrays import Floats


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
    series = {name: steps(name, *pair) for name, pair in some(kv, "kv").items()}
    values = {name: vector(name, data) for name, data in some(latency_s, "latency_s").items()}
    check(capacity_tokens > 0, "capacity_tokens", capacity_tokens, "above 0")
    with new_figure(path, (11.0, max(4.2, 1.0 + 1.35 * len(series)))) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(1.45, 1.0))
        axes = left.subplots(len(series), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        draw_kv(axes, series, capacity_tokens)
        axes[-1].set_xlabel("time (s)")
        left.supylabel("KV cache (thousand tokens)", fontsize="medium")
        draw_cdf(right.subplots(), values, "end-to-end latency", log=False)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return Path(path)
