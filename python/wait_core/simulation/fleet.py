"""A fleet for `simulate`: how many replicas, which router, and what happens to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from wait_core import hardware
from wait_core._core import ROUTERS, WaitCoreError
from wait_core.hardware import kv_cache_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST_REPLICAS = 1 << 16
"""Most replicas of a fleet."""


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


def described(
    settings: Mapping[str, Any],
    law: Mapping[str, Any],
    *,
    told: bool,
    replicas: int | Sequence[Mapping[str, Any]],
    router: str | Mapping[str, Any],
    staleness_s: float,
    changes: Sequence[Change],
    seed: int,
) -> dict[str, Any]:
    """Return the fleet as the core reads it; `told` says whether policies know the law of their engine."""
    if isinstance(replicas, int):
        if not 1 <= replicas <= MOST_REPLICAS:
            raise WaitCoreError(f"replicas = {replicas}: must be between 1 and {MOST_REPLICAS}")
        engines = [engine_of(settings, law, told=told)] * replicas
    else:
        engines = [engine_of(dict(settings) | dict(own), law, told=told) for own in replicas]
    if not 0 <= staleness_s <= 1e9:
        raise WaitCoreError(f"staleness_s = {staleness_s}: must be between 0 and 1e9 s")
    routing = {"router": router} if isinstance(router, str) else dict(router)
    name = routing.pop("router", "forecast")
    if name not in ROUTERS:
        raise WaitCoreError(f"router = {name!r}: one of {', '.join(ROUTERS)}")
    for change in changes:
        if not 0 <= change.at_s <= 1e9:
            raise WaitCoreError(f"changes: at_s = {change.at_s}: must be between 0 and 1e9 s")
    return {
        "engines": engines,
        "router": name,
        "seed": seed,
        "routing": routing,
        "staleness_ns": round(staleness_s * 1e9),
        "changes": [
            {"at_ns": round(change.at_s * 1e9), "replica": change.replica, "kind": change.kind} for change in changes
        ],
    }


def engine_of(settings: Mapping[str, Any], law: Mapping[str, Any], *, told: bool) -> tuple[dict[str, Any], Any]:
    """Return the settings of one engine and its law, which a replica may have for itself."""
    core = dict(settings)
    given = core.pop("iteration_time", None)
    own = dict(law) if given is None else hardware.iteration_time(given)
    core["iteration_time"] = own if told else None
    return core | kv_cache_of(own, core), own
