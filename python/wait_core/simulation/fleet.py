"""A fleet for `simulate`: how many replicas, which router, and what happens to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from wait_core import hardware
from wait_core._core import ROUTERS, WaitCoreError
from wait_core.hardware import kv_cache_of
from wait_core.hardware.iteration_time import model_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from wait_core.simulation.transfer import Transfer

MOST_REPLICAS = 1 << 16
"""Most replicas of a fleet."""

MOST_ROUTERS = 1024
"""Most routers of a pool of replicas."""

MOST_THREADS = 1024
"""Most threads."""

ROUTER = "forecast"
"""The router of a fleet where none is named."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """Something that happens to a replica.

    Attributes
    ----------
    at_s : float
        When, s.
    replica : int
        Which, counted from 0.
    kind : {"fail", "drain", "join"}
        It is gone immediately, and its requests start over elsewhere; it accepts no more requests and finishes those it
        has; it becomes available, empty. A replica whose first change is "join" was not there before.

    """

    at_s: float
    replica: int
    kind: Literal["fail", "drain", "join"]


@dataclass(frozen=True, kw_only=True)
class Disaggregated:
    """A fleet in which prefill and decode are apart: so many prefill and decode replicas (xPyD).

    A prefill replica computes prompts: each request has its first token there. A decode replica is then chosen, takes
    memory for it, is sent the KV of the prompt, and decodes the rest. Prefill replicas are counted first.

    Attributes
    ----------
    prefill, decode : int or sequence of mapping
        Each pool, as `replicas` of `simulate`. Without prefill replicas all requests come with their KV: the
        decode-only setting of arXiv 2504.11320, where the transfer takes no time. Decode replicas cache no prefixes,
        and where the policy needs types, prefill replicas run "vllm".
    transfer : Transfer
        How KV is transferred.
    prefill_router : str, optional
        The router of the prefill replicas; by default that of `simulate`, which is the decode replicas'.

    """

    prefill: int | Sequence[Mapping[str, Any]]
    decode: int | Sequence[Mapping[str, Any]]
    transfer: Transfer
    prefill_router: str | None = None


def described(
    settings: Mapping[str, Any],
    law: Mapping[str, Any],
    *,
    law_known: bool,
    typed: bool,
    replicas: int | Sequence[Mapping[str, Any]] | Disaggregated,
    router: str | Mapping[str, Any],
    routers: int,
    sessions: npt.NDArray[np.uint32] | None,
    staleness_s: float,
    changes: Sequence[Change],
    threads: int | None,
    seed: int,
) -> dict[str, Any]:
    """Return the fleet as the core reads it.

    `law_known` says whether policies know the law of their engine, `typed` whether they need types, and `sessions`,
    of shape (n,), is the conversation of each request where all turns of one come to one router.
    """
    routing = {"router": router} if isinstance(router, str) else dict(router)
    name = known(routing.pop("router", ROUTER))
    prefill = None
    if isinstance(replicas, Disaggregated):
        first = dict(settings)
        if typed:
            first.pop("types", None)
            first["policy"] = "vllm"
        before = pool("prefill", replicas.prefill, first, law, law_known=law_known, least=0)
        later = {**settings, "prefix_caching": False}
        engines = before + pool("decode", replicas.decode, later, law, law_known=law_known, least=1)
        if before:
            prefill = (len(before), known(replicas.prefill_router or name))
    else:
        engines = pool("replicas", replicas, settings, law, law_known=law_known, least=1)
    _check_model([law for _, law in engines])
    if not 0 <= staleness_s <= 1e9:
        raise WaitCoreError(f"staleness_s = {staleness_s}: must be between 0 and 1e9 s")
    if not 1 <= routers <= MOST_ROUTERS:
        raise WaitCoreError(f"routers = {routers}: must be between 1 and {MOST_ROUTERS}")
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise WaitCoreError(f"threads = {threads}: must be between 1 and {MOST_THREADS}")
    for change in changes:
        if not 0 <= change.at_s <= 1e9:
            raise WaitCoreError(f"changes: at_s = {change.at_s}: must be between 0 and 1e9 s")
    return {
        "engines": engines,
        "router": name,
        "prefill": prefill,
        "seed": seed,
        "routing": routing,
        "staleness_ns": round(staleness_s * 1e9),
        "changes": [
            {"at_ns": round(change.at_s * 1e9), "replica": change.replica, "kind": change.kind} for change in changes
        ],
        "routers": routers,
        "sessions": [] if sessions is None else sessions.tolist(),
        "threads": threads,
    }


def known(router: str) -> str:
    """Return the name of a router, if it is one."""
    if router not in ROUTERS:
        raise WaitCoreError(f"router = {router!r}: one of {', '.join(ROUTERS)}")
    return router


def _check_model(laws: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a fleet in which two engines are known to serve different models."""
    first: tuple[int, str] | None = None
    for place, law in enumerate(laws):
        # Equal replicas share one law: it is looked up once.
        model = None if place and law is laws[place - 1] else model_of(law)
        if model is None:
            continue
        if first is None:
            first = place, model
        elif model != first[1]:
            raise WaitCoreError(
                f"iteration_time of replica {place}: a law of {model}, but that of replica {first[0]} is of {first[1]};"
                " a router serves one model"
            )


def pool(
    name: str,
    replicas: int | Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    law: Mapping[str, Any],
    *,
    law_known: bool,
    least: int,
) -> list[tuple[dict[str, Any], Any]]:
    """Return the engines of a pool, `least` or more, each with its law."""
    count = replicas if isinstance(replicas, int) else len(replicas)
    if not least <= count <= MOST_REPLICAS:
        raise WaitCoreError(f"{name} = {count}: must be between {least} and {MOST_REPLICAS}")
    if isinstance(replicas, int):
        return [engine_of(settings, law, law_known=law_known)] * count if count else []
    return [engine_of(dict(settings) | dict(own), law, law_known=law_known) for own in replicas]


def engine_of(settings: Mapping[str, Any], law: Mapping[str, Any], *, law_known: bool) -> tuple[dict[str, Any], Any]:
    """Return the settings of one engine and its law, which a replica may have for itself."""
    core = dict(settings)
    given = core.pop("iteration_time", None)
    own = dict(law) if given is None else hardware.iteration_time(given)
    core["iteration_time"] = own if law_known else None
    return core | kv_cache_of(own, core), own
