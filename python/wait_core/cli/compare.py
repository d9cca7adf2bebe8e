"""`wait-core compare`: several policies on the same requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wait_core.cli.workload import add_simulation, basis, comparison, deployment_of, requests_of, run

if TYPE_CHECKING:
    import argparse


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("compare", help="several policies on the same requests")
    parser.add_argument("--policies", nargs="+", default=["vllm", "wait"], metavar="POLICY", help="(%(default)s)")
    add_simulation(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line, one line a policy")
    parser.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    requests = requests_of(arguments)
    deployment = deployment_of(arguments)
    reports = [run(arguments, policy, requests, deployment) for policy in arguments.policies]
    if arguments.json:
        for report in reports:
            print(report.to_json(slo_ttft_ms=arguments.slo_ttft, slo_tpot_ms=arguments.slo_tpot))
        return 0
    if deployment is not None:
        print(basis(deployment))
    print(f"{requests.name}: {len(requests)} requests, {requests.rate:.4g}/s")
    print(comparison(reports))
    return 0
