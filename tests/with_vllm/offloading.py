"""What moves the KV of vLLM's OffloadingConnector where there is no GPU.

vLLM's own worker copies on a GPU's streams and refuses to be made without one. All else is vLLM's: the connector's two
halves, its bookkeeping of blocks in host memory, what is offloaded, evicted, looked up and loaded, and when.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


class HostSpec(CPUOffloadingSpec):  # type: ignore[misc]
    """Named by ``spec_name`` in ``kv_connector_extra_config``, whose ``steps`` says how many a transfer takes."""

    def get_worker(self, kv_caches: Any) -> OffloadingWorker:
        """Return what copies between `kv_caches` and as many chunks of host memory as the connector counts."""
        return HostWorker(kv_caches, self.num_chunks, self.extra_config["steps"])


class HostWorker(OffloadingWorker):  # type: ignore[misc]
    """Copies blocks of one group at once, and says so some steps later."""

    def __init__(self, kv_caches: Any, chunks: int, steps: int) -> None:
        self._caches = [each.tensor for each in kv_caches.tensors]
        self._host = [torch.empty((chunks, *cache.shape[1:]), dtype=cache.dtype) for cache in self._caches]
        self._steps = steps
        self._under_way: deque[tuple[int, int]] = deque()  # the step in which it ends, the job
        self._step = 0

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """Copy blocks of the cache to host memory."""
        return self._copy(job_id, (self._caches, src_spec), (self._host, dst_spec))

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """Copy blocks of host memory to the cache."""
        return self._copy(job_id, (self._host, src_spec), (self._caches, dst_spec))

    def _copy(self, job_id: int, source: tuple[Any, Any], target: tuple[Any, Any]) -> bool:
        (sources, of), (targets, to) = source, target
        for one, other in zip(sources, targets, strict=True):
            other[torch.from_numpy(to.block_ids)] = one[torch.from_numpy(of.block_ids)]
        self._under_way.append((self._step + self._steps, job_id))
        return True

    def get_finished(self) -> list[TransferResult]:
        """Return the jobs that have ended by now; asked once a step."""
        self._step += 1
        ended = []
        while self._under_way and self._under_way[0][0] < self._step:
            ended.append(TransferResult(job_id=self._under_way.popleft()[1], success=True))
        return ended

    def wait(self, job_ids: set[int]) -> None:
        """All has been copied when it was submitted."""
        del job_ids
