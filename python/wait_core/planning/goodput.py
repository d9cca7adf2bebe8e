"""The largest goodput that any scheduler reaches within an objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wait_core import _core, hardware
from wait_core.checked import checked
from wait_core.hardware import A100, kv_cache_of
from wait_core.hardware.kv_groups import context_tokens
from wait_core.planning.rates import Goodput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wait_core.workload import Requests


@checked
def goodput_bound(
    requests: Requests,
    slo_ttft_ms: float | None = None,
    slo_tpot_ms: float | None = None,
    *,
    iteration_time: str | Mapping[str, Any] = A100,
    kv_blocks: int | None = None,
    block_size: int = 16,
    max_num_seqs: int = 256,
    token_budget: int = 2048,
) -> float:
    """Return the share of these requests, at their rate, that no scheduler exceeds within an objective (ms).

    The linear program of `Planner.goodput_bound` over every pair of lengths; the other arguments are those of `plan`.
    """
    law = hardware.iteration_time(iteration_time)
    cache: dict[str, Any] = (
        kv_cache_of(law, {"block_size": block_size}) if kv_blocks is None else {"kv_blocks": kv_blocks}
    )
    groups, longest = cache.get("kv_groups", [{"kind": "full"}]), int((requests.prompt + requests.output).max())
    capacity = context_tokens(cache["kv_blocks"], block_size, groups, longest)
    planner = _core.Planner(
        requests.types(len(requests))[0], law, capacity=capacity, max_running=max_num_seqs,
        token_budget=token_budget,
    )  # fmt: skip
    return Goodput.of(planner, slo_ttft_ms, slo_tpot_ms).goodput
