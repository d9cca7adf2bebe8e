"""`wait-core plan --gpu A B ...`: several kinds of GPU for one traffic and objective."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from wait_core._core import WaitCoreError
from wait_core.cli.deployment import basis
from wait_core.cli.output import tabulated
from wait_core.cli.page import report_file, reproduce, say
from wait_core.cli.picture import picture
from wait_core.cli.workload import settings_of
from wait_core.planning import offers
from wait_core.report import offers_picture
from wait_core.report.html import page_of_offers, rendered
from wait_core.report.offers import offers_table

if TYPE_CHECKING:
    import argparse

    from wait_core.hardware import Deployment
    from wait_core.planning import Offer


def compare(arguments: argparse.Namespace, deployments: list[Deployment], asked: dict[str, Any]) -> int:
    """Compare the deployments for what is `asked`, print a table, and write a picture and a page if requested."""
    if not deployments:
        raise WaitCoreError("--price, --slo-ttft and --slo-tpot need --gpu and --model")
    for name in ("kv_blocks", "block_size", "max_num_seqs", "token_budget"):
        if getattr(arguments, name) is not None:
            raise WaitCoreError(f"--{name.replace('_', '-')}: GPUs are compared with their own")
    if settings_of(arguments):
        raise WaitCoreError("--set and --config: GPUs are compared with their own settings")
    rate = arguments.request_rate if arguments.target_rate is None else arguments.target_rate
    with picture(arguments.picture) as drawn, report_file(arguments) as page:
        found = offers(deployments, prices=arguments.price, request_rate=rate, attainment=arguments.attainment, **asked)
        if arguments.json:
            print(json.dumps({"offers": [offer.to_dict() for offer in found]}))
        else:
            print("\n".join(basis(each) for each in deployments), end="\n\n")
            print(text(found))
        if page is not None:
            notes = [line.strip(" !") for each in deployments for line in basis(each).splitlines()]
            page.write(rendered(page_of_offers(found, command=reproduce(arguments), notes=notes)))
        if drawn is not None:
            model = deployments[0].model.rpartition("/")[2]
            offers_picture(drawn, found, title=f"{model}: GPUs for {found[0].request_rate:.4g} requests/s")
    if arguments.picture is not None and not arguments.json:
        print(f"picture: {arguments.picture}")
    say(arguments)
    return 0


def text(found: list[Offer]) -> str:
    """Return a table, one row an offer."""
    return tabulated(*offers_table(found))
