"""Options for requests and engine, and what is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wait_core._core import WaitCoreError
from wait_core.laws import A100
from wait_core.requests import Requests, offered
from wait_core.simulation import LAW, Report, simulate
from wait_core.tables import table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_COLUMNS = {
    "policy": "policy",
    "completed": "completed",
    "output_throughput": "output tok/s",
    "mean_ttft_ms": "mean TTFT ms",
    "p99_ttft_ms": "p99 TTFT ms",
    "mean_tpot_ms": "mean TPOT ms",
    "mean_e2el_ms": "mean E2E ms",
    "preemptions": "preemptions",
    "recomputed_tokens": "recomputed",
    "kv_peak": "peak KV",
}


def add_source(group: argparse._ArgumentGroup) -> argparse._MutuallyExclusiveGroup:
    """Add the options that say where requests come from."""
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset-name", help="a synthetic dataset: p<prompt>d<output>, chat, lmsys, ...")
    source.add_argument("--dataset-path", help="a trace: Azure, Vidur, BurstGPT, Mooncake, ShareGPT, vllm bench custom")
    group.add_argument("--request-rate", type=float, help="requests/s; scales a trace's times; inf: all at once")
    group.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    return source


def add_law(group: argparse._ArgumentGroup) -> None:
    """Add the option for the iteration-time law."""
    group.add_argument("--iteration-time", default=A100, help="law: %(default)s, linear:D0,D1, or a JSON file")


def add_simulation(parser: argparse.ArgumentParser) -> None:
    """Add all options of a simulation but the policy."""
    wanted = parser.add_argument_group("requests")
    add_source(wanted)
    wanted.add_argument("--num-prompts", type=int, help="number of requests (dataset: 1000; trace: all)")
    wanted.add_argument("--burstiness", type=float, default=1.0, help="shape of the gamma gaps (%(default)s: Poisson)")
    wanted.add_argument("--max-concurrency", type=int, help="most requests that the client keeps under way")
    wanted.add_argument("--max-tokens", type=int, help="declared for every request")
    wanted.add_argument("--lengths", choices=["known", "hidden"], help="may the policy see output lengths?")
    wanted.add_argument(
        "--num-types", type=int, default=8, help="most request types, by length quantiles (%(default)s)"
    )
    engine = parser.add_argument_group("engine")
    add_law(engine)
    engine.add_argument("--overhead", type=float, default=0.0, metavar="S", help="seconds added to each iteration")
    engine.add_argument(
        "--step-jitter", type=float, default=0.0, metavar="S", help="relative deviation of the iterations' times"
    )
    engine.add_argument("--law", choices=LAW, default="known", help="what the policy is told of the iteration-time law")
    engine.add_argument("--slo-ttft", type=float, metavar="MS", help="objective for the goodput, ms")
    engine.add_argument("--slo-tpot", type=float, metavar="MS", help="objective for the goodput, ms")
    engine.add_argument("--config", type=Path, metavar="FILE", help="settings of the core, JSON")
    engine.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting; VALUE is JSON")


def requests_of(arguments: argparse.Namespace) -> Requests:
    """Make the requests that the options ask for."""
    if arguments.dataset_path is None and arguments.request_rate is None:
        raise WaitCoreError("--request-rate is missing: a dataset needs a rate in requests per second")
    return offered(
        arguments.dataset_name,
        arguments.dataset_path,
        None,
        arguments.request_rate,
        arguments.num_prompts,
        arguments.seed,
        arguments.burstiness,
    )


def run(arguments: argparse.Namespace, policy: str, requests: Requests) -> Report:
    """Simulate one policy as the options ask for."""
    settings = _settings(arguments)
    return simulate(
        policy,
        requests=requests,
        seed=arguments.seed,
        max_concurrency=arguments.max_concurrency,
        # A setting of this name is the simulated GPU too: there is one law.
        iteration_time=settings.pop("iteration_time", None) or arguments.iteration_time,
        overhead_s=arguments.overhead,
        step_jitter=arguments.step_jitter,
        lengths=arguments.lengths,
        law=arguments.law,
        max_tokens=arguments.max_tokens,
        num_types=arguments.num_types,
        progress=True,
        **settings,
    )


def comparison(reports: Sequence[Report]) -> str:
    """Return a table, one row a report."""
    rows = [report.summary() for report in reports]
    for row in rows:
        row["kv_peak"] = f"{row['peak_kv_blocks'] / row['kv_blocks']:.1%}"
    return table(list(_COLUMNS.values()), [[row[key] for key in _COLUMNS] for row in rows])


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if arguments.config is not None:
        try:
            settings = json.loads(arguments.config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise WaitCoreError(f"--config {arguments.config}: not JSON ({error})") from None
        if not isinstance(settings, dict):
            raise WaitCoreError(f"--config {arguments.config}: not a JSON object")
    for assignment in arguments.set:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise WaitCoreError(f"--set {assignment}: expected KEY=VALUE")
        try:
            settings[key] = json.loads(text)
        except ValueError:
            # A bare word is meant as a string.
            settings[key] = text
    return settings
