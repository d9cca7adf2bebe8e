"""`wait-core compare`: several policies, or routers of a fleet, on the same requests."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from wait_core.cli.deployment import basis, deployment_of
from wait_core.cli.page import add_report, report_file, reproduce, say
from wait_core.cli.results import comparison, status
from wait_core.cli.workload import POLICY, add_simulation, objective_of, requests_of, run, settings_of
from wait_core.files import replacing
from wait_core.fleet import ROUTERS
from wait_core.report.html import page_of_simulations, rendered
from wait_core.settings import POLICIES
from wait_core.simulation.fleet import ROUTER

if TYPE_CHECKING:
    import argparse


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--policies", nargs="+", choices=POLICIES, metavar="POLICY",
        help=f"some of {', '.join(POLICIES)} (vllm {POLICY}; with --routers {POLICY})",
    )  # fmt: skip
    parser.add_argument(
        "--routers", nargs="+", choices=ROUTERS, metavar="ROUTER",
        help=f"of a fleet, some of {', '.join(ROUTERS)} ({ROUTER})",
    )  # fmt: skip
    add_simulation(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line, one line a policy")
    parser.add_argument("--save-result", type=Path, metavar="FILE", help="write these lines to a file")
    add_report(parser)
    parser.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    settings, deployment, objective = settings_of(arguments), deployment_of(arguments), objective_of(arguments)
    saved = arguments.save_result
    with contextlib.nullcontext() if saved is None else replacing(saved) as file, report_file(arguments) as page:
        requests = requests_of(arguments, arguments.request_rate)
        routers = arguments.routers or [None]
        policies = arguments.policies or ([POLICY] if arguments.routers else ["vllm", POLICY])
        reports = [
            run(arguments, policy, requests, deployment, settings, router=router)
            for policy in policies
            for router in routers
        ]
        lines = "\n".join(report.to_json(**objective) for report in reports)
        if file is not None:
            file.write(lines + "\n")
        if page is not None:
            page.write(rendered(page_of_simulations(reports, command=reproduce(arguments), objective=objective)))
    if arguments.json:
        print(lines)
    else:
        if deployment is not None:
            print(basis(deployment))
        print(f"{requests.name}: {len(requests):,} requests, {requests.rate:.4g}/s")
        print(comparison(reports, objective))
    say(arguments)
    return status(reports)
