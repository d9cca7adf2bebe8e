"""GPUs compared for one traffic: how many each kind takes, what that costs, and how much room is left."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wait_core import _core
from wait_core.checked import checked
from wait_core.planning.search import least
from wait_core.simulation.trial import Engine, figures, saturated
from wait_core.workload import Traffic

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from wait_core.hardware import Deployment
    from wait_core.workload import Dataset, Requests, Trace

MOST = 16
"""Replicas are added for an objective up to this many times those that the utilisation requires."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What one kind of GPU offers for the traffic. Rates in requests/s, money in dollars.

    Attributes
    ----------
    deployment : Deployment
        One replica.
    request_rate : float
        Of the traffic, all replicas together.
    saturated_rate : float
        Rate that a saturated replica carries.
    replicas, gpus : int or None
        How many meet utilisation and objective; None where no number of replicas meets the objective.
    rate_each, utilisation : float
        Of one replica, at that number (at the fewest for the utilisation, if the objective is not met).
    goodput : float or None
        Share of the requests that meet the objective; None without one.
    ttft_s, tpot_s : float
        Means, s.
    dollars_per_hour, dollars_per_million_output_tokens, dollars_per_million_tokens : float or None
        Of all GPUs; None without a price.

    """

    deployment: Deployment
    request_rate: float
    saturated_rate: float
    replicas: int | None
    gpus: int | None
    rate_each: float
    utilisation: float
    goodput: float | None
    ttft_s: float
    tpot_s: float
    dollars_per_hour: float | None
    dollars_per_million_output_tokens: float | None
    dollars_per_million_tokens: float | None

    @property
    def headroom(self) -> float:
        """By how much the traffic may grow before the replicas are saturated, as a share of it."""
        return 1.0 / self.utilisation - 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, the deployment by its name."""
        plain = dict(vars(self)) | {"headroom": self.headroom}
        each: Deployment = plain.pop("deployment")
        names = {"deployment": each.name, "gpu": each.gpu, "model": each.model}
        return names | {"tensor_parallel_size": each.tensor_parallel_size} | plain


@checked
def offers(
    deployments: Sequence[Deployment],
    *,
    prices: Sequence[float | None] | None = None,
    types: Sequence[tuple[int, int, float]] | None = None,
    dataset_name: str | Dataset | None = None,
    dataset_path: Trace | str | os.PathLike[str] | None = None,
    requests: Requests | None = None,
    request_rate: float | None = None,
    num_prompts: int | None = None,
    seed: int = 0,
    runs: int = 3,
    policy: str = "adaptive",
    utilisation: float = 0.8,
    slo_ttft_ms: float | None = None,
    slo_tpot_ms: float | None = None,
    attainment: float = 0.95,
) -> list[Offer]:
    """Compare deployments for one traffic, that of all replicas together.

    Every replica gets an equal share of the requests, at random. The number of replicas is the least at which each
    stays at or below `utilisation` of what it carries when saturated and, with an objective, `attainment` of the
    requests meet it.

    Parameters
    ----------
    deployments : sequence of Deployment
        What is compared.
    prices : sequence of float, optional
        Dollars per GPU and hour, one for each deployment.
    types, dataset_name, dataset_path, requests, request_rate, num_prompts, seed, runs, policy
        As in `wait_core.plan`; here the rate is that of the whole fleet.
    utilisation : float
        Share of the saturated rate, in (0, 1).
    slo_ttft_ms, slo_tpot_ms : float, optional
        The objective: first token and time per token, ms.
    attainment : float
        Share of the requests that must meet it, in (0, 1].

    Raises
    ------
    WaitCoreError
        A value is refused; the message names it.

    """
    if not 0 < utilisation < 1:
        raise _core.WaitCoreError(f"utilisation = {utilisation}: must be above 0 and below 1")
    if not 0 < attainment <= 1:
        raise _core.WaitCoreError(f"attainment = {attainment}: must be above 0 and at most 1")
    asked = [None] * len(deployments) if prices is None else list(prices)
    if len(asked) != len(deployments):
        raise _core.WaitCoreError(f"prices: {len(asked)} for {len(deployments)} deployments")
    for price in asked:
        if price is not None and not (math.isfinite(price) and price >= 0):
            raise _core.WaitCoreError(f"price = {price}: must be finite and at least 0 dollars per GPU and hour")
    traffic = Traffic.of(
        types=types, dataset_name=dataset_name, dataset_path=dataset_path, requests=requests, rate=request_rate,
        count=num_prompts, seed=seed, runs=runs, num_types=8,
    )  # fmt: skip
    objective = {"slo_ttft_ms": slo_ttft_ms, "slo_tpot_ms": slo_tpot_ms}
    wanted = None if slo_ttft_ms is None and slo_tpot_ms is None else attainment
    return [
        _offer(
            each, price, traffic=traffic, policy=policy, utilisation=utilisation, objective=objective, attainment=wanted
        )
        for each, price in zip(deployments, asked, strict=True)
    ]


def _offer(
    each: Deployment,
    price: float | None,
    *,
    traffic: Traffic,
    policy: str,
    utilisation: float,
    objective: dict[str, float | None],
    attainment: float | None,
) -> Offer:
    cache = each.kv_cache()
    engine = Engine(
        policy=policy, iteration_time=each.iteration_time, kv_blocks=cache.pop("kv_blocks"), block_size=each.block_size,
        max_num_seqs=each.max_num_seqs, token_budget=each.token_budget, num_types=8, settings=cache,
    )  # fmt: skip
    longest = max(prompt + output for prompt, output, _ in traffic.exact)
    planner = _core.Planner(
        traffic.exact, each.iteration_time, capacity=engine.capacity(longest), max_running=each.max_num_seqs,
        token_budget=each.token_budget,
    )  # fmt: skip
    limit = saturated(engine, traffic.draw(traffic.rate), planner.capacity_bound()["requests"]).request_rate
    fewest = math.ceil(traffic.rate / (utilisation * limit) * (1 - 1e-12))
    seen: dict[int, dict[str, float]] = {}

    def meets(replicas: int) -> bool:
        seen[replicas] = _played(engine, traffic, traffic.rate / replicas, objective)
        return attainment is None or seen[replicas]["goodput"] >= attainment

    number = least(meets, fewest, MOST * fewest)
    shown = fewest if number is None else number
    hourly = None if price is None or number is None else number * each.tensor_parallel_size * price
    prompt, output = (sum(kind[i] * kind[2] for kind in traffic.exact) * 3600 / 1e6 for i in (0, 1))
    return Offer(
        deployment=each,
        request_rate=traffic.rate,
        saturated_rate=limit,
        replicas=number,
        gpus=None if number is None else number * each.tensor_parallel_size,
        rate_each=traffic.rate / shown,
        utilisation=traffic.rate / shown / limit,
        goodput=None if attainment is None else seen[shown]["goodput"],
        ttft_s=seen[shown]["ttft_s"],
        tpot_s=seen[shown]["tpot_s"],
        dollars_per_hour=hourly,
        dollars_per_million_output_tokens=None if hourly is None else hourly / output,
        dollars_per_million_tokens=None if hourly is None else hourly / (prompt + output),
    )


def _played(engine: Engine, traffic: Traffic, rate: float, objective: dict[str, float | None]) -> dict[str, float]:
    """Means over the runs at this rate: ttft_s, tpot_s, and the share that meets the objective."""
    reports = [engine.run(requests) for requests in traffic.draw(rate)]
    each = [figures(report) for report in reports]
    found = {name: sum(getattr(one, name) for one in each) / len(each) for name in ("ttft_s", "tpot_s")}
    if any(value is not None for value in objective.values()):
        met = [float(report.summary(**objective)["goodput"]) for report in reports]
        found["goodput"] = sum(met) / len(met)
    return found
