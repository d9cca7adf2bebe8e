"""`wait-core calibrate`: an iteration-time law from iterations that an engine measured."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from wait_core._core import WaitCoreError
from wait_core.cli.output import tabulated
from wait_core.files import replacing
from wait_core.hardware import calibration
from wait_core.logs import step_log

if TYPE_CHECKING:
    import argparse


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("logs", nargs="+", type=Path, metavar="FILE", help="step logs (setting step_log_file)")
    parser.add_argument(
        "--form", choices=calibration.FORMS, default="measured", help="form of the law that --output gets (%(default)s)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the law, for --iteration-time")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of the table")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    with contextlib.nullcontext() if arguments.output is None else replacing(arguments.output) as file:
        steps = step_log.load(arguments.logs)
        chosen = calibration.fit(steps, arguments.form)
        fits = {arguments.form: chosen}
        for other in set(calibration.FORMS) - {arguments.form}:
            with contextlib.suppress(WaitCoreError):  # shown beside the chosen one if it fits at all
                fits[other] = calibration.fit(steps, other)
        if file is not None:
            file.write(json.dumps(chosen.iteration_time, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(chosen.summary()))
        return 0
    print(report(steps, fits))
    if arguments.output is None:
        print(json.dumps(chosen.iteration_time))
    else:
        print(f"{arguments.form} law written to {arguments.output}; give it as --iteration-time {arguments.output}")
    return 0


def report(steps: step_log.Steps, fits: dict[str, calibration.Fit]) -> str:
    """Return what was measured and how well each law fits."""
    prefill = steps.prefill_tokens > 0
    seen = (
        f"{len(steps):,} iterations, {steps.seconds.sum():,.0f} s: {int(prefill.sum()):,} with prefill; "
        f"tokens up to {steps.tokens.max():,.0f}, decodes up to {steps.decodes.max():,.0f}, "
        f"their KV up to {steps.decode_kv.max():,.0f} tokens. Beyond these, the law extrapolates."
    )
    rows = [
        [
            form,
            f"{fit.r_squared:.4f}",
            f"{fit.median_error:.1%}",
            f"{fit.p90_error:.1%}",
            f"{fit.total_error:+.1%}",
            f"{fit.outliers} ({fit.outlier_time:.1%} of the time)",
        ]
        for form, fit in fits.items()
    ]
    header = ["law", "R2", "median error", "90 % below", "sum of times", "left out as outliers"]
    return f"{seen}\n{tabulated(header, rows)}"
