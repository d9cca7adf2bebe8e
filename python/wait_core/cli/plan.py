"""`wait-core plan`: stability, thresholds, buffer, expected delays and number of GPUs for one workload."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wait_core._core import WaitCoreError
from wait_core.cli import arguments as kinds
from wait_core.cli import gpus
from wait_core.cli.deployment import add_law, basis, deployments_of
from wait_core.cli.fleet_plan import add_fleet, plan_replicas
from wait_core.cli.output import print_notes, tabulated
from wait_core.cli.page import add_report, report_file, reproduce, say
from wait_core.cli.picture import picture
from wait_core.cli.workload import POLICY, add_settings, add_source, settings_of, source_of
from wait_core.hardware import A100
from wait_core.planning import CapacityBound, plan
from wait_core.report import stability_region
from wait_core.report.html import page_of_plan, rendered
from wait_core.settings import POLICIES

if TYPE_CHECKING:
    import argparse

    from wait_core.hardware import Deployment
    from wait_core.planning import Expected, PlanReport

ENDLESS_S = 1e9
"""A time in s that is shown as endless if exceeded."""
OF_ENGINE = ("iteration_time", "kv_blocks", "kv_groups", "block_size", "max_num_seqs", "token_budget")
"""What of the engine `plan` has arguments for; the formulas know it too."""
POINTS = 32
"""Capacities of the stability region that are looked at for a picture."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    wanted = parser.add_argument_group("requests")
    add_source(wanted)
    wanted.add_argument(
        "--type", action="append", type=kinds.request_type, metavar="PROMPT:OUTPUT:RATE",
        help="a request type; repeat for more",
    )  # fmt: skip
    wanted.add_argument(
        "--request-rate", metavar="RATE", type=kinds.finite_rate, help="requests/s; scales a trace's times"
    )
    wanted.add_argument(
        "--num-prompts",
        metavar="N",
        type=kinds.requests,
        help="requests that are played (dataset, types: 4000; trace: all)",
    )
    wanted.add_argument(
        "--runs",
        metavar="N",
        type=kinds.whole(1, 10_000),
        help="seeds of a dataset that are played (20; 3 for several GPUs)",
    )
    wanted.add_argument(
        "--num-types", metavar="N", type=kinds.whole(1, 4096), default=8, help="most types and segments (%(default)s)"
    )
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--policy", choices=POLICIES, default=POLICY, metavar="POLICY",
        help=f"what admits: {', '.join(POLICIES)} (%(default)s)",
    )  # fmt: skip
    add_law(engine, several=True)
    engine.add_argument(
        "--kv-blocks", metavar="N", type=kinds.blocks, help="KV blocks (default: what goes with the law)"
    )
    engine.add_argument("--block-size", metavar="N", type=kinds.whole(1, 65_536), help="tokens per block (16)")
    engine.add_argument(
        "--max-num-seqs", metavar="N", type=kinds.blocks, help="most residents (256, or the default on --gpu)"
    )
    engine.add_argument(
        "--token-budget",
        metavar="N",
        type=kinds.blocks,
        help="most tokens per iteration (2048, or the default on --gpu)",
    )
    add_settings(engine)
    asked = parser.add_argument_group("questions")
    asked.add_argument(
        "--failure-probability",
        metavar="P",
        type=kinds.probability,
        default=0.05,
        help="delta of the buffer (%(default)s)",
    )
    asked.add_argument(
        "--horizon", type=kinds.seconds, default=3600.0, metavar="S", help="over so many seconds (%(default)s)"
    )
    asked.add_argument(
        "--margin",
        metavar="ETA",
        type=kinds.non_negative,
        default=0.05,
        help="eta of Nested WAIT's thresholds (%(default)s)",
    )
    asked.add_argument(
        "--target-rate", metavar="RATE", type=kinds.finite_rate, help="requests/s for all GPUs together: how many?"
    )
    asked.add_argument(
        "--utilisation",
        metavar="SHARE",
        type=kinds.probability,
        default=0.8,
        help="share of the saturated rate (%(default)s)",
    )
    kinds.add_objective(asked, "goodput possible, GPUs needed")
    cost = parser.add_argument_group("several GPUs, or a price", "The rate is then that of all GPUs together.")
    cost.add_argument(
        "--price", nargs="+", type=kinds.non_negative, metavar="DOLLARS", help="per GPU and hour, one for each --gpu"
    )
    cost.add_argument(
        "--attainment", metavar="SHARE", type=kinds.share, default=0.95, help="share that must meet it (%(default)s)"
    )
    add_fleet(parser.add_argument_group("fleet", "A search by simulation; the rate is that of all replicas together."))
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one line of JSON")
    form.add_argument("--csv", action="store_true", help="with --replicas: CSV, one line a fleet that was simulated")
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="write a picture of stability, or of the GPUs, or of the fleets, PNG",
    )
    add_report(parser)
    parser.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    traffic = [arguments.dataset_path or arguments.dataset_name, arguments.type]
    if sum(each is not None for each in traffic) != 1:
        raise WaitCoreError("give one of --dataset-name, --dataset-path and --type: the requests to plan for")
    if arguments.dataset_path is None and arguments.dataset_name is not None and arguments.request_rate is None:
        raise WaitCoreError("--request-rate is missing: a dataset needs a rate in requests per second")
    deployments = deployments_of(arguments)
    # One GPU and several are asked the same; how many seeds are played is, unless it is said, each one's own default.
    asked: dict[str, Any] = {
        "types": arguments.type,
        **source_of(arguments),
        "num_prompts": arguments.num_prompts,
        "seed": arguments.seed,
        "policy": arguments.policy,
        "utilisation": arguments.utilisation,
        "slo_ttft_ms": arguments.slo_ttft,
        "slo_tpot_ms": arguments.slo_tpot,
    }
    if arguments.runs is not None:
        asked["runs"] = arguments.runs
    if arguments.replicas is not None:
        if len(deployments) > 1:
            raise WaitCoreError("--replicas: of one kind of GPU; give one --gpu")
        deployment = deployments[0] if deployments else None
        return plan_replicas(arguments, deployment, asked, engine_of(arguments, deployment))
    if arguments.csv:
        raise WaitCoreError("--csv needs --replicas; without it, use --json")
    objective = arguments.slo_ttft is not None or arguments.slo_tpot is not None
    if len(deployments) > 1 or arguments.price or (deployments and objective):
        return gpus.compare(arguments, deployments, asked)
    deployment = deployments[0] if deployments else None
    engine = engine_of(arguments, deployment)
    with picture(arguments.picture) as drawn, report_file(arguments) as page:
        report = plan(
            request_rate=arguments.request_rate,
            num_types=arguments.num_types,
            margin=arguments.margin,
            failure_probability=arguments.failure_probability,
            horizon_s=arguments.horizon,
            target_rate=arguments.target_rate,
            region=0 if arguments.picture is None and page is None else POINTS,
            settings={name: engine.pop(name) for name in list(engine) if name not in OF_ENGINE},
            **asked,
            **engine,
        )
        print_notes(report.dropped, report.notes)
        if deployment is not None and not arguments.json:
            print(basis(deployment), end="\n\n")
        print(report.to_json() if arguments.json else text(report))
        if drawn is not None:
            _draw(drawn, report)
        if page is not None:
            page.write(rendered(page_of_plan(report, command=reproduce(arguments))))
    if arguments.picture is not None and not arguments.json:
        print(f"picture: {arguments.picture}")
    say(arguments)
    return 0


def engine_of(arguments: argparse.Namespace, deployment: Deployment | None) -> dict[str, Any]:
    """Return one engine as the options describe it: its law and settings."""
    engine = {"iteration_time": arguments.iteration_time or A100} if deployment is None else deployment.settings()
    engine |= settings_of(arguments)
    for name in ("kv_blocks", "block_size", "max_num_seqs", "token_budget"):
        if getattr(arguments, name) is not None:
            engine[name] = getattr(arguments, name)
    return engine


def _draw(path: str, report: PlanReport) -> None:
    assert report.region is not None  # noqa: S101  it was asked for
    rates = asdict(report.region)
    stability_region(
        path,
        rates.pop("capacity"),
        rates,
        rate=report.request_rate,
        capacity_tokens=report.engine.capacity,
        title=f"Stability region of {report.workload}",
    )


def text(report: PlanReport) -> str:
    """Return the report as paragraphs."""
    return "\n\n".join(
        part
        for part in (_verdict(report), _rates(report), _delays(report), _wait(report), _nested(report), _gpus(report))
        if part
    )


def _verdict(report: PlanReport) -> str:
    engine = report.engine
    share = report.request_rate / report.engine_limit.request_rate
    lines = [
        (
            f"{report.workload} at {report.request_rate:.4g} requests/s on {engine.capacity:,} KV tokens"
            f" ({engine.kv_blocks:,} blocks), max_num_seqs {engine.max_num_seqs}, token_budget"
            f" {engine.token_budget:,}"
        ),
        (
            f"{'STABLE' if report.stable else 'NOT STABLE'}: {share:.1%} of what the saturated engine serves,"
            f" {report.request_rate / report.bound.request_rate:.1%} of what any schedule could"
        ),
    ]
    lines += [f"  - {reason}" for reason in report.reasons]
    lines += [f"  ! {warning}" for warning in report.warnings]
    return "\n".join(lines)


def _rates(report: PlanReport) -> str:
    rows = []
    for name, limit in (
        ("constant composition (fluid)", report.fluid_limit),
        (f"saturated engine, {report.engine.policy}", report.engine_limit),
        ("WAIT, thresholds as caps", report.wait.caps.saturated),
        ("any schedule (bound)", report.bound),
    ):
        binding = "" if isinstance(limit, CapacityBound) else limit.binding
        rows.append([name, limit.request_rate, limit.output_throughput, binding])
    lines = [tabulated(["largest rate of this mix", "requests/s", "output tok/s", "binds"], rows)]
    if report.fluid is None:
        lines.append(f"fluid equilibrium: none, x = {report.load:.4f} (below 1 is stable)")
    else:
        fluid = report.fluid
        lines.append(
            f"fluid equilibrium: x = {report.load:.4f}, iteration {fluid.iteration_s * 1e3:.4g} ms,"
            f" M* = {fluid.kv_tokens:,.0f} KV tokens, {fluid.residents:.4g} residents"
        )
    if report.goodput is not None:
        within = {"TTFT": report.goodput.slo_ttft_ms, "TPOT": report.goodput.slo_tpot_ms}
        objective = ", ".join(f"{name} {_seconds(1e-3 * ms)}" for name, ms in within.items() if ms is not None)
        lines.append(
            f"goodput within {objective}: at most {report.goodput.goodput:.1%} of the requests,"
            f" {report.goodput.request_goodput:.4g} requests/s, whatever the scheduler"
        )
    return "\n".join(lines)


def _delays(report: PlanReport) -> str:
    lines = [f"expected, {report.engine.policy}: {_expected(report.expected)}"]
    if not report.stable:
        grows = report.request_rate - report.engine_limit.request_rate
        lines.append(f"no steady state: the queue grows by {grows:.4g} requests/s, and delays with it")
    return "\n".join(lines)


def _expected(expected: Expected) -> str:
    """Each figure, and the least and the most over the runs."""

    def figure(key: str, short: Any) -> str:
        mean, least, most = (short(getattr(of, key)) for of in (expected.mean, expected.least, expected.most))
        return mean if least == most else f"{mean} ({least} to {most})"

    queued = f", {_seconds(expected.mean.queue_s)} of it until admission" if expected.mean.queue_s > 1e-3 else ""
    preempts = expected.most.preemptions > 0
    evicted = f", {figure('preemptions', '{:.2g}'.format)} preemptions a request" if preempts else ""
    times = f" x {expected.runs}" if expected.runs > 1 else ""
    return (
        f"TTFT {figure('ttft_s', _seconds)}{queued}, TPOT {figure('tpot_s', _seconds)},"
        f" latency {figure('e2el_s', _seconds)}, peak KV {figure('peak_kv', '{:.0%}'.format)}{evicted}"
        f"; {expected.num_prompts:,} requests{times}"
    )


def _seconds(value: float) -> str:
    if value > ENDLESS_S:
        return "unbounded"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:,.4g} s"


def _wait(report: PlanReport) -> str:
    wait, caps = report.wait, report.wait.caps
    columns = zip(report.types, wait.per_type, caps.per_type, wait.delays, strict=True)
    rows = [
        [prompt, output, rate, n, cap, _seconds(delay.ttft_s), _seconds(delay.tpot_s), _seconds(delay.e2el_s)]
        for (prompt, output, rate), n, cap, delay in columns
    ]
    lines = [
        "wait: thresholds n, gated as in the paper, and as caps of a work-conserving engine",
        tabulated(["prompt", "output", "rate/s", "n gated", "n caps", "TTFT", "TPOT", "latency"], rows),
        (
            f"gated: iteration {wait.iteration_s * 1e3:.4g} ms, M^pi = {wait.kv_tokens:,.0f} tokens, slack"
            f" {wait.slack:.1%}{', paced' if wait.paced else ''}; caps: at most {caps.residents} residents"
        ),
    ]
    if report.stable:
        lines += [f"  - {violation}" for violation in wait.violations]
    return "\n".join(lines)


def _nested(report: PlanReport) -> str:
    nested = report.nested_wait
    per_segment = nested.per_segment or ["-"] * len(report.segments)
    rows = [
        [f"{segment.first_stage}..{segment.last_stage}", segment.rate, segment.survival, n]
        for segment, n in zip(report.segments, per_segment, strict=True)
    ]
    lines = ["nested-wait", tabulated(["stages", "rate/s", "p", "n"], rows)]
    if nested.unstable:
        lines.append(f"  - counting every request to the end of its segment, {nested.unstable}")
    lines += [f"  - {violation}" for violation in nested.violations]
    buffer = report.buffer
    if buffer is not None:
        verdict = "kept" if nested.protected else "not kept: thresholds without it"
        lines.append(
            f"safety buffer for probability {buffer.failure_probability:g} within {buffer.horizon_s:,.4g} s:"
            f" {buffer.tokens:,.0f} tokens above M^pi = {nested.kv_tokens:,.0f} ({verdict})"
        )
        lines += [f"  - for the buffer, {violation}" for violation in nested.unprotected]
        if report.segments[1:] and nested.protected:
            left = buffer.horizon_left_s
            kept = "forever" if left > ENDLESS_S else f"for {_seconds(left)}"
            lines.append(
                f"  the {buffer.tokens_left:,.0f} tokens left keep it at {buffer.failure_probability_left:.3g}"
                f" over that time, at {buffer.failure_probability:g} {kept}"
            )
    return "\n".join(lines)


def _gpus(report: PlanReport) -> str:
    gpus = report.gpus
    if gpus is None:
        return ""
    return (
        f"{gpus.target_rate:g} requests/s: {gpus.number} GPUs at {gpus.rate_each:.4g}/s each,"
        f" {gpus.utilisation:.0%} of the saturated rate; {_expected(gpus.expected)}"
    )
