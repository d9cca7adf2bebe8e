"""`wait-core simulate`: one policy on one workload."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from wait_core.cli.deployment import basis, deployment_of
from wait_core.cli.output import on_terminal
from wait_core.cli.page import add_report, report_file, reproduce, say
from wait_core.cli.results import status
from wait_core.cli.workload import POLICY, add_simulation, objective_of, requests_of, run, settings_of
from wait_core.files import replacing
from wait_core.fleet import ROUTERS
from wait_core.report.html import page_of_simulations, rendered
from wait_core.settings import POLICIES
from wait_core.simulation.fleet import ROUTER

if TYPE_CHECKING:
    import argparse

NOTES = {"dropped", "notes"}
"""Keys that are printed as notes on standard error."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--policy", choices=POLICIES, default=POLICY, metavar="POLICY", help=f"{', '.join(POLICIES)} (%(default)s)"
    )
    parser.add_argument(
        "--router", choices=ROUTERS, metavar="ROUTER", help=f"of a fleet: {', '.join(ROUTERS)} ({ROUTER})"
    )
    add_simulation(parser)
    parser.add_argument("--json", action="store_true", help="one line of JSON under the keys of `vllm bench serve`")
    parser.add_argument("--save-result", type=Path, metavar="FILE", help="write that JSON to a file")
    add_report(parser)
    parser.set_defaults(run=_simulate)


def _simulate(arguments: argparse.Namespace) -> int:
    settings, deployment = settings_of(arguments), deployment_of(arguments)
    saved = arguments.save_result
    with contextlib.nullcontext() if saved is None else replacing(saved) as file, report_file(arguments) as page:
        requests = requests_of(arguments, arguments.request_rate)
        report = run(arguments, arguments.policy, requests, deployment, settings, router=arguments.router)
        line = report.to_json(**objective_of(arguments))
        if file is not None:
            file.write(line + "\n")
        if page is not None:
            made = page_of_simulations([report], command=reproduce(arguments), objective=objective_of(arguments))
            page.write(rendered(made))
    if arguments.json:
        print(line)
    else:
        if deployment is not None:
            print(basis(deployment))
        for key, value in json.loads(line).items():
            if key not in NOTES:
                print("\n".join(on_terminal(f"{key:26} {_shown(key, value)}", 27)))
    say(arguments)
    return status([report])


def _shown(key: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {count:,}" for name, count in value.items() if count) or "none"
    if isinstance(value, int) and key != "seed":
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
