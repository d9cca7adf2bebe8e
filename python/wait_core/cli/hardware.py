"""`wait-core hardware`: GPUs, models and engines, and what is known of their combinations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wait_core._core import WaitCoreError
from wait_core.cli.deployment import add_deployment, basis, deployment_of
from wait_core.cli.output import tabulated
from wait_core.hardware import catalogue, shipped

if TYPE_CHECKING:
    import argparse

    from wait_core.hardware import Deployment

GIB = 1 << 30


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_deployment(parser.add_argument_group("one deployment, or the models of one GPU"))
    parser.add_argument("--json", action="store_true", help="a deployment as JSON, which --iteration-time reads")
    parser.set_defaults(run=_run, iteration_time=None)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.model is not None:
        deployment = deployment_of(arguments)
        assert deployment is not None  # noqa: S101  a model was given
        print(deployment.to_json() if arguments.json else f"{basis(deployment)}\n{details(deployment)}")
    elif arguments.gpu is not None:
        print("\n".join(catalogue.models(catalogue.find_gpu(arguments.gpu, arguments.engine), arguments.engine)))
    else:
        print(_shipped() + "\n" + _measured(arguments.engine))
    return 0


def _shipped() -> str:
    rows = [
        [each.name, each.gpu, each.model, each.tensor_parallel_size, f"{each.kv_blocks * each.block_size:,}",
         each.max_num_seqs, each.token_budget]
        for each in shipped().values()
    ]  # fmt: skip
    header = [
        "shipped, for --iteration-time too",
        "--gpu",
        "--model",
        "-tp",
        "KV tokens",
        "max_num_seqs",
        "token_budget",
    ]
    return tabulated(header, rows)


def _measured(engine: str) -> str:
    try:
        engines = catalogue.engines()
    except WaitCoreError as error:  # the package that knows them is not there
        return f"\nmore GPUs and models: {error}"
    rows = [[gpu, engine, len(catalogue.models(gpu, engine))] for gpu in catalogue.gpus(engine)]
    others = ", ".join(name for name in engines if name != engine)
    lines = [tabulated(["GPU", "engine", "models"], rows), f"the models of one: --gpu GPU; other engines: {others}"]
    return "\n" + "\n".join(lines)


def details(deployment: Deployment) -> str:
    """Return tables of cache, memory and errors."""
    memory = deployment.memory
    parts = {"usable": memory.usable, "weights": memory.weights, "activations": memory.activations,
             "runtime": memory.runtime, "CUDA graphs": memory.graphs, "KV cache": memory.kv_cache}  # fmt: skip
    groups = [
        [group.kind, group.layers, "" if group.window is None else f"{group.window:,}", f"{group.bytes_per_token:,}"]
        for group in deployment.cache_groups
    ]
    errors = [
        [region.name, region.queries, f"{region.median_error:.1%}", f"{region.p95_error:.1%}",
         f"{region.largest_error:.1%}"]
        for region in deployment.accuracy
    ]  # fmt: skip
    capacity = (
        f"{deployment.kv_blocks * deployment.block_size:,} KV tokens in {deployment.kv_blocks:,} blocks of"
        f" {deployment.block_size}; max_num_seqs {deployment.max_num_seqs:,}, token_budget {deployment.token_budget:,},"
        f" requests up to {deployment.max_model_len:,} tokens"
    )
    cache = deployment.kv_cache()
    if "kv_groups" in cache:
        each = ", ".join(f"{group['count']} x {group['kind']}" for group in cache["kv_groups"])
        capacity += f"\nall layers counted as full ones; or {cache['kv_blocks']:,} blocks for the groups {each}"
    return "\n".join(
        [
            capacity,
            tabulated(["memory of a GPU", "GiB"], [[name, f"{size / GIB:.2f}"] for name, size in parts.items()]),
            tabulated(["KV cache", "layers", "window", "bytes a token"], groups),
            tabulated(["error of the law, held out", "queries", "median", "95 %", "largest"], errors),
        ]
    )
