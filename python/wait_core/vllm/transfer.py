"""How a request of vLLM is reported to the core: a new one, and all those present when the core is exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.request import RequestStatus

from wait_core import WaitCoreError
from wait_core.vllm import kv_groups

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request

    from wait_core.vllm.config import Settings

LONGEST_S = 1e9
"""Bounds on a wait beyond this, some 30 years, are none."""
_NOTHING: Mapping[str, Any] = {}
_PRIORITY = SchedulingPolicy.PRIORITY


def declare(
    core: Any, number: int, request: Request, by: tuple[Scheduler, Settings], arrival_ns: int
) -> tuple[int, str] | None:
    """Add `request` to `core` with the lengths that the settings let it see; return how long it may wait, if bounded.

    Raises
    ------
    WaitCoreError
        Where the core refuses it.
    """
    scheduler, settings = by
    said = _said(request)
    longest = _longest_wait(said, settings) if said or settings.max_wait_s is not None else None
    prompt = request.num_prompt_tokens
    length = min(request.max_tokens, max(1, scheduler.max_model_len - prompt))
    more: dict[str, Any] = {}  # few requests have any of it
    # Where vLLM goes by arrival, it ignores priorities of its own; and policy `vllm` is vLLM.
    priority = request.priority if scheduler.policy is _PRIORITY else 0
    if said:
        more["tenant"] = _tenant(said, settings)
        if scheduler.policy is not _PRIORITY and settings.policy != "vllm":
            priority = _argument(said, "wait_core_priority", int)
    if priority:
        more["priority"] = max(-(2**63), min(2**63 - 1, priority))
    if request.has_encoder_inputs:
        more["encoder_blocks"] = kv_groups.encoder_blocks(scheduler, request)
    if settings.known_lengths and _length_is_known(request):
        more["output_tokens"] = length
    if longest is not None:
        more["max_wait_ns"] = longest[0]
    core.add(number, prompt, length if settings.use_max_tokens else None, now_ns=arrival_ns, **more)
    return longest


def move(
    core: Any, scheduler: Scheduler, requests: Mapping[int, Request], arrivals: Mapping[int, int], settings: Settings
) -> dict[int, WaitCoreError]:
    """Tell the fresh `core` of every request present, from what vLLM knows of each; return those it refuses.

    Residents come first, in the order of their admission, those whose KV is loaded after those that run, then the
    preempted, then the queue, each in vLLM's order.
    """
    numbers = {request.request_id: number for number, request in requests.items()}
    refused: dict[int, WaitCoreError] = {}
    # A report is read against the plan before it, so there has to be one.
    core.plan(max(arrivals.values(), default=0))

    def add(names: Iterable[str]) -> list[int]:
        added = []
        for name in names:
            number = numbers.pop(name, None)
            if number is None:
                continue
            try:
                declare(core, number, requests[number], (scheduler, settings), arrivals[number])
            except WaitCoreError as refusal:
                refused[number] = refusal
            else:
                added.append(number)
        return added

    running = add(request.request_id for request in scheduler.running)
    loading = add(request.request_id for request in scheduler.kv_holding_waiting)
    waiting = add([request.request_id for request in scheduler.waiting] + list(numbers))
    preempted = [
        number
        for number in waiting
        if requests[number].status == RequestStatus.PREEMPTED and requests[number].num_output_tokens
    ]
    placed = {"progress": running, "receiving": loading}
    core.complete(**{what: [(n, requests[n].num_computed_tokens) for n in those] for what, those in placed.items()})
    # A preempted request comes back with the output it has: it was resident, and lost its place.
    core.complete(progress=[(n, requests[n].num_prompt_tokens + requests[n].num_output_tokens - 1) for n in preempted])
    # The one sent back last stands first.
    core.complete(preempted=preempted[::-1], free_blocks=kv_groups.free_blocks(scheduler)())
    return refused


def broken_bound(core: Any, request: Request, settings: Settings) -> str:
    """Return which bound `request` breaks, which the core has just refused as one that would be late."""
    longest = _longest_wait(_said(request), settings)
    return "ttft_target" if longest is None or core.predicted_wait_ns <= longest[0] else longest[1]


def _said(request: Request) -> Mapping[str, Any]:
    """Return what the client says in ``vllm_xargs``."""
    params = request.sampling_params
    return (params is not None and params.extra_args) or _NOTHING


def _longest_wait(said: Mapping[str, Any], settings: Settings) -> tuple[int, str] | None:
    """Return how long a request may wait for its admission, ns, and what says so: the least of what does."""
    if settings.shadow:
        return None
    bounds = {"max_wait_s": settings.max_wait_s, "deadline": _argument(said, "wait_core_deadline", (int, float))}
    known = [(int(s * 1e9), name) for name, s in bounds.items() if s is not None and 0 <= s < LONGEST_S]
    return min(known, default=None)


def _argument(said: Mapping[str, Any], name: str, kind: Any) -> Any:
    """Return what is said under a name, None where that is nothing or of another kind."""
    value = said.get(name)
    return value if isinstance(value, kind) and not isinstance(value, bool) else None


def _tenant(said: Mapping[str, Any], settings: Settings) -> int:
    """Return the tenant that the client names, 0 where there is none of that number."""
    named = _argument(said, "wait_core_tenant", int) or 0
    return int(named) if 0 <= named < len(settings.core.get("tenant_weights") or ()) else 0


def _length_is_known(request: Request) -> bool:
    """Whether `request` ends at ``max_tokens`` and nowhere else, unless the client aborts it.

    One of a pooling model ends with its prompt: what is made of it takes the place of the one token that vLLM allows.
    """
    params = request.sampling_params
    return request.pooling_params is not None or (
        params is not None
        and params.ignore_eos
        and not params.stop
        and not params.stop_token_ids
        and params.repetition_detection is None
        and request.structured_output_request is None
    )
