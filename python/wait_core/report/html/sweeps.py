"""The page of a sweep: latency, throughput and goodput against the rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core.report.html.page import Figure, Page, Section, Table, reproduction
from wait_core.report.html.svg import Axis, Line, chart, number
from wait_core.report.tables import left_out

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MEASURES = {
    "mean_ttft_ms": ("mean TTFT, ms", True),
    "p99_ttft_ms": ("p99 TTFT, ms", True),
    "mean_e2el_ms": ("mean E2E, ms", True),
    "output_throughput": ("output tokens/s", False),
    "goodput": ("goodput, share of the requests", False),
    "preemptions": ("preemptions", False),
}

Group = tuple[float | None, int, str]


def page_of_sweep(rows: Sequence[Mapping[str, Any]], *, command: str) -> Page:
    """Return the page of a sweep's rows, as `wait_core.simulation.sweep` yields them; means over the seeds.

    Parameters
    ----------
    rows : sequence of dict
        At least one.
    command : str
        The command line that gives it again.

    """
    groups: dict[Group, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["request_rate"], row["kv_blocks"], row["policy"]), []).append(row)
    memories = sorted({blocks for _, blocks, _ in groups})
    policies = list(dict.fromkeys(policy for _, _, policy in groups))
    measures = [key for key in MEASURES if key in rows[0]]
    sections = []
    if len({rate for rate, _, _ in groups}) > 1:
        sections += [
            Section(
                heading=f"{blocks:,} KV blocks" if len(memories) > 1 else "Against the rate",
                figures=[_against_rate(groups, blocks, policies, key) for key in measures],
            )
            for blocks in memories
        ]
    table = [
        ["own" if rate is None else number(rate), f"{blocks:,}", policy, str(len(each)),
         *(number(_mean(each, key)) for key in measures)]
        for (rate, blocks, policy), each in groups.items()
    ]  # fmt: skip
    header = ["requests/s", "KV blocks", "policy", "seeds", *(MEASURES[key][0] for key in measures)]
    sections.append(Section(heading="All figures", tables=[Table(header=header, rows=table, text=(2,))]))
    sections.append(reproduction(command))
    notes = left_out(rows[0]["dropped"])
    notes += [f"Assumed: {note}." for note in rows[0]["notes"]]
    return Page(
        title=f"{rows[0]['workload']}: {', '.join(policies)}",
        summary=f"{len(rows):,} simulations: {len(policies)} policies, {len({r for r, _, _ in groups})} rates,"
        f" {len(memories)} sizes of memory, {max(map(len, groups.values()))} seeds.",
        notes=notes,
        sections=sections,
    )


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    values = [np.nan if row[key] is None else float(row[key]) for row in rows]
    return float(np.mean(values))


def _against_rate(
    groups: Mapping[Group, Sequence[Mapping[str, Any]]], blocks: int, policies: Sequence[str], key: str
) -> Figure:
    label, log = MEASURES[key]
    lines = []
    for policy in policies:
        of = {
            rate: each for (rate, memory, name), each in groups.items()
            if memory == blocks and name == policy and rate is not None
        }  # fmt: skip
        rates = sorted(of)
        lines.append(Line(name=policy, x=np.array(rates), y=np.array([_mean(of[rate], key) for rate in rates])))
    share = key == "goodput"
    return Figure(
        heading=label,
        svg=chart(
            lines,
            Axis(label="requests/s"),
            Axis(label=label, log=log, least=None if log else 0.0, most=1.0 if share else None),
            title=f"{label} against requests/s, {blocks:,} KV blocks",
        ),
    )
