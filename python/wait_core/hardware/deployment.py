"""One model served by one engine on one group of GPUs: plain values, read and written as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from wait_core._core import WaitCoreError
from wait_core.hardware.kv_groups import FULL, division

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = "wait-core-deployment"
VERSION = 2


@dataclass(frozen=True, kw_only=True)
class CacheGroup:
    """Layers that keep the same tokens of a request.

    Attributes
    ----------
    kind : {"full", "sliding-window", "chunked-local"}
        All tokens; the last `window` tokens; the tokens of the current chunk of `window` tokens.
    layers : int
        How many layers.
    bytes_per_token : int
        Of all these layers together, on one GPU.
    window : int or None
        Tokens; None where all are kept.

    """

    kind: str
    layers: int
    bytes_per_token: int
    window: int | None = None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Where the memory of one GPU goes, bytes.

    Attributes
    ----------
    total : int
        What CUDA reports.
    usable : int
        `gpu_memory_utilization` of it.
    weights, activations, runtime, graphs : int
        Weights; peak of a forward pass at the token budget and of sampling for `max_num_seqs` requests; CUDA context
        and NCCL; CUDA graphs.

    """

    total: int
    usable: int
    weights: int
    activations: int
    runtime: int
    graphs: int

    @property
    def kv_cache(self) -> int:
        """What is left for the KV cache, bytes; not above 0 where the model does not fit."""
        return self.usable - self.weights - self.activations - self.runtime - self.graphs


@dataclass(frozen=True, kw_only=True)
class Region:
    """How well the law predicts held-out queries of one region.

    Attributes
    ----------
    name : str
        Which iterations.
    queries : int
        Number of them, held out.
    median_error, p95_error, largest_error : float
        Relative errors, absolute values: the median, the bound of 95 %, the largest.

    """

    name: str
    queries: int
    median_error: float
    p95_error: float
    largest_error: float


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One model served by one engine on one group of GPUs, as wait-core plans and simulates it.

    Attributes
    ----------
    name : str
        By which a shipped deployment is found.
    gpu, model : str
        Names of the package that it comes from, or the user's configuration file.
    tensor_parallel_size : int
        GPUs that serve one replica.
    engine, engine_version, source : str
        The engine whose kernels were measured, its version, and the package that holds the measurements.
    iteration_time : dict
        The iteration-time law: the fitted kernels, and `host_s` in each iteration.
    host_s : float
        Time of the engine between the kernels of two iterations, s: an assumption, it is in no measurement.
    accuracy : tuple of Region
        Errors of the fit, by region, on queries held out.
    sources : dict
        Share of the kernels' time by its source, over all queries of the fit: "measured" (and interpolated
        between measurements), "estimated" from the GPU's peak rates, "partly measured" (sums of both).
    cache_groups : tuple of CacheGroup
        As the model's configuration says.
    memory : Memory
        Of each GPU.
    kv_blocks, block_size : int
        KV blocks of all layers, all counted as full ones, and tokens in each; `kv_cache` is what the layers keep.
    max_num_seqs, token_budget, max_model_len : int
        Most residents, most tokens per iteration, longest request: the engine's defaults for this GPU.
    notes : tuple of str
        Further assumptions and fallbacks.

    """

    name: str
    gpu: str
    model: str
    tensor_parallel_size: int
    engine: str
    engine_version: str
    source: str
    iteration_time: dict[str, Any]
    host_s: float
    accuracy: tuple[Region, ...]
    sources: dict[str, float]
    cache_groups: tuple[CacheGroup, ...]
    memory: Memory
    kv_blocks: int
    block_size: int
    max_num_seqs: int
    token_budget: int
    max_model_len: int
    notes: tuple[str, ...]

    @property
    def kv_bytes_per_token(self) -> int:
        """KV bytes of one token on one GPU, all layers counted as full ones."""
        return sum(group.bytes_per_token for group in self.cache_groups)

    def kv_cache(self, *, as_full: bool = False) -> dict[str, Any]:
        """Return the settings `kv_blocks` and, unless there is one group of full attention, `kv_groups`.

        Parameters
        ----------
        as_full : bool
            Count all layers as full ones, as vLLM does with --disable-hybrid-kv-cache-manager.

        """
        if as_full or [group.kind for group in self.cache_groups] == [FULL]:
            return {"kv_blocks": self.kv_blocks}
        groups, block_bytes = division(self.cache_groups, self.block_size)
        return {"kv_blocks": self.memory.kv_cache // block_bytes, "kv_groups": groups}

    def settings(self, *, as_full: bool = False) -> dict[str, Any]:
        """Return the arguments of `wait_core.simulate` and `wait_core.plan` that describe this deployment.

        `as_full` is that of `kv_cache`.
        """
        return {
            "iteration_time": self.iteration_time,
            **self.kv_cache(as_full=as_full),
            "block_size": self.block_size,
            "max_num_seqs": self.max_num_seqs,
            "token_budget": self.token_budget,
        }

    def with_host(self, host_s: float) -> Deployment:
        """Return the same deployment with another time between iterations, s."""
        if not 0 <= host_s < 10:
            raise WaitCoreError(f"host_s = {host_s}: must be at least 0 and below 10 s")
        shift = (host_s - self.host_s) * 1e9
        steps = [step | {"base_ns": step["base_ns"] + shift} for step in self.iteration_time["steps"]]
        return replace(self, iteration_time=self.iteration_time | {"steps": steps}, host_s=host_s)

    def with_memory(self, gpu_memory_utilization: float) -> Deployment:
        """Return the same deployment with another share of the memory, in (0, 1].

        Raises
        ------
        WaitCoreError
            If the share is not in (0, 1], or leaves no room for the KV cache.

        """
        if not 0 < gpu_memory_utilization <= 1:
            raise WaitCoreError(f"gpu_memory_utilization = {gpu_memory_utilization}: must be above 0 and at most 1")
        memory = replace(self.memory, usable=int(gpu_memory_utilization * self.memory.total))
        blocks = memory.kv_cache // (self.kv_bytes_per_token * self.block_size)
        if blocks < 1:
            raise WaitCoreError(
                f"gpu_memory_utilization = {gpu_memory_utilization}: {self.model} leaves no room for the KV cache;"
                f" {(memory.usable - memory.kv_cache) / memory.total:.2f} is filled without it"
            )
        return replace(self, memory=memory, kv_blocks=blocks)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, as `from_dict` reads it."""
        return {"format": FORMAT, "version": VERSION} | asdict(self)

    def to_json(self) -> str:
        """Return `to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Deployment:
        """Read what `to_dict` wrote.

        Raises
        ------
        WaitCoreError
            If it is not a deployment, or one of another version.

        """
        fields = dict(value)
        if (fields.pop("format", None), fields.pop("version", None)) != (FORMAT, VERSION):
            raise WaitCoreError(f"not a deployment: format {FORMAT!r} version {VERSION} is expected")
        try:
            fields["accuracy"] = tuple(Region(**region) for region in fields["accuracy"])
            fields["cache_groups"] = tuple(CacheGroup(**group) for group in fields["cache_groups"])
            fields["memory"] = Memory(**fields["memory"])
            fields["notes"] = tuple(fields["notes"])
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise WaitCoreError(f"not a deployment: {error!r}") from None
