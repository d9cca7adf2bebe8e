"""Fleets simulated for one traffic and objective, each once, and the smallest of them that meets it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core._core import WaitCoreError
from wait_core.planning.fleet_plan import FleetTrial, FluidSplit, objective_text
from wait_core.planning.search import least
from wait_core.simulation.fleet import MOST_REPLICAS, Disaggregated
from wait_core.simulation.run import simulate
from wait_core.simulation.sweep import cores
from wait_core.simulation.trial import WARM_UP

if TYPE_CHECKING:
    from collections.abc import Callable

    from wait_core.planning.fleet_bound import FleetBound
    from wait_core.simulation.run import Report
    from wait_core.simulation.transfer import Transfer
    from wait_core.workload import Requests
    from wait_core.workload.traffic import Traffic

MOST_TIMES = 4
"""The search ends at so many times the replicas of the fluid bound, and `MORE` of them."""
MORE = 4
FEWEST_HALF = 50
"""Requests of which a mean says whether queues grow."""
SPLITS = 5
"""Splits of a given number of replicas that are simulated: those nearest to the fluid ratio."""


class FleetSearch:
    """Fleets simulated for one traffic and objective, each once."""

    def __init__(
        self,
        *,
        traffic: Traffic,
        bound: FleetBound | None,
        slo: tuple[float | None, float | None],
        attainment: float,
        simulation: dict[str, Any],
        transfer: Transfer | None,
        gpus_each: int,
        num_routers: int,
        threads: int | None,
        progress: Callable[[FleetTrial], object] | None,
    ) -> None:
        self.played = traffic.draw(traffic.rate)
        self.trials: dict[tuple[int, int, str], FleetTrial] = {}
        self.transfer = transfer
        self._bound, self._slo, self._attainment = bound, slo, attainment
        self._simulation, self._gpus_each, self._progress = simulation, gpus_each, progress
        self._num_routers = num_routers
        threads = cores() if threads is None else threads
        at_once = min(threads, len(self.played))
        self._pool, self._threads = ThreadPoolExecutor(at_once), threads // at_once

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def fluid(self) -> FluidSplit:
        """Return the fewest replicas that could do, by the goodput bound; 1 where it knows nothing."""
        if self._bound is None:
            return FluidSplit(colocated=1, prefill=1, decode=1)
        found = self._bound.fewest(self._attainment, MOST_REPLICAS, pools=self.transfer is not None)
        if found is None:
            alone = self._bound.share("colocated", MOST_REPLICAS)
            raise WaitCoreError(
                f"goodput {objective_text(*self._slo)}: no number of GPUs meets it for {self._attainment:.4g} of the"
                f" requests; the best reached is {alone:.4g}, where each has a GPU to itself"
            )
        return found

    def trial(self, prefill: int, decode: int, router: str) -> FleetTrial:
        """Simulate a fleet, unless that was done before."""
        key = prefill, decode, router
        if key not in self.trials:
            self.trials[key] = self._simulate(*key, self._num_routers)
        return self.trials[key]

    def behind_one_router(self, trial: FleetTrial) -> FleetTrial:
        """Simulate the same fleet behind one router of its kind."""
        return self._simulate(trial.prefill, trial.decode, trial.router, 1)

    def _simulate(self, prefill: int, decode: int, router: str, num_routers: int) -> FleetTrial:
        replicas: int | Disaggregated = decode
        if prefill:
            assert self.transfer is not None  # noqa: S101  pools are tried with one
            replicas = Disaggregated(prefill=prefill, decode=decode, transfer=self.transfer)

        def run(requests: Requests) -> Report:
            fleet: dict[str, Any] = {"replicas": replicas, "router": router, "routers": num_routers}
            return simulate(requests=requests, threads=self._threads, **fleet, **self._simulation)

        each = [_delays(report) for report in self._pool.map(run, self.played)]
        met = [_shares(*delays, *self._slo) for delays in each]
        goodput, ttft_goodput, tpot_goodput = ([float(shares[i]) for shares in met] for i in range(3))
        ttft, tpot = (np.concatenate([delays[i] for delays in each]) for i in range(2))
        ttft, tpot = ttft[np.isfinite(ttft)], tpot[np.isfinite(tpot)]
        mean = float(np.mean(goodput))
        trial = FleetTrial(
            prefill=prefill,
            decode=decode,
            gpus=(prefill + decode) * self._gpus_each,
            router=router,
            goodput=mean,
            least_goodput=min(goodput),
            most_goodput=max(goodput),
            ttft_goodput=float(np.mean(ttft_goodput)),
            tpot_goodput=float(np.mean(tpot_goodput)),
            goodput_bound=None if self._bound is None else self._bound.fleet(prefill, decode),
            ttft_s=_of(np.mean, ttft),
            p99_ttft_s=_of(_p99, ttft),
            tpot_s=_of(np.mean, tpot),
            p99_tpot_s=_of(_p99, tpot),
            growth=float(np.mean([_growth(delays[0]) for delays in each])),
            meets=mean >= self._attainment,
        )
        if self._progress is not None:
            self._progress(trial)
        return trial

    def smallest(self, router: str, fluid: FluidSplit) -> list[FleetTrial]:
        """Return the smallest fleet of either kind that meets the objective, or the best that was simulated."""
        found = [self._colocated(router, fluid)]
        return [*found, self._apart(router, fluid)] if self.transfer is not None else found

    def _colocated(self, router: str, fluid: FluidSplit) -> FleetTrial:
        number = least(lambda replicas: self.trial(0, replicas, router).meets, fluid.colocated, _most(fluid.colocated))
        return self._best(router, pools=False) if number is None else self.trial(0, number, router)

    def _apart(self, router: str, fluid: FluidSplit) -> FleetTrial:
        fewest, low = fluid.prefill or 1, fluid.decode or 1

        def in_time(prefill: int) -> bool:
            # What the decode replicas do has no part in the first tokens, unless clients wait for answers.
            return self.trial(prefill, low + low // 2 + 1, router).ttft_goodput >= self._attainment

        prefill = least(in_time, fewest, _most(fewest))
        if prefill is None:
            return self._best(router, pools=True)
        decode = least(lambda number: self.trial(prefill, number, router).meets, low, _most(low))
        if decode is None:
            # The first tokens that are late by chance leave no room for others.
            prefill += 1
            decode = least(lambda number: self.trial(prefill, number, router).meets, low, _most(low))
        if decode is None:
            return self._best(router, pools=True)
        best = self.trial(prefill, decode, router)
        # One prefill replica more has to save more than one that decodes.
        while best.decode - 2 >= low and self.trial(best.prefill + 1, best.decode - 2, router).meets:
            best = self.trial(best.prefill + 1, best.decode - 2, router)
        return best

    def _best(self, router: str, *, pools: bool) -> FleetTrial:
        of_kind = [each for each in self.trials.values() if each.router == router and (each.prefill > 0) == pools]
        return max(of_kind, key=lambda each: (each.goodput, -each.gpus))

    def of(self, router: str, replicas: int, fluid: FluidSplit) -> list[FleetTrial]:
        """Simulate so many replicas, and return what is best of either kind."""
        found = [self.trial(0, replicas, router)]
        if self.transfer is None or replicas == 1:
            return found
        of_ratio = replicas * (fluid.prefill or 1) / ((fluid.prefill or 1) + (fluid.decode or 1))
        for prefill in sorted(range(1, replicas), key=lambda number: abs(number - of_ratio))[:SPLITS]:
            self.trial(prefill, replicas - prefill, router)
        return [*found, self._best(router, pools=True)]


def _most(low: int) -> int:
    return min(MOST_TIMES * low + MORE, MOST_REPLICAS)


def _delays(report: Report) -> tuple[Any, Any, Any]:
    """TTFT and TPOT of the requests of a run, s, and which of them ended; without those that met empty engines."""
    run = report.run
    arrival, first, finished = (
        column.astype(np.float64) for column in (run.arrival_ns, run.first_token_ns, run.finished_ns)
    )
    settled = slice(int(WARM_UP * len(arrival)), None)
    ended = run.finished_ns[settled] != np.iinfo(np.uint64).max
    gaps = run.output.astype(np.float64) - 1.0
    ttft = np.where(ended, 1e-9 * (first - arrival)[settled], np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):
        tpot = np.where(gaps > 0, 1e-9 * (finished - first) / gaps, np.nan)[settled]
    return ttft, np.where(ended, tpot, np.inf), ended


def _shares(ttft: Any, tpot: Any, ended: Any, slo_ttft_ms: float | None, slo_tpot_ms: float | None) -> tuple[Any, ...]:
    in_time = ended & (ttft <= (np.inf if slo_ttft_ms is None else 1e-3 * slo_ttft_ms))
    # A request of one token has no time per token.
    steady = ended & ((tpot <= (np.inf if slo_tpot_ms is None else 1e-3 * slo_tpot_ms)) | np.isnan(tpot))
    return np.mean(in_time & steady), np.mean(in_time), np.mean(steady)


def _growth(ttft: Any) -> float:
    ended = ttft[np.isfinite(ttft)]
    half = len(ended) // 2
    return float(np.mean(ended[half:]) / np.mean(ended[:half])) if half >= FEWEST_HALF else float("nan")


def _p99(values: Any) -> Any:
    return np.quantile(values, 0.99, method="inverted_cdf")


def _of(figure: Callable[[Any], Any], values: Any) -> float:
    return float(figure(values)) if len(values) else float("nan")
