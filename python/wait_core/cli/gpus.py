"""`wait-core plan --gpu A B ...`: several kinds of GPU for one traffic and objective."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from wait_core._core import WaitCoreError
from wait_core.cli.workload import basis
from wait_core.hardware import Offer, offers
from wait_core.tables import table

if TYPE_CHECKING:
    import argparse

    from wait_core.hardware import Deployment


def compare(arguments: argparse.Namespace, deployments: list[Deployment]) -> int:
    """Compare the deployments, print a table, and draw a picture if one is asked for."""
    if not deployments:
        raise WaitCoreError("--price, --slo-ttft and --slo-tpot need --gpu and --model")
    for name in ("kv_blocks", "block_size", "max_num_seqs", "token_budget"):
        if getattr(arguments, name) is not None:
            raise WaitCoreError(f"--{name.replace('_', '-')}: GPUs are compared with their own")
    found = offers(
        deployments,
        prices=arguments.price,
        types=arguments.type,
        dataset_name=arguments.dataset_name,
        dataset_path=arguments.dataset_path,
        request_rate=arguments.request_rate if arguments.target_rate is None else arguments.target_rate,
        num_prompts=arguments.num_prompts,
        seed=arguments.seed,
        runs=3 if arguments.runs is None else arguments.runs,
        policy=arguments.policy,
        utilisation=arguments.utilisation,
        slo_ttft_ms=arguments.slo_ttft,
        slo_tpot_ms=arguments.slo_tpot,
        attainment=arguments.attainment,
    )
    if arguments.json:
        print(json.dumps({"offers": [offer.to_dict() for offer in found]}))
    else:
        print("\n".join(basis(each) for each in deployments), end="\n\n")
        print(text(found))
    if arguments.picture is not None:
        from wait_core.hardware.picture import offers_picture  # noqa: PLC0415 - matplotlib is needed here only

        title = f"{deployments[0].model.rpartition('/')[2]}: GPUs for {found[0].rate:.4g} requests/s"
        path = offers_picture(arguments.picture, found, title=title)
        if not arguments.json:
            print(f"picture: {path}")
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
            offer.limit,
            "none will do" if offer.gpus is None else offer.gpus,
            offer.rate_each,
            f"{offer.utilisation:.0%}",
            f"{offer.headroom:+.0%}",
            offer.ttft * 1e3,
            offer.tpot * 1e3,
        ]
        row += [f"{offer.goodput:.1%}"] if offer.goodput is not None else []
        money = (offer.dollars_per_hour, offer.dollars_per_million_output_tokens, offer.dollars_per_million_tokens)
        row += ["-" if value is None else f"{value:,.2f}" for value in money] if priced else []
        rows.append(row)
    return table(header, rows)
