"""Options for requests and engine, and what is made of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wait_core._core import WaitCoreError
from wait_core.files import read_object
from wait_core.hardware import A100, engine
from wait_core.report import table
from wait_core.simulation.run import LAW, Report, simulate
from wait_core.workload import Requests, offered

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from wait_core.hardware import Deployment

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


def add_law(group: argparse._ArgumentGroup, *, several: bool = False) -> None:
    """Add the options for the iteration-time law: by itself, or with the memory of a GPU (or several) and a model."""
    group.add_argument("--iteration-time", help=f"law: {A100} (default), a shipped name, linear:D0,D1, or a JSON file")
    add_deployment(group, several=several)


def add_deployment(group: argparse._ArgumentGroup, *, several: bool = False) -> None:
    """Add the options that name a GPU and a model; several GPUs are a list."""
    group.add_argument(
        "--gpu",
        nargs="+" if several else None,
        metavar="GPU[:TP]" if several else "GPU",
        help="GPU, for law, memory, seats and budget: see `wait-core hardware`"
        + ("; several are compared" if several else ""),
    )
    group.add_argument("--model", help="model on Hugging Face, or its config.json; goes with --gpu")
    group.add_argument("--tensor-parallel-size", "-tp", type=int, default=1, help="GPUs a replica (%(default)s)")
    group.add_argument("--engine", default="vllm", help="whose kernels: vllm, sglang, trtllm (%(default)s)")
    group.add_argument("--gpu-memory-utilization", type=float, help="share of the memory (default: the engine's)")
    group.add_argument("--kv-cache-dtype", default="auto", help="auto, bfloat16 or fp8 (%(default)s)")
    group.add_argument("--host-time", type=float, metavar="S", help="seconds between two iterations (default: 0.0005)")


def deployment_of(arguments: argparse.Namespace) -> Deployment | None:
    """Return the deployment that --gpu and --model ask for; None without them."""
    found = deployments_of(arguments)
    return found[0] if found else None


def basis(deployment: Deployment) -> str:
    """Return in a line what a deployment rests on, and in one more each what else there is to know of it."""
    worst = max(region.p95_error for region in deployment.accuracy)
    shares = ", ".join(f"{share:.0%} {name}" for name, share in deployment.sources.items() if share >= 0.005)
    lines = [
        (
            f"{deployment.model} on {deployment.tensor_parallel_size} x {deployment.gpu}, {deployment.engine}"
            f" {deployment.engine_version}: {deployment.source}; kernels {shares}; fit within {worst:.1%} for 95 %;"
            f" {deployment.host_s * 1e3:g} ms between iterations are assumed"
        ),
        *(f"  ! {note}" for note in deployment.notes),
    ]
    return "\n".join(lines)


def deployments_of(arguments: argparse.Namespace) -> list[Deployment]:
    """Return the deployments that --gpu and --model ask for, "h100_sxm:2" being two GPUs a replica; none without."""
    if arguments.gpu is None and arguments.model is None:
        return []
    if arguments.gpu is None or arguments.model is None:
        raise WaitCoreError("--gpu and --model go together: kernel times belong to both")
    if arguments.iteration_time is not None:
        raise WaitCoreError("--iteration-time and --gpu: one law only")
    host = {} if arguments.host_time is None else {"host_s": arguments.host_time}
    found = []
    for asked in [arguments.gpu] if isinstance(arguments.gpu, str) else arguments.gpu:
        gpu, several, size = asked.partition(":")
        if several and not size.isdecimal():
            raise WaitCoreError(f"--gpu {asked}: expected GPU or GPU:TP, as h100_sxm:2")
        made = engine(
            gpu,
            arguments.model,
            tensor_parallel_size=int(size) if several else arguments.tensor_parallel_size,
            engine=arguments.engine,
            gpu_memory_utilization=arguments.gpu_memory_utilization,
            kv_cache_dtype=arguments.kv_cache_dtype,
            **host,
        )
        found.append(made)
    return found


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
    requests = offered(
        arguments.dataset_name,
        arguments.dataset_path,
        None,
        arguments.request_rate,
        arguments.num_prompts,
        arguments.seed,
        arguments.burstiness,
    )
    print_notes(requests.dropped, requests.notes)
    return requests


def print_notes(dropped: Mapping[str, int], notes: Sequence[str]) -> None:
    """Print, beside the results, what was left out of a trace and what was assumed of it."""
    for reason, rows in dropped.items():
        print(f"note: {rows:,} rows are left out: {reason}", file=sys.stderr)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def run(arguments: argparse.Namespace, policy: str, requests: Requests, deployment: Deployment | None) -> Report:
    """Simulate one policy as the options ask for, on the deployment that they name."""
    engine: dict[str, Any] = {"iteration_time": arguments.iteration_time or A100}
    if deployment is not None:
        engine = deployment.settings()
    return simulate(
        policy,
        requests=requests,
        seed=arguments.seed,
        max_concurrency=arguments.max_concurrency,
        overhead_s=arguments.overhead,
        step_jitter=arguments.step_jitter,
        lengths=arguments.lengths,
        law=arguments.law,
        max_tokens=arguments.max_tokens,
        num_types=arguments.num_types,
        progress=True,
        # A setting of this name is the simulated GPU too: there is one law.
        **(engine | _settings(arguments)),
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
        settings = read_object(arguments.config)
    for assignment in arguments.set:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise WaitCoreError(f"--set {assignment}: expected KEY=VALUE")
        try:
            settings[key] = json.loads(text)
        except (ValueError, RecursionError):
            # A bare word is meant as a string.
            settings[key] = text
    return settings
