"""The results of simulations, as tables."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from wait_core.cli.output import tabulated

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wait_core.simulation import Report

_COLUMNS = {
    "policy": "policy",
    "completed": "completed",
    "output_throughput": "output tok/s",
    "mean_ttft_ms": "mean TTFT ms",
    "p99_ttft_ms": "p99 TTFT ms",
    "mean_tpot_ms": "mean TPOT ms",
    "mean_e2el_ms": "mean E2E ms",
    "preemptions": "preemptions",
    "recomputed_tokens": "recomputed",
    "kv_peak": "peak KV",
}


def comparison(reports: Sequence[Report], objective: Mapping[str, float | None] | None = None) -> str:
    """Return a table, one row a report; with an objective, the share of the requests offered that met it."""
    within = {} if objective is None else dict(objective)
    columns = dict(_COLUMNS)
    if any(limit is not None for limit in within.values()):
        columns["met"] = "goodput"
    rows = [report.summary(**within) for report in reports]
    if any(report.router is not None for report in reports):
        columns = {"policy": "policy", "router": "router"} | columns
    for row in rows:
        row["kv_peak"] = f"{row['peak_kv_blocks'] / row['kv_blocks']:.1%}"
        row["met"] = f"{row['goodput']:.1%}" if "goodput" in row else ""
    return tabulated(list(columns.values()), [[row[key] for key in columns] for row in rows])


def status(reports: Sequence[Report]) -> int:
    """Return the exit status: 1, and a line of error, where a policy could serve no request at all."""
    for report in reports:
        summary = report.run.summary()
        if summary["completed"] == 0:
            kv = report.settings["kv_blocks"] * report.settings["block_size"]
            print(
                f"wait-core: {report.policy}: none of the {summary['failed']:,} requests could run: each needs more"
                f" than the {kv:,} KV tokens of the cache, or than max_model_len allows",
                file=sys.stderr,
            )
            return 1
    return 0
