"""`wait-core simulate`: one policy on one workload."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wait_core.cli.workload import add_simulation, basis, deployment_of, requests_of, run
from wait_core.files import replacing

if TYPE_CHECKING:
    import argparse


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("simulate", help="one policy on one workload")
    parser.add_argument("--policy", default="vllm", help="see docs/policies.md (%(default)s)")
    add_simulation(parser)
    parser.add_argument("--json", action="store_true", help="one line of JSON under the keys of `vllm bench serve`")
    parser.add_argument("--save-result", type=Path, metavar="FILE", help="write that JSON to a file")
    parser.set_defaults(run=_simulate)


def _simulate(arguments: argparse.Namespace) -> int:
    deployment = deployment_of(arguments)
    saved = arguments.save_result
    with contextlib.nullcontext() if saved is None else replacing(saved) as file:
        report = run(arguments, arguments.policy, requests_of(arguments), deployment)
        line = report.to_json(slo_ttft_ms=arguments.slo_ttft, slo_tpot_ms=arguments.slo_tpot)
        if file is not None:
            file.write(line + "\n")
    if arguments.json:
        print(line)
        return 0
    if deployment is not None:
        print(basis(deployment))
    for key, value in json.loads(line).items():
        print(f"{key:26} {value:.6g}" if isinstance(value, float) else f"{key:26} {value}")
    return 0
