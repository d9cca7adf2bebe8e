"""What `plan_fleet` says, and how it is written out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from wait_core.planning.plan_report import finite

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wait_core.planning.plan_report import PlannedEngine
    from wait_core.simulation.transfer import Transfer


@dataclass(frozen=True, kw_only=True)
class FleetTrial:
    """One fleet, simulated. Shares are of the requests offered, but for the first fifth, which met empty engines.

    Attributes
    ----------
    prefill, decode : int
        Replicas of each pool; without prefill replicas each of the others computes its prompts itself.
    gpus : int
        Of all replicas.
    router : str
        Of each pool.
    goodput, least_goodput, most_goodput : float
        Share that meets the objective: its mean over the runs, the least and the most.
    ttft_goodput, tpot_goodput : float
        Share whose first token is in time, whatever its other tokens are; and the other way round.
    goodput_bound : float or None
        Share that no scheduler exceeds on so many GPUs, however it routes; None with a prefix cache.
    ttft_s, p99_ttft_s, tpot_s, p99_tpot_s : float
        Means and 99th percentiles of the completed requests of all runs, s.
    growth : float
        Mean TTFT of the second half of the requests, over that of the first: far above 1 the queues have not settled.
        NaN of fewer than a hundred.
    meets : bool
        Whether `goodput` is the attainment that was asked for, or more.

    """

    prefill: int
    decode: int
    gpus: int
    router: str
    goodput: float
    least_goodput: float
    most_goodput: float
    ttft_goodput: float
    tpot_goodput: float
    goodput_bound: float | None
    ttft_s: float
    p99_ttft_s: float
    tpot_s: float
    p99_tpot_s: float
    growth: float
    meets: bool

    @property
    def split(self) -> str:
        """How many prefill and decode replicas, as "2P6D", or "colocated"."""
        return f"{self.prefill}P{self.decode}D" if self.prefill else "colocated"

    @property
    def replicas(self) -> int:
        """All of them."""
        return self.prefill + self.decode

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return {"gpus": self.gpus, "split": self.split, "replicas": self.replicas} | asdict(self)


def objective_text(slo_ttft_ms: float | None, slo_tpot_ms: float | None) -> str:
    """Return an objective as options have it: "ttft:2000 tpot:100"."""
    within = {"ttft": slo_ttft_ms, "tpot": slo_tpot_ms}
    return " ".join(f"{name}:{ms:g}" for name, ms in within.items() if ms is not None)


@dataclass(frozen=True, kw_only=True)
class FluidSplit:
    """The fewest replicas that could meet the objective if no request had to wait for another.

    Attributes
    ----------
    colocated : int
        Replicas that do both.
    prefill, decode : int or None
        Replicas of each pool; their ratio is that of the work. None where pools were not looked at.

    """

    colocated: int
    prefill: int | None
    decode: int | None


@dataclass(frozen=True, kw_only=True)
class FleetPlan:
    """What `plan_fleet` found. Names say units: _s seconds, _ms milliseconds; rates are per second.

    Attributes
    ----------
    workload : str
        What arrives.
    request_rate : float
        How much of it, at all replicas together, requests/s.
    engine : PlannedEngine
        One replica.
    gpus_each : int
        GPUs of a replica.
    slo_ttft_ms, slo_tpot_ms : float or None
        The objective, ms.
    attainment : float
        Share of the requests that must meet it.
    fluid : FluidSplit or None
        The lower bounds from which the search began; None with a prefix cache, of which they know nothing.
    trials : tuple of FleetTrial
        All fleets that were simulated, by GPUs.
    found : tuple of FleetTrial
        For fleets of either kind and each router the smallest that meets the objective, or the best where none does.
    num_routers : int
        Routers side by side, of each pool.
    session_affinity : bool
        Whether all turns of a conversation come to one of them.
    one_router : tuple of FleetTrial
        Where there are several routers, the fleets of `found` behind one: what several cost. Otherwise empty.
    recommended : FleetTrial or None
        The fewest GPUs, of equals the most goodput; None where none of a given size meets the objective.
    transfer : Transfer or None
        How KV goes from prefill to decode replicas; None where pools were not looked at.
    num_prompts, runs, simulated : int
        Requests of a run, runs of each fleet, requests that were simulated in all.
    span_s : float
        Time in which the requests of a run arrive, s.
    warnings : tuple of str
        Where the recommendation is less certain than it looks.
    dropped : dict of str to int
        Rows of a trace that were left out, by reason.
    notes : tuple of str
        What was assumed of a trace, or ignored in it.

    """

    workload: str
    request_rate: float
    engine: PlannedEngine
    gpus_each: int
    slo_ttft_ms: float | None
    slo_tpot_ms: float | None
    attainment: float
    fluid: FluidSplit | None
    trials: tuple[FleetTrial, ...]
    found: tuple[FleetTrial, ...]
    num_routers: int = 1
    session_affinity: bool = False
    one_router: tuple[FleetTrial, ...] = ()
    recommended: FleetTrial | None
    transfer: Transfer | None
    num_prompts: int
    runs: int
    simulated: int
    span_s: float
    warnings: tuple[str, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def objective(self) -> str:
        """The objective as options have it: "ttft:2000 tpot:100"."""
        return objective_text(self.slo_ttft_ms, self.slo_tpot_ms)

    def curves(self) -> dict[str, tuple[list[int], list[float]]]:
        """Return the most goodput by GPUs, rising: of each kind and router, simulated, and of each kind the bound."""
        best: dict[str, dict[int, float]] = {}
        for each in self.trials:
            kind = "prefill apart" if each.prefill else "colocated"
            shares = {f"{kind}, {each.router}": each.goodput}
            if each.goodput_bound is not None:
                shares[f"fluid bound, {kind}"] = each.goodput_bound
            for name, share in shares.items():
                of = best.setdefault(name, {})
                of[each.gpus] = max(share, of.get(each.gpus, 0.0))
        return {name: (sorted(of), [of[gpus] for gpus in sorted(of)]) for name, of in sorted(best.items())}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; what is infinite or NaN becomes None."""
        trials = {name: [each.to_dict() for each in getattr(self, name)] for name in ("trials", "found", "one_router")}
        best = None if self.recommended is None else self.recommended.to_dict()
        plain: dict[str, Any] = finite(asdict(self) | trials | {"recommended": best})
        return plain

    def to_json(self) -> str:
        """Return `to_dict` as one line of JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)
