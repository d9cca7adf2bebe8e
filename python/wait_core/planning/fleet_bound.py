"""How much of the traffic no fleet of a size can serve in time: the goodput bound, for replicas of either kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wait_core import _core
from wait_core.planning.fleet_plan import FluidSplit
from wait_core.planning.search import least

if TYPE_CHECKING:
    from wait_core.simulation.trial import Engine
    from wait_core.workload.traffic import Types

MOST_TYPES = 2000
"""Pairs of lengths of the linear program, which takes a time that grows with their square."""


class FleetBound:
    """The goodput that no scheduler exceeds on so many replicas, behind routers that waste nothing.

    Parameters
    ----------
    types : list of (prompt, output, rate)
        The traffic of all replicas together: every pair of lengths. Of more than `MOST_TYPES` as many are taken, evenly
        through their order.
    engine : Engine
        One replica.
    slo_ttft_ms, slo_tpot_ms : float or None
        The objective, ms.

    """

    def __init__(self, types: Types, engine: Engine, slo_ttft_ms: float | None, slo_tpot_ms: float | None) -> None:
        ordered = sorted((kind for kind in types if kind[2] > 0), key=lambda kind: kind[1::-1])
        few = ordered[:: -(-len(ordered) // MOST_TYPES)]
        scale = sum(rate for *_, rate in ordered) / sum(rate for *_, rate in few)
        whole = [(prompt, output, rate * scale) for prompt, output, rate in few]
        prompts = [(prompt, 1, rate) for prompt, _, rate in whole]
        # Requests of one token do not come to a decode replica.
        rest = [(prompt + 1, output - 1, rate) for prompt, output, rate in whole if output > 1]
        self._engine = engine
        self._asked = {
            "colocated": (whole, "vllm", slo_ttft_ms, slo_tpot_ms),
            "prefill": (prompts, "vllm", slo_ttft_ms, None),
            "decode": (rest, "decode-only", None, slo_tpot_ms),
        }
        self._share_decoded = sum(rate for *_, rate in rest) / sum(rate for *_, rate in whole)
        self._known: dict[tuple[str, float], float] = {}

    def share(self, kind: str, replicas: float) -> float:
        """Return the largest share in time with so many replicas that are "colocated", "prefill" or "decode"."""
        if (kind, replicas) not in self._known:
            self._known[kind, replicas] = self._bound(kind, replicas)
        return self._known[kind, replicas]

    def _bound(self, kind: str, replicas: float) -> float:
        types, convention, slo_ttft_ms, slo_tpot_ms = self._asked[kind]
        if not types:
            return 1.0
        engine = self._engine
        planner = _core.Planner(
            [(prompt, output, rate / replicas) for prompt, output, rate in types], engine.iteration_time,
            capacity=engine.capacity(max(prompt + output for prompt, output, _ in types)),
            max_running=engine.max_num_seqs, token_budget=engine.token_budget, convention=convention,
        )  # fmt: skip
        found = planner.goodput_bound(slo_ttft_ms=slo_ttft_ms, slo_tpot_ms=slo_tpot_ms)["goodput"]
        return 1.0 - self._share_decoded * (1.0 - found) if kind == "decode" else float(found)

    def fleet(self, prefill: int, decode: int) -> float:
        """Return the bound of a fleet; without prefill replicas those that decode do both."""
        if prefill == 0:
            return self.share("colocated", decode)
        return min(self.share("prefill", prefill), self.share("decode", decode))

    def fewest(self, attainment: float, most: int, *, pools: bool) -> FluidSplit | None:
        """Return the fewest replicas whose bound is `attainment`; None where more than `most` have it."""

        def number(kind: str) -> int | None:
            # What is to be all of them may be a rounding below it.
            return least(lambda replicas: self.share(kind, replicas) >= attainment - 1e-6, 1, most)

        colocated = number("colocated")
        if colocated is None:
            return None
        prefill, decode = (number("prefill"), number("decode")) if pools else (None, None)
        return FluidSplit(colocated=colocated, prefill=prefill, decode=decode)
