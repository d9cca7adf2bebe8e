"""Options for requests, engine and settings, and the arguments made from them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wait_core._core import SETTINGS, Scheduler, WaitCoreError
from wait_core.cli import arguments as kinds
from wait_core.cli.deployment import add_law
from wait_core.cli.fleet import add_fleet, fleet_of
from wait_core.cli.output import print_notes
from wait_core.files import read_object
from wait_core.hardware import A100
from wait_core.simulation.run import KNOWLEDGE, Report, simulate
from wait_core.workload import Requests, offered
from wait_core.workload.traces import FORMATS, load

if TYPE_CHECKING:
    import argparse

    from wait_core.hardware import Deployment
    from wait_core.workload import Trace

POLICY = "adaptive"
"""What runs where no policy is named; shown beside stock "vllm" where two are compared."""

BENCH_NAMES = {"custom": "vllm"} | {name: name for name in FORMATS}
"""Formats of --dataset-path, by their names in --dataset-name of `vllm bench` and in ours."""


def add_source(group: argparse._ArgumentGroup) -> None:
    """Add the options that say where requests come from."""
    group.add_argument(
        "--dataset-name",
        metavar="NAME",
        help="a synthetic dataset: p<prompt>d<output>, chat, lmsys, ...; or, beside --dataset-path, the format of the"
        f" file (detected where it is absent): {', '.join(BENCH_NAMES)}",
    )
    group.add_argument(
        "--dataset-path", metavar="FILE", help="a trace: Azure, Vidur, BurstGPT, Mooncake, ShareGPT, vllm bench custom"
    )
    group.add_argument(
        "--seed", metavar="N", type=kinds.seed, default=0, help="of arrivals, lengths, jitter (%(default)s)"
    )


def source_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the dataset's name or the trace, as keyword arguments of `simulate` and `plan`."""
    name, path = arguments.dataset_name, arguments.dataset_path
    if path is None:
        if name in BENCH_NAMES:
            raise WaitCoreError(f"--dataset-name {name}: a format of traces; give the file as --dataset-path")
        return {"dataset_name": name, "dataset_path": None}
    if name is None:
        return {"dataset_name": None, "dataset_path": path}
    if name not in BENCH_NAMES:
        raise WaitCoreError(f"--dataset-name {name}: with --dataset-path, one of {', '.join(BENCH_NAMES)}")
    trace: Trace = load(path, BENCH_NAMES[name])
    return {"dataset_name": None, "dataset_path": trace}


def add_requests(group: argparse._ArgumentGroup) -> None:
    """Add the options for the requests of a simulation, except their rate."""
    add_source(group)
    group.add_argument(
        "--num-prompts", metavar="N", type=kinds.requests, help="number of requests (dataset: 1000; trace: all)"
    )
    group.add_argument(
        "--burstiness",
        metavar="SHAPE",
        type=kinds.positive,
        default=1.0,
        help="shape of the gamma gaps (%(default)s: Poisson)",
    )
    group.add_argument(
        "--max-concurrency", metavar="N", type=kinds.count, help="most requests that the client keeps under way"
    )
    group.add_argument("--max-tokens", metavar="N", type=kinds.count, help="declared for every request")
    group.add_argument("--lengths", choices=["known", "hidden"], help="whether the policy sees output lengths")
    group.add_argument(
        "--num-types",
        metavar="N",
        type=kinds.whole(1, 4096),
        default=8,
        help="most request types, by length quantiles (%(default)s)",
    )


def add_engine(group: argparse._ArgumentGroup) -> None:
    """Add the options for the simulated engine, its settings and the objective."""
    add_law(group)
    group.add_argument(
        "--overhead", type=kinds.seconds, default=0.0, metavar="S", help="seconds added to each iteration"
    )
    group.add_argument(
        "--step-jitter", type=kinds.jitter, default=0.0, metavar="S", help="relative deviation of the iterations' times"
    )
    group.add_argument(
        "--iteration-time-knowledge",
        choices=KNOWLEDGE,
        default="known",
        help="what the policy knows of it (%(default)s)",
    )
    kinds.add_objective(group, "goodput")
    add_settings(group)


def add_settings(group: argparse._ArgumentGroup) -> None:
    """Add the options for settings of the core."""
    group.add_argument("--config", type=Path, metavar="FILE", help="settings of the core, JSON: `wait-core settings`")
    group.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one setting; VALUE is JSON")


def add_simulation(parser: argparse.ArgumentParser) -> None:
    """Add all options of a simulation except the policy."""
    wanted = parser.add_argument_group("requests")
    add_requests(wanted)
    wanted.add_argument(
        "--request-rate", metavar="RATE", type=kinds.rate, help="requests/s; scales a trace's times; inf: all at once"
    )
    add_engine(parser.add_argument_group("engine"))
    add_fleet(parser.add_argument_group("fleet"))


def requests_of(arguments: argparse.Namespace, rate: float | None) -> Requests:
    """Make the requests that the options ask for, and print what was left out and assumed."""
    if arguments.dataset_path is None and arguments.dataset_name is None:
        raise WaitCoreError("no requests: give --dataset-name or --dataset-path")
    if arguments.dataset_path is None and rate is None:
        raise WaitCoreError("--request-rate is missing: a dataset needs a rate in requests per second")
    if arguments.dataset_path is not None and rate is not None and math.isinf(rate):
        raise WaitCoreError("--request-rate inf: the times of a trace can be scaled, not left out; a dataset has none")
    source = source_of(arguments)
    requests = offered(
        source["dataset_name"],
        source["dataset_path"],
        None,
        rate,
        arguments.num_prompts,
        arguments.seed,
        arguments.burstiness,
    )
    print_notes(requests.dropped, requests.notes)
    return requests


def simulation_of(
    arguments: argparse.Namespace, deployment: Deployment | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """Return what the options specify beside policy, requests and seed, as keyword arguments of `simulate`."""
    engine: dict[str, Any] = {"iteration_time": arguments.iteration_time or A100}
    if deployment is not None:
        if "kv_groups" in settings and "kv_blocks" not in settings:
            raise WaitCoreError("kv_blocks is missing: the size of a block of your kv_groups is unknown")
        engine = deployment.settings()
    asked = {
        "max_concurrency": arguments.max_concurrency,
        "overhead_s": arguments.overhead,
        "step_jitter": arguments.step_jitter,
        "lengths": arguments.lengths,
        "iteration_time_knowledge": arguments.iteration_time_knowledge,
        "max_tokens": arguments.max_tokens,
        "num_types": arguments.num_types,
    }
    # The setting of this name is the simulated GPU's law too: there is one law.
    return asked | engine | settings


def run(
    arguments: argparse.Namespace,
    policy: str,
    requests: Requests,
    deployment: Deployment | None,
    settings: dict[str, Any],
    *,
    router: str | None = None,
) -> Report:
    """Simulate one policy as the options specify, on the deployment that they name."""
    asked = simulation_of(arguments, deployment, settings)
    asked |= fleet_of(arguments, router, deployment)
    return simulate(policy, requests=requests, seed=arguments.seed, progress=True, **asked)


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of --config, overridden by those of --set.

    Raises
    ------
    WaitCoreError
        If one is not a setting of the core, or is the policy (an option); or a file or assignment cannot be read.

    """
    settings: dict[str, Any] = {}
    if arguments.config is not None:
        settings = read_object(arguments.config)
        if "policy" in settings:
            raise WaitCoreError(f"{arguments.config}: policy: name it on the command line")
    for assignment in arguments.set:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise WaitCoreError(f"--set {assignment}: expected NAME=VALUE")
        if key == "policy":
            raise WaitCoreError(f"--set {assignment}: use --policy")
        try:
            settings[key] = json.loads(text)
        except (ValueError, RecursionError):
            # A bare word is a string.
            settings[key] = text
    if unknown := {name: value for name, value in settings.items() if name not in SETTINGS}:
        Scheduler(kv_blocks=1, **unknown)  # which suggests the nearest name; arguments of `simulate` are not settings
    if settings.get("iteration_time", "") is None:  # as a scheduler without a law has it
        del settings["iteration_time"]
    return settings


def objective_of(arguments: argparse.Namespace) -> dict[str, float | None]:
    """Return the objective as keyword arguments of `Report.summary`."""
    return {"slo_ttft_ms": arguments.slo_ttft, "slo_tpot_ms": arguments.slo_tpot}
