"""`wait-core sweep`: many simulations of one workload, resumable."""

from __future__ import annotations

import contextlib
import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from wait_core import __version__
from wait_core._core import WaitCoreError
from wait_core.cli import arguments as kinds
from wait_core.cli.deployment import deployment_of
from wait_core.cli.output import print_notes, tabulated
from wait_core.cli.page import add_report, report_file, reproduce, say
from wait_core.cli.rows import comma_separated, encoded, form_of, json_lines, plain
from wait_core.cli.workload import (
    POLICY,
    add_engine,
    add_requests,
    objective_of,
    settings_of,
    simulation_of,
    source_of,
)
from wait_core.files import FileError, Place, lines, parsed, replacing
from wait_core.report.html import page_of_sweep, rendered
from wait_core.settings import POLICIES
from wait_core.simulation import Cell, sweep

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

OWN = ("run", "argv", "output", "workers", "json", "csv", "report")
"""Options that do not affect the figures."""

_SHOWN = {
    "output_throughput": "output tok/s",
    "mean_ttft_ms": "mean TTFT ms",
    "p99_ttft_ms": "p99 TTFT ms",
    "mean_tpot_ms": "mean TPOT ms",
    "mean_e2el_ms": "mean E2E ms",
    "preemptions": "preemptions",
}


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    swept = parser.add_argument_group("what is swept: all combinations")
    swept.add_argument(
        "--policies", nargs="+", choices=POLICIES, default=["vllm", POLICY], metavar="POLICY",
        help=f"some of {', '.join(POLICIES)} (vllm {POLICY})",
    )  # fmt: skip
    swept.add_argument(
        "--request-rates", nargs="+", type=kinds.finite_rate, metavar="RATE", help="requests/s (a trace: its own times)"
    )
    swept.add_argument(
        "--kv-blocks", nargs="+", type=kinds.blocks, metavar="N", help="KV blocks (default: those of the law's GPU)"
    )
    swept.add_argument(
        "--seeds", type=kinds.whole(1, 10_000), default=1, metavar="N", help="seeds from --seed on (%(default)s)"
    )
    add_requests(parser.add_argument_group("requests"))
    add_engine(parser.add_argument_group("engine"))
    parser.add_argument(
        "--workers", metavar="N", type=kinds.whole(1, 1024), help="simulations at once (default: one a core)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help="write all rows: .jsonl, .json, .csv, or .parquet with pyarrow; interrupted, the same command resumes",
    )  # fmt: skip
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object a line, one line a simulation")
    form.add_argument("--csv", action="store_true", help="print CSV, one line a simulation")
    add_report(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    cells = _cells(arguments)
    settings, deployment = settings_of(arguments), deployment_of(arguments)
    if "kv_blocks" in settings and arguments.kv_blocks:
        raise WaitCoreError("--kv-blocks and the setting kv_blocks: one of them")
    simulation = simulation_of(arguments, deployment, settings)
    form = None if arguments.output is None else form_of(arguments.output)
    with contextlib.ExitStack() as stack:
        file = None if form is None else stack.enter_context(replacing(arguments.output, binary=True))
        page = stack.enter_context(report_file(arguments))
        kept = Kept(arguments.output, _asked(arguments))
        found = kept.read(cells)
        simulation |= source_of(arguments) | {"num_prompts": arguments.num_prompts, "burstiness": arguments.burstiness}
        left = [cell for cell in cells if cell not in found]
        try:
            with (
                tqdm(total=len(cells), initial=len(found), unit="run", leave=False, disable=None) as bar,
                kept.written() as keep,
                contextlib.closing(
                    sweep(left, workers=arguments.workers, **objective_of(arguments), **simulation)
                ) as running,
            ):
                for cell, row in running:
                    found[cell] = plain(row)
                    keep(cell, found[cell])
                    bar.update()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(kept.interrupted(len(found), len(cells))) from None
        rows = [found[cell] for cell in cells]
        if file is not None and form is not None:
            file.write(encoded(rows, form))
        if page is not None:
            page.write(rendered(page_of_sweep(rows, command=reproduce(arguments))))
    kept.remove()
    print_notes(rows[0]["dropped"], rows[0]["notes"])
    if arguments.json or arguments.csv:
        print(json_lines(rows) if arguments.json else comma_separated(rows), end="")
    else:
        print(summary(rows))
    say(arguments)
    return int(all(row["completed"] == 0 for row in rows))


def _cells(arguments: argparse.Namespace) -> list[Cell]:
    if arguments.dataset_path is None and arguments.dataset_name is None:
        raise WaitCoreError("no requests: give --dataset-name or --dataset-path")
    if arguments.dataset_path is None and arguments.request_rates is None:
        raise WaitCoreError("--request-rates is missing: a dataset needs rates in requests per second")
    asked = (
        arguments.request_rates or [None],
        arguments.kv_blocks or [None],
        arguments.policies,
        range(arguments.seed, arguments.seed + arguments.seeds),
    )
    cells = [
        Cell(policy=policy, request_rate=rate, kv_blocks=blocks, seed=seed)
        for rate, blocks, policy, seed in itertools.product(*asked)
    ]
    return list(dict.fromkeys(cells))


def _asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the figures depend on, as JSON: rows kept for other options cannot be reused."""
    swept = {"policies", "request_rates", "kv_blocks", "seed", "seeds"}  # each cell has its own
    asked = {name: value for name, value in vars(arguments).items() if name not in {*OWN, *swept}}
    for name in ("dataset_path", "config"):
        if asked[name] is not None:
            status = Path(asked[name]).stat()
            asked[name] = [str(asked[name]), status.st_size, status.st_mtime_ns]
    made: dict[str, Any] = json.loads(json.dumps({"wait_core": __version__} | asked, default=str))
    return made


class Kept:
    """The rows of a sweep that has not ended, in a file beside its output."""

    def __init__(self, output: Path | None, asked: dict[str, Any]) -> None:
        self.path = None if output is None else output.with_name(f"{output.name}.partial")
        self._asked = asked

    def read(self, cells: list[Cell]) -> dict[Cell, dict[str, Any]]:
        """Return the rows of `cells` that an earlier run has left.

        Raises
        ------
        WaitCoreError
            If the rows left belong to another sweep.

        """
        found: dict[Cell, dict[str, Any]] = {}
        if self.path is None or not self.path.exists():
            return found
        place = Place(self.path)
        for text in lines(place):
            try:
                entry = parsed(text, place)
            except FileError:
                if text.endswith("\n"):
                    raise
                break  # the last line, cut off
            if place.line == 1:
                if entry != {"sweep": self._asked}:
                    raise WaitCoreError(f"{self.path} holds the rows of another sweep: remove it or write elsewhere")
            else:
                cell = Cell(**entry["cell"])
                if cell in cells:
                    found[cell] = entry["row"]
        return found

    @contextlib.contextmanager
    def written(self) -> Iterator[Any]:
        """Yield a function that keeps a row."""
        if self.path is None:
            yield lambda _cell, _row: None
            return
        fresh = not self.path.exists()
        with self.path.open("a", encoding="utf-8") as file:
            if fresh:
                file.write(json.dumps({"sweep": self._asked}) + "\n")
            elif not self.path.read_bytes().endswith(b"\n"):
                file.write("\n")

            def keep(cell: Cell, row: dict[str, Any]) -> None:
                file.write(json.dumps({"cell": asdict(cell), "row": row}, allow_nan=False) + "\n")
                file.flush()

            yield keep

    def remove(self) -> None:
        """Delete the kept rows: the output has them all."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def interrupted(self, done: int, wanted: int) -> str:
        """Return the message for a sweep that did not finish."""
        if self.path is None:
            return "interrupted, nothing was written (with --output, the same command would resume)"
        return f"interrupted, {done} of {wanted} runs are kept in {self.path}: the same command resumes"


def summary(rows: list[dict[str, Any]]) -> str:
    """Return a table: a row for each rate, memory and policy, means over the seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["request_rate"], row["kv_blocks"], row["policy"]), []).append(row)
    shown = dict(_SHOWN) | ({"goodput": "goodput"} if "goodput" in rows[0] else {})
    lines_ = []
    for (rate, blocks, policy), each in groups.items():
        means = [np.mean([np.nan if row[key] is None else row[key] for row in each]) for key in shown]
        lines_.append(["own" if rate is None else float(rate), blocks, policy, len(each), *map(float, means)])
    return tabulated(["rate/s", "KV blocks", "policy", "seeds", *shown.values()], lines_)
