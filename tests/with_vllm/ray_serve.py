"""Ray Serve LLM on this machine: replicas of the tiny model, and the calls that tests and benchmarks make to them."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from engine import LLAMA, write_model
from live import environment, installed_entry_points, write_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray.serve.handle import DeploymentHandle

ENGINE: dict[str, Any] = {
    "scheduler_cls": "wait_core.vllm.WaitScheduler",
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 256,
    "block_size": 32,
    "num_gpu_blocks_override": 40,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 2048,
    "enable_prefix_caching": False,
    "seed": 0,
}


@contextmanager
def serving(request_router_config: Any, *, replicas: int = 2, **engine: Any) -> Iterator[DeploymentHandle[Any]]:
    """Start Ray and a deployment, and let no process outlive the block.

    `prepare` must have been called before Ray was imported.
    """
    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig, build_llm_deployment

    from wait_core.fleet.ray import WaitLLMServer

    with tempfile.TemporaryDirectory(prefix="wc-ray-") as name:  # short: Ray's sockets are in it
        model = write_model(Path(name) / "model")
        write_tokenizer(model, LLAMA["vocab_size"])
        started: list[psutil.Process] = []
        try:
            ray.init(
                num_cpus=2 * replicas,
                include_dashboard=False,
                object_store_memory=100 * 2**20,
                log_to_driver=False,
                _node_ip_address="127.0.0.1",
                _temp_dir=f"{name}/ray",
            )
            config = LLMConfig(
                model_loading_config={"model_id": "tiny", "model_source": str(model)},
                accelerator_config={"kind": "cpu"},
                server_cls=WaitLLMServer,
                log_engine_metrics=False,
                engine_kwargs=ENGINE | engine,
                deployment_config={"num_replicas": replicas, "request_router_config": request_router_config},
            )
            handle = serve.run(build_llm_deployment(config), name="tiny", route_prefix=None)
            yield handle.options(stream=True)
        finally:
            started += psutil.Process().children(recursive=True)
            serve.shutdown()
            ray.shutdown()
            for process in psutil.wait_procs(started, timeout=20)[1]:
                process.kill()


def prepare(folder: Path) -> None:
    """Set the environment of Ray's processes, which is this one's, before Ray is imported."""
    installed_entry_points(folder)
    os.environ.clear()
    os.environ.update(_ENVIRONMENT | environment(folder))
    sys.path.insert(0, str(folder))


_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}


def body(prompt: list[int], output: int, *, stream: bool = False) -> Any:
    """Return the request for this many greedy tokens."""
    from ray.serve.llm.openai_api_models import CompletionRequest

    return CompletionRequest(
        model="tiny",
        prompt=prompt,
        max_tokens=output,
        temperature=0,
        ignore_eos=True,
        return_token_ids=True,
        stream=stream,
    )


async def complete(handle: DeploymentHandle[Any], prompt: list[int], output: int) -> list[int]:
    """Return the tokens of a completion."""
    answers = [each async for each in handle.completions.remote(body(prompt, output))]
    (answer,) = answers
    tokens: list[int] = answer.choices[0].token_ids
    return tokens


async def timed(handle: DeploymentHandle[Any], prompt: list[int], output: int) -> tuple[float, float]:
    """Return the times to the first and to the last token, s."""
    began = time.perf_counter()
    first = None
    async for _ in handle.completions.remote(body(prompt, output, stream=True)):
        first = first or time.perf_counter() - began
    if first is None:
        raise RuntimeError("no answer")
    return first, time.perf_counter() - began


def request_router(handle: DeploymentHandle[Any]) -> Any:
    """Return this process's request router of a deployment."""
    return handle._router._asyncio_router.request_router
