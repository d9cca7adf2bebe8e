from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

__all__ = [
    "DEBUG_BUILD",
    "SETTINGS",
    "CapacityError",
    "DeadlineError",
    "DuplicateIdError",
    "Hold",
    "Plan",
    "Planner",
    "QueueFullError",
    "Run",
    "SafetyBuffer",
    "Scheduler",
    "StalledError",
    "WaitCoreError",
    "__version__",
    "batch",
    "group_types",
    "iteration_seconds",
    "probe",
    "run",
    "sample",
]

__version__: Final[str]
DEBUG_BUILD: Final[bool]
SETTINGS: Final[list[str]]

class WaitCoreError(ValueError): ...
class CapacityError(WaitCoreError): ...
class DuplicateIdError(WaitCoreError): ...
class QueueFullError(WaitCoreError): ...
class DeadlineError(WaitCoreError): ...
class StalledError(WaitCoreError): ...

@final
class Hold:
    @property
    def reason(self) -> str: ...
    @property
    def needs(self) -> float: ...
    @property
    def limit(self) -> float: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...

@final
class Plan:
    @property
    def iteration(self) -> int: ...
    @property
    def admitted(self) -> list[int]: ...
    @property
    def resumed(self) -> list[int]: ...
    @property
    def preempted(self) -> list[int]: ...
    @property
    def prefill(self) -> list[tuple[int, int]]: ...
    @property
    def cached(self) -> list[tuple[int, int]]: ...
    @property
    def paused(self) -> list[int]: ...
    @property
    def refused(self) -> list[tuple[int, str, int]]: ...
    @property
    def num_decodes(self) -> int: ...
    @property
    def token_budget(self) -> int: ...
    @property
    def held(self) -> int: ...
    @property
    def wake_ns(self) -> int | None: ...
    @property
    def is_empty(self) -> bool: ...

@final
class Scheduler:
    def __new__(cls, policy: str = "vllm", **settings: Any) -> Scheduler: ...
    def add(
        self,
        request_id: int,
        prompt_tokens: int,
        max_tokens: int | None = None,
        *,
        output_tokens: int | None = None,
        predicted_tokens: int | None = None,
        predicted_log_error: float = 0.0,
        type_id: int | None = None,
        priority: int = 0,
        tenant: int = 0,
        computed_tokens: int = 0,
        shared_prefix: int = 0,
        block_hashes: Sequence[int] = ...,
        receives: bool = False,
        max_wait_ns: int | None = None,
        now_ns: int = 0,
    ) -> None: ...
    def plan(self, now_ns: int = 0) -> Plan: ...
    def complete(
        self,
        *,
        finished: Sequence[int] = ...,
        preempted: Sequence[int] = ...,
        refused: Sequence[int] = ...,
        progress: Sequence[tuple[int, int]] = ...,
        received: Sequence[int] = ...,
        hits: Sequence[tuple[int, int, int]] = ...,
        free_blocks: int | None = None,
        step_ns: int | None = None,
        iteration: int | None = None,
    ) -> None: ...
    def first_in_queue(self, count: int) -> list[tuple[int, int, int]]: ...
    def abort(self, request_id: int) -> bool: ...
    def set_capacity(self, kv_blocks: int) -> None: ...
    def reset_prefix_cache(self) -> bool: ...
    def drain(self) -> None: ...
    def set_paused(self, paused: bool) -> None: ...
    def learned(self) -> dict[str, Any] | None: ...
    def restore(self, learned: Mapping[str, Any]) -> None: ...
    def kv_forecast(self) -> list[tuple[int, float, float, float]]: ...
    @property
    def iteration_time(self) -> dict[str, Any] | None: ...
    @property
    def predicted_wait_ns(self) -> int: ...
    def explain(self, request_id: int) -> Hold | None: ...
    def stage(self, request_id: int) -> int | None: ...
    def __len__(self) -> int: ...
    def __contains__(self, key: int, /) -> bool: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def num_resident(self) -> int: ...
    @property
    def used_blocks(self) -> int: ...
    @property
    def thresholds(self) -> list[float]: ...
    @property
    def stats(self) -> dict[str, Any]: ...
    @property
    def settings(self) -> dict[str, Any]: ...

@final
class Planner:
    def __new__(
        cls,
        types: Sequence[tuple[int, int, float]],
        law: Mapping[str, Any],
        *,
        capacity: int,
        max_running: int | None = None,
        token_budget: int | None = None,
        convention: str = "vllm",
        windows: Sequence[Sequence[tuple[int, int, float]]] = ...,
    ) -> Planner: ...
    @property
    def load(self) -> float: ...
    @property
    def mean_token_iterations(self) -> float: ...
    def equilibrium(self) -> dict[str, Any] | None: ...
    def largest_stable_rate(self) -> dict[str, Any]: ...
    def capacity_bound(self) -> dict[str, Any]: ...
    def goodput_bound(self, *, slo_ttft: float | None = None, slo_tpot: float | None = None) -> dict[str, Any]: ...
    def thresholds(
        self,
        per_type: Sequence[float] | None = None,
        *,
        spacing: float | None = None,
        block_size: int | None = None,
    ) -> dict[str, Any]: ...
    def segments(
        self, boundaries: Sequence[int] | None = None, *, count: int | None = None
    ) -> list[dict[str, Any]]: ...
    def nested(
        self,
        boundaries: Sequence[int] | None = None,
        *,
        count: int | None = None,
        per_segment: Sequence[float] | None = None,
        margin: float = 0.05,
        failure_probability: float | None = None,
        horizon: float = 0.0,
        block_size: int = 1,
    ) -> dict[str, Any]: ...
    def stage_caps(
        self,
        total: int,
        boundaries: Sequence[int] | None = None,
        *,
        count: int | None = None,
        margin: float = 0.05,
    ) -> dict[str, Any]: ...
    def safety_buffer(
        self,
        per_segment: Sequence[float],
        boundaries: Sequence[int] | None = None,
        *,
        count: int | None = None,
        block_size: int = 1,
    ) -> SafetyBuffer: ...

@final
class SafetyBuffer:
    @property
    def theta(self) -> list[float]: ...
    def tokens(self, failure_probability: float, horizon: float) -> float: ...
    def residents(self, failure_probability: float, horizon: float) -> float: ...
    def queue_bounds(self, failure_probability: float, horizon: float) -> list[float]: ...
    def failure_probability(self, tokens: float, horizon: float) -> float: ...
    def horizon(self, tokens: float, failure_probability: float) -> float: ...

@final
class Run:
    def __new__(cls, state: bytes) -> Run: ...
    def __reduce__(self) -> tuple[type[Run], tuple[bytes]]: ...
    @property
    def learned(self) -> dict[str, Any] | None: ...
    def summary(self, slo_ttft_ms: float | None = None, slo_tpot_ms: float | None = None) -> dict[str, Any]: ...
    @property
    def counts(self) -> dict[str, Any]: ...
    @property
    def iteration_time(self) -> dict[str, Any] | None: ...
    @property
    def arrival_ns(self) -> npt.NDArray[np.uint64]: ...
    @property
    def predicted_wait_ns(self) -> npt.NDArray[np.uint64]: ...
    @property
    def admitted_ns(self) -> npt.NDArray[np.uint64]: ...
    @property
    def first_token_ns(self) -> npt.NDArray[np.uint64]: ...
    @property
    def finished_ns(self) -> npt.NDArray[np.uint64]: ...
    @property
    def prompt(self) -> npt.NDArray[np.uint32]: ...
    @property
    def output(self) -> npt.NDArray[np.uint32]: ...
    @property
    def preemptions(self) -> npt.NDArray[np.uint32]: ...
    @property
    def series(
        self,
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint32]]: ...

def sample(
    dataset: Mapping[str, Any], num_requests: int, request_rate: float, seed: int
) -> tuple[
    npt.NDArray[np.uint64],
    npt.NDArray[np.uint32],
    npt.NDArray[np.uint32],
    npt.NDArray[np.uint16],
    tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]] | None,
    int | None,
]: ...
def probe(
    settings: dict[str, Any],
    law: Mapping[str, Any],
    arrival_ns: npt.NDArray[np.uint64],
    prompt: npt.NDArray[np.uint32],
    output: npt.NDArray[np.uint32],
    every: int,
) -> dict[str, npt.NDArray[Any]]: ...
def batch(
    settings: dict[str, Any],
    law: Mapping[str, Any],
    dataset: Mapping[str, Any],
    *,
    request_rate: float,
    horizon_ns: int,
    runs: int,
    first_seed: int,
    lengths_known: bool,
    typed: bool,
    threads: int = 1,
) -> dict[str, npt.NDArray[Any]]: ...
def group_types(
    prompt: npt.NDArray[np.uint32], output: npt.NDArray[np.uint32], rate: float, classes: int
) -> tuple[list[tuple[int, int, float]], npt.NDArray[np.uint16]]: ...
def iteration_seconds(
    law: Mapping[str, Any], *, decodes: int = 0, decode_kv: int = 0, chunks: Sequence[tuple[int, int]] = ...
) -> float: ...
def run(
    settings: dict[str, Any],
    law: Mapping[str, Any],
    arrival_ns: npt.NDArray[np.uint64],
    prompt: npt.NDArray[np.uint32],
    output: npt.NDArray[np.uint32],
    labels: npt.NDArray[np.uint16],
    *,
    lengths_known: bool,
    typed: bool,
    max_tokens: int | None,
    max_concurrency: int | None,
    overhead_ns: int,
    step_jitter: float = 0.0,
    seed: int = 0,
    steps_reported: bool = False,
    learned: Mapping[str, Any] | None = None,
    predicted: Sequence[int] | None = None,
    predicted_log_error: float = 0.0,
    classes: Sequence[int] | None = None,
    priorities: Sequence[int] | None = None,
    tenants: Sequence[int] | None = None,
    follows: tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]] | None = None,
    system: int | None = None,
    hash_ids: tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], int] | None = None,
    acceptance: Sequence[float] = (),
    transfer: tuple[float, float, float] | None = None,
    callback: Callable[[int], object] | None = None,
) -> Run: ...
def pools(
    prefill: tuple[dict[str, Any], bool],
    decode: tuple[dict[str, Any], bool],
    law: Mapping[str, Any],
    decode_law: Mapping[str, Any],
    arrival_ns: npt.NDArray[np.uint64],
    prompt: npt.NDArray[np.uint32],
    output: npt.NDArray[np.uint32],
    *,
    transfer: tuple[float, float, float],
    max_tokens: int | None,
    overhead_ns: int,
) -> tuple[Run, Run]: ...
