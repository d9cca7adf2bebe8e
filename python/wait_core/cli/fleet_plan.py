"""`wait-core plan --replicas auto`: the smallest fleet that meets an objective, its split and its router."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from wait_core._core import WaitCoreError
from wait_core.cli import arguments as kinds
from wait_core.cli.deployment import basis
from wait_core.cli.fleet import add_common, transfer_of
from wait_core.cli.output import print_notes, tabulated
from wait_core.cli.page import report_file, reproduce, say
from wait_core.cli.picture import picture
from wait_core.cli.rows import comma_separated
from wait_core.fleet import ROUTERS
from wait_core.planning import plan_fleet
from wait_core.planning.fleet import ROUTERS as TRIED
from wait_core.report import fleet_picture
from wait_core.report.html import page_of_fleet_plan, rendered
from wait_core.simulation.fleet import MOST_REPLICAS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from wait_core.hardware import Deployment
    from wait_core.planning import FleetPlan, FleetTrial


def add_fleet(group: argparse._ArgumentGroup) -> None:
    """Add the options of a fleet that is planned."""
    group.add_argument(
        "--replicas", type=kinds.whole_or("auto", 1, MOST_REPLICAS), metavar="auto|N",
        help="how many replicas, in which split, behind which router meet the objective; of N: which split and router",
    )  # fmt: skip
    group.add_argument(
        "--routers", nargs="+", choices=ROUTERS, default=list(TRIED), metavar="ROUTER",
        help=f"some of {', '.join(ROUTERS)} ({' '.join(TRIED)})",
    )  # fmt: skip
    group.add_argument("--no-disaggregation", action="store_true", help="no pools of their own for prefill and decode")
    add_common(group)


def plan_replicas(
    arguments: argparse.Namespace, deployment: Deployment | None, asked: dict[str, Any], engine: dict[str, Any]
) -> int:
    """Search, print what was found, draw and write what is wanted. The status is 1 where N replicas do not do."""
    for name in ("target_rate", "price"):
        if getattr(arguments, name) is not None:
            raise WaitCoreError(f"--{name.replace('_', '-')}: with --replicas the rate is that of all of them")
    if arguments.slo_ttft is None and arguments.slo_tpot is None:
        raise WaitCoreError("--goodput is missing: which objective are the replicas for? (ttft:2000 tpot:100)")
    apart = not arguments.no_disaggregation
    law = engine.pop("iteration_time")
    bar = tqdm(unit="fleet", leave=False, disable=not sys.stderr.isatty())
    with picture(arguments.picture) as drawn, report_file(arguments) as page, bar:
        plan = plan_fleet(
            **{name: value for name, value in asked.items() if name != "utilisation"},
            request_rate=arguments.request_rate,
            attainment=arguments.attainment,
            replicas=None if arguments.replicas == "auto" else arguments.replicas,
            routers=arguments.routers,
            num_routers=arguments.num_routers,
            session_affinity=arguments.session_affinity,
            disaggregated=apart,
            transfer=transfer_of(arguments, deployment) if apart else None,
            iteration_time=law,
            gpus_each=1 if deployment is None else deployment.tensor_parallel_size,
            staleness_s=arguments.staleness,
            settings=engine,
            threads=arguments.threads,
            progress=lambda _: bar.update(),
        )
        bar.close()
        print_notes(plan.dropped, plan.notes)
        if arguments.json:
            print(plan.to_json())
        elif arguments.csv:
            print(comma_separated([each.to_dict() for each in plan.trials]), end="")
        else:
            if deployment is not None:
                print(basis(deployment), end="\n\n")
            print(text(plan))
        if drawn is not None:
            fleet_picture(drawn, plan)
        if page is not None:
            page.write(rendered(page_of_fleet_plan(plan, command=reproduce(arguments))))
    if arguments.picture is not None and not (arguments.json or arguments.csv):
        print(f"picture: {arguments.picture}")
    say(arguments)
    return int(plan.recommended is None)


def text(plan: FleetPlan) -> str:
    """Return the plan as paragraphs."""
    return "\n\n".join([_asked(plan), table(plan.found, plan.one_router), _advice(plan)])


def _asked(plan: FleetPlan) -> str:
    lines = [
        (
            f"{plan.workload} at {plan.request_rate:.4g} requests/s, {plan.attainment:.4g} of them within"
            f" {plan.objective} ms"
        )
    ]
    if (fluid := plan.fluid) is not None:
        pools = "" if fluid.prefill is None else f", or {fluid.prefill} that prefill and {fluid.decode} that decode"
        lines.append(f"fluid bound: at least {fluid.colocated} that do both{pools}")
    if plan.num_routers > 1:
        affinity = " with session affinity" if plan.session_affinity else ""
        lines.append(f"{plan.num_routers} routers side by side{affinity}; in the table also what one would reach")
    lines.append(
        f"simulated: {len(plan.trials)} fleets, {plan.runs} x {plan.num_prompts:,} requests ({plan.span_s:,.0f} s)"
        f" each, {plan.simulated:,} in all; the first fifth of each run is left out"
    )
    if plan.transfer is not None:
        rate = plan.transfer.bandwidth / 1e9
        lines.append(
            f"KV transfer: {plan.transfer.bytes_per_token:,.0f} bytes a token at {rate:g} GB/s for each link,"
            f" {plan.transfer.latency_s:g} s besides"
        )
    return "\n".join(lines)


def table(trials: Sequence[FleetTrial], one_router: Sequence[FleetTrial] = ()) -> str:
    """Return a table, one row a fleet; with `one_router` also what each reaches behind one router."""
    header = ["GPUs", "split", "router", "in time", "least to most", "fluid bound", "p99 TTFT ms", "mean TPOT ms",
              "p99 TPOT ms", ""]  # fmt: skip
    rows: list[list[Any]] = [
        [
            each.gpus, each.split, each.router, f"{each.goodput:.2%}",
            f"{each.least_goodput:.2%} to {each.most_goodput:.2%}",
            "-" if each.goodput_bound is None else f"{each.goodput_bound:.2%}",
            each.p99_ttft_s * 1e3, each.tpot_s * 1e3, each.p99_tpot_s * 1e3, "" if each.meets else "not met",
        ]
        for each in trials
    ]  # fmt: skip
    if one_router:
        header.insert(4, "one router")
        for row, one in zip(rows, one_router, strict=True):
            row.insert(4, f"{one.goodput:.2%}")
    return tabulated(header, rows)


def _advice(plan: FleetPlan) -> str:
    best = plan.recommended
    if best is None:
        said = "none of these meets the objective"
    else:
        pools = f" ({best.prefill} prefill, {best.decode} decode replicas)" if best.prefill else ""
        several = "" if best.gpus == 1 else "s"
        said = f"recommended: {best.gpus:,} GPU{several}, {best.split}{pools}, router {best.router}"
    return "\n".join([said, *(f"  ! {warning}" for warning in plan.warnings)])
