"""`wait-core trace`: what a trace contains, and how it was read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core._core import WaitCoreError
from wait_core.cli import arguments as kinds
from wait_core.cli.output import tabulated
from wait_core.cli.rows import comma_separated
from wait_core.cli.workload import BENCH_NAMES
from wait_core.report.tables import left_out
from wait_core.workload import load
from wait_core.workload.traces import prefix_sharing

if TYPE_CHECKING:
    import argparse

    from wait_core.workload import Trace

FIGURES = ("mean", "p50", "p90", "p99", "max")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a trace, in any of the formats of --dataset-name")
    parser.add_argument(
        "--dataset-name", choices=BENCH_NAMES, metavar="FORMAT",
        help=f"how to read it (detected where it is absent): {', '.join(BENCH_NAMES)}",
    )  # fmt: skip
    parser.add_argument("--num-prompts", type=kinds.requests, metavar="N", help="requests to read (all)")
    parser.add_argument(
        "--window", type=kinds.positive, metavar="S", help="seconds over which rates are taken (a fiftieth of the time)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one line of JSON")
    form.add_argument("--csv", action="store_true", help="the requests: arrival in s, prompt and output in tokens")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    name = "auto" if arguments.dataset_name is None else BENCH_NAMES[arguments.dataset_name]
    trace = load(arguments.file, name, limit=arguments.num_prompts)
    if arguments.csv:
        print(comma_separated(_requests(trace)), end="")
        return 0
    found = figures(trace, arguments.window)
    print(json.dumps(found, allow_nan=False) if arguments.json else text(found))
    return 0


def _requests(trace: Trace) -> list[dict[str, Any]]:
    arrivals = [None] * len(trace) if trace.arrival_ns is None else (trace.arrival_ns / 1e9).tolist()
    columns = zip(arrivals, trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), strict=True)
    return [{"arrival": at, "prompt": prompt, "output": output} for at, prompt, output in columns]


def figures(trace: Trace, window_s: float | None) -> dict[str, Any]:
    """Return `Trace.summary`, with rates over windows (s, requests/s) and prefix sharing.

    Raises
    ------
    WaitCoreError
        If a window is longer than the trace.

    """
    found = trace.summary()
    span = trace.duration_s
    found["rates"] = None
    if span:
        if window_s is not None and window_s > span:
            raise WaitCoreError(f"--window {window_s:g}: the trace spans {span:g} s")
        window = span / 50 if window_s is None else window_s
        starts, rates = trace.rates(window)
        found["rates"] = {
            "window_s": window,
            "start_s": starts.tolist(),
            "rate": rates.tolist(),
            "peak": float(rates.max()),
            "least": float(rates.min()),
        }
    sharing = prefix_sharing(trace)
    found["sharing"] = None if sharing is None else asdict(sharing)
    return found


def text(found: dict[str, Any]) -> str:
    """Return the figures as paragraphs."""
    lines = [
        f"{found['source']}: {found['requests']:,} requests, read as {found['format']}, lengths in {found['unit']}"
    ]
    lines += [f"  {said}" for said in left_out(found["dropped"])]
    lines += [f"  assumed: {note}" for note in found["notes"]]
    rows = [[name, *(float(found[f"{name}_{figure}"]) for figure in FIGURES)] for name in ("prompt", "output")]
    lines += ["", tabulated([f"length, {found['unit']}", *FIGURES], rows), ""]
    rates = found["rates"]
    if rates is None:
        lines.append("no arrival times: simulate with --request-rate")
    else:
        lines.append(
            f"{found['rate']:,.4g} requests/s over {found['duration_s']:,.4g} s, {rates['least']:,.4g} to"
            f" {rates['peak']:,.4g} in windows of {rates['window_s']:.3g} s; coefficient of variation of the gaps"
            f" {found['arrival_cv']:.3g} (Poisson: 1)"
        )
        lines.append(_over_time(np.array(rates["start_s"]), np.array(rates["rate"])))
    sharing = found["sharing"]
    if sharing is None:
        lines.append("prefix sharing: not recorded in the file")
    else:
        lines.append(
            f"prefix sharing: {sharing['cached_share']:.1%} of the prompt tokens begin as an earlier prompt did"
            f" ({sharing['requests']:,} requests; {sharing['distinct']:,} different blocks of"
            f" {sharing['block_tokens']} tokens among {sharing['blocks']:,})"
        )
    if "classes" in found:
        most = sorted(found["classes"].items(), key=lambda each: -each[1])[:10]
        lines += ["", tabulated(["class", "requests"], [[name, number] for name, number in most])]
    return "\n".join(lines)


def _over_time(starts: Any, rates: Any) -> str:
    from wait_core.report import bars  # noqa: PLC0415

    return bars({"rate": (starts, rates)}, float(rates.max()) or 1.0)
