"""`simulate_pools`: one engine that prefills and one that decodes, with a transfer of KV between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core import _core, hardware
from wait_core.hardware import A100, kv_cache_of
from wait_core.simulation.run import LENGTHS_KNOWN, Report, Transfer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wait_core.workload import Requests


@dataclass(frozen=True, kw_only=True)
class Pools:
    """The results of two engines in series.

    Attributes
    ----------
    prefill : Report
        The engine that computes prompts, where every request ends with its first token.
    decode : Report
        The engine that computes the other tokens, as clients see it: a request arrives when it reaches the first
        engine, and its first token comes from there.

    """

    prefill: Report
    decode: Report


def simulate_pools(
    requests: Requests,
    *,
    transfer: Transfer,
    prefill: Mapping[str, Any],
    decode: Mapping[str, Any],
    max_tokens: int | None = None,
    overhead_s: float = 0.0,
) -> Pools:
    """Simulate an open loop of requests through an engine that prefills and one that decodes.

    Each represents its share of a pool. The engines run in series: the second takes over the prompt and the first
    token when the first engine has computed it, takes memory for it, and waits for the transfer of the prompt's KV.

    Parameters
    ----------
    requests : Requests
        What is offered; clients that wait for answers would need both engines at once and are refused.
    transfer : Transfer
        How KV is transferred from one engine to the other.
    prefill, decode : mapping
        Settings of each core (policy, kv_blocks, ...), with its `iteration_time`: see `simulate`. Each policy knows the
        law; it knows output lengths where it is defined so, the first engine's policy that they are 1.
    max_tokens : int, optional
        Outputs end there.
    overhead_s : float
        Time added to each iteration of either, s.

    Returns
    -------
    Pools

    Raises
    ------
    WaitCoreError
        A value is refused; the message names it.
    StalledError
        A policy left requests waiting forever.

    """
    if not (np.isfinite(overhead_s) and overhead_s >= 0):
        raise _core.WaitCoreError(f"overhead_s = {overhead_s}: must be finite and at least 0")
    if requests.follows is not None:
        raise _core.WaitCoreError("requests: they follow one another, which two engines in series cannot simulate")
    laws, engines = [], []
    for given in (prefill, decode):
        law = hardware.iteration_time(given.get("iteration_time", A100))
        settings: dict[str, Any] = {"policy": "vllm", "block_size": 16} | dict(given) | {"iteration_time": law}
        settings |= kv_cache_of(law, settings)
        laws.append(law)
        engines.append(settings)
    runs = _core.pools(
        (engines[0], engines[0]["policy"] in LENGTHS_KNOWN),
        (engines[1], engines[1]["policy"] in LENGTHS_KNOWN),
        laws[0],
        laws[1],
        requests.arrival_ns,
        requests.prompt,
        requests.output,
        transfer=transfer.columns(),
        max_tokens=max_tokens,
        overhead_ns=round(overhead_s * 1e9),
    )
    first, second = (
        Report(
            policy=settings["policy"],
            workload=requests.name,
            seed=0,
            settings=settings,
            run=run,
            dropped=requests.dropped,
            notes=requests.notes,
        )
        for settings, run in zip(engines, runs, strict=True)
    )
    return Pools(prefill=first, decode=second)
