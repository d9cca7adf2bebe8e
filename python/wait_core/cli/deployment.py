"""Options for the iteration-time law, or the GPU and the model that it belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wait_core._core import WaitCoreError
from wait_core.cli import arguments as kinds
from wait_core.hardware import A100, engine

if TYPE_CHECKING:
    import argparse

    from wait_core.hardware import Deployment


def add_law(group: argparse._ArgumentGroup, *, several: bool = False) -> None:
    """Add the options for the iteration-time law: by itself, or with the memory of a GPU (or several) and a model."""
    group.add_argument(
        "--iteration-time", metavar="LAW", help=f"law: {A100} (default), a shipped name, linear:D0,D1, or a JSON file"
    )
    add_deployment(group, several=several)


def add_deployment(group: argparse._ArgumentGroup, *, several: bool = False) -> None:
    """Add the options that name a GPU and a model; several GPUs are a list."""
    group.add_argument(
        "--gpu",
        nargs="+" if several else None,
        metavar="GPU[:TP]" if several else "GPU",
        help="GPU, for law, memory, max_num_seqs and token budget: see `wait-core hardware`"
        + ("; several are compared" if several else ""),
    )
    group.add_argument("--model", metavar="NAME", help="model on Hugging Face, or its config.json; goes with --gpu")
    group.add_argument(
        "--tensor-parallel-size",
        "-tp",
        metavar="N",
        type=kinds.whole(1, 1024),
        default=1,
        help="GPUs a replica (%(default)s)",
    )
    group.add_argument(
        "--engine", metavar="NAME", default="vllm", help="whose kernels: vllm, sglang, trtllm (%(default)s)"
    )
    group.add_argument(
        "--gpu-memory-utilization",
        metavar="SHARE",
        type=kinds.share,
        help="share of the memory (default: the engine's)",
    )
    group.add_argument("--kv-cache-dtype", metavar="DTYPE", default="auto", help="auto, bfloat16 or fp8 (%(default)s)")
    group.add_argument(
        "--host-time", type=kinds.seconds, metavar="S", help="seconds between two iterations (default: 0.0005)"
    )


def deployment_of(arguments: argparse.Namespace) -> Deployment | None:
    """Return the deployment that --gpu and --model ask for; None without them."""
    found = deployments_of(arguments)
    return found[0] if found else None


def basis(deployment: Deployment) -> str:
    """Return one line on the sources of a deployment, and one more for each note on it."""
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
    """Return the deployments that --gpu and --model ask for, "h100_sxm:2" for two GPUs per replica."""
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
