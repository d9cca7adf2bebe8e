"""Connectors without KV and without images: what they have, and when a transfer ends, is made up per request.

vLLM's scheduler builds them by their names, as any connector; `Connector.worker_output` says what its workers would.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from vllm.distributed.ec_transfer.ec_connector.example_connector import ECExampleConnector
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    SupportsHMA,
)

if TYPE_CHECKING:
    from vllm.v1.request import Request


class Connector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """Has a share of every other prompt, whole blocks of it.

    ``kv_connector_extra_config``: ``later``, whether a load takes steps, in which the request waits with its blocks;
    ``keeps``, whether it keeps the blocks of a request that has ended for some steps; ``fails``, whether a load in
    five comes to nothing.
    """

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._wanted = self._kv_transfer_config.kv_connector_extra_config
        self._size = self._vllm_config.cache_config.block_size
        self._steps = 0
        self._loads: dict[str, tuple[int, int]] = {}  # the step in which it ends, the first block
        self._keeps: dict[str, int] = {}
        self.loaded: dict[str, int] = {}
        self.kept = self.failed = 0

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        """Return how many tokens are loaded beyond those that the prefix cache has, and whether that takes steps."""
        draw = zlib.crc32(request.request_id.encode())
        share = draw % 4 / 3 if draw % 2 and request.request_id not in self.loaded else 0.0
        tokens = int(share * (request.num_prompt_tokens - 1)) // self._size * self._size - num_computed_tokens
        return max(0, tokens), bool(self._wanted.get("later")) and tokens > 0

    def update_state_after_alloc(self, request: Request, blocks: Any, num_external_tokens: int) -> None:
        """Begin a load."""
        if num_external_tokens:
            draw = zlib.crc32(request.request_id.encode())
            self.loaded[request.request_id] = num_external_tokens
            if self._wanted.get("later"):
                self._loads[request.request_id] = self._steps + 1 + draw % 7, blocks.get_block_ids()[0][-1]

    def request_finished_all_groups(self, request: Request, block_ids: Any) -> tuple[bool, None]:
        """Say whether the blocks are kept."""
        # vLLM itself keeps those of a request that is aborted while it loads.
        keeps = bool(self._wanted.get("keeps")) and bool(block_ids[0]) and request.request_id not in self._loads
        if keeps:
            self._keeps[request.request_id] = self._steps + 1 + zlib.crc32(request.request_id.encode()) % 5
            self.kept += 1
        return keeps, None

    def worker_output(self) -> Any:
        """Return what the workers say after a step."""
        from vllm.v1.outputs import KVConnectorOutput

        self._steps += 1
        sent = {name for name, step in self._keeps.items() if step <= self._steps}
        came = {name for name, (step, _) in self._loads.items() if step <= self._steps}
        fails = {name for name in came if self._wanted.get("fails") and zlib.crc32(name.encode()) % 5 == 0}
        invalid = {self._loads[name][1] for name in fails}
        self._keeps = {name: step for name, step in self._keeps.items() if name not in sent}
        self._loads = {name: load for name, load in self._loads.items() if name not in came}
        self.failed += len(fails)
        return KVConnectorOutput(finished_sending=sent, finished_recving=came, invalid_block_ids=invalid)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """Tell workers nothing."""
        del scheduler_output
        return KVConnectorMetadata()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Nothing is loaded."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded."""

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept."""

    def wait_for_save(self) -> None:
        """Nothing is kept."""


class EncoderConnector(ECExampleConnector):  # type: ignore[misc]
    """vLLM's connector that keeps encoder outputs in files, in whose folder the images are that it has.

    ``ec_connector_extra_config``: ``later``, whether they are on their way for some steps, in which the request does
    not run; ``fails``, whether one request in nine turns out to have none to come.
    """

    def __init__(self, vllm_config: Any, role: Any) -> None:
        super().__init__(vllm_config, role)
        self._wanted = vllm_config.ec_transfer_config.ec_connector_extra_config
        self._steps = 0
        self._come: dict[str, int] = {}  # image, the step from which on it is there
        self._unavailable: set[str] = set()
        self.failed: set[str] = set()
        self.loaded = self.waited = 0

    def ensure_cache_available(self, request: Request, num_computed_tokens: int) -> bool:
        """Say whether all images of the prompt that are not computed yet are there."""
        name = request.request_id
        if self._wanted.get("fails") and zlib.crc32(name.encode()) % 9 == 0:
            self._unavailable |= {name} - self.failed
            return False
        ready = True
        for feature in request.mm_features:
            if self._wanted.get("later") and feature.mm_position.offset >= num_computed_tokens:
                draw = zlib.crc32(feature.identifier.encode())
                ready &= self._come.setdefault(feature.identifier, self._steps + draw % 6) <= self._steps
        self.waited += not ready
        return ready

    def take_unavailable_requests(self) -> set[str]:
        """Return the requests whose images do not come."""
        found, self._unavailable = self._unavailable, set()
        self.failed |= found
        return found

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        """Count the steps, and what is loaded."""
        self._steps += 1
        meta = super().build_connector_meta(scheduler_output)
        self.loaded += len(meta.mm_datas)
        return meta
