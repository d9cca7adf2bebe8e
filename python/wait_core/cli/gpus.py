"""`wait-core plan --gpu A B ...`: several kinds of GPU for one traffic and objective."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from wait_core._core import WaitCoreError
from wait_core.cli.deployment import basis
from wait_core.cli.output import tabulated
from wait_core.cli.picture import picture
from wait_core.cli.workload import settings_of
from wait_core.planning import offers
from wait_core.report import offers_picture

if TYPE_CHECKING:
    import argparse

    from wait_core.hardware import Deployment
    from wait_core.planning import Offer


def compare(arguments: argparse.Namespace, deployments: list[Deployment], asked: dict[str, Any]) -> int:
    """Compare the deployments for what is `asked`, print a table, and draw a picture if requested."""
    if not deployments:
        raise WaitCoreError("--price, --slo-ttft and --slo-tpot need --gpu and --model")
    for name in ("kv_blocks", "block_size", "max_num_seqs", "token_budget"):
        if getattr(arguments, name) is not None:
            raise WaitCoreError(f"--{name.replace('_', '-')}: GPUs are compared with their own")
    if settings_of(arguments):
        raise WaitCoreError("--set and --config: GPUs are compared with their own settings")
    rate = arguments.request_rate if arguments.target_rate is None else arguments.target_rate
    with picture(arguments.picture) as drawn:
        found = offers(deployments, prices=arguments.price, request_rate=rate, attainment=arguments.attainment, **asked)
        if arguments.json:
            print(json.dumps({"offers": [offer.to_dict() for offer in found]}))
        else:
            print("\n".join(basis(each) for each in deployments), end="\n\n")
            print(text(found))
        if drawn is not None:
            model = deployments[0].model.rpartition("/")[2]
            offers_picture(drawn, found, title=f"{model}: GPUs for {found[0].request_rate:.4g} requests/s")
    if arguments.picture is not None and not arguments.json:
        print(f"picture: {arguments.picture}")
    return 0


def text(found: list[Offer]) -> str:
    """Return a table, one row an offer."""
    objective = any(offer.goodput is not None for offer in found)
    priced = any(offer.dollars_per_hour is not None for offer in found)
    header = ["replica", "saturated/s", "GPUs", "rate/s each", "utilisation", "headroom", "TTFT ms", "TPOT ms"]
    header += ["meet the objective"] if objective else []
    header += ["$/h", "$/M output tokens", "$/M tokens"] if priced else []
    rows = []
    for offer in found:
        row = [
            f"{offer.deployment.tensor_parallel_size} x {offer.deployment.gpu}",
            offer.saturated_rate,
            "objective not met" if offer.gpus is None else offer.gpus,
            offer.rate_each,
            f"{offer.utilisation:.0%}",
            f"{offer.headroom:+.0%}",
            offer.ttft_s * 1e3,
            offer.tpot_s * 1e3,
        ]
        row += [f"{offer.goodput:.1%}"] if offer.goodput is not None else []
        money = (offer.dollars_per_hour, offer.dollars_per_million_output_tokens, offer.dollars_per_million_tokens)
        row += ["-" if value is None else f"{value:,.2f}" for value in money] if priced else []
        rows.append(row)
    return tabulated(header, rows)
