"""The largest rates of a mix of requests: in the fluid model, of any schedule, and within an objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wait_core import _core


@dataclass(frozen=True, kw_only=True)
class FluidEquilibrium:
    """The state in which every iteration is the same.

    Attributes
    ----------
    iteration_s : float
        Time of an iteration, s.
    kv_tokens : float
        M*: KV tokens in use.
    residents : float
        Requests in the KV cache.
    output_throughput : float
        Output tokens/s.
    fits : bool
        Whether the engine has room for it.

    """

    iteration_s: float
    kv_tokens: float
    residents: float
    output_throughput: float
    fits: bool

    @classmethod
    def of(cls, planner: _core.Planner) -> FluidEquilibrium | None:
        """Return the equilibrium of a workload, or None where there is none (x >= 1)."""
        found = planner.equilibrium()
        if found is None:
            return None
        return cls(
            iteration_s=found["iteration_time"],
            kv_tokens=found["memory"],
            residents=found["resident"],
            output_throughput=found["throughput"],
            fits=found["fits"],
        )


@dataclass(frozen=True, kw_only=True)
class FluidLimit:
    """The largest rate at which the mix has a fluid equilibrium that fits.

    Attributes
    ----------
    request_rate, output_throughput : float
        Requests/s and output tokens/s.
    iteration_s, kv_tokens : float
        Time of an iteration (s) and KV tokens in use there.
    binding : str
        What binds: compute, memory, max-running or token-budget.

    """

    request_rate: float
    output_throughput: float
    iteration_s: float
    kv_tokens: float
    binding: str

    @classmethod
    def of(cls, planner: _core.Planner) -> FluidLimit:
        """Return the limit of a workload."""
        found = planner.largest_stable_rate()
        return cls(
            request_rate=found["requests"],
            output_throughput=found["throughput"],
            iteration_s=found["iteration_time"],
            kv_tokens=found["memory"],
            binding=found["binding"],
        )


@dataclass(frozen=True, kw_only=True)
class Composition:
    """One kind of iteration in the best mixture: what it computes, and how often it runs.

    Attributes
    ----------
    prefill_tokens, decodes : int
        Prompt tokens, and requests that decode one token each.
    iterations : float
        How many run in a second.
    base_s : float
        What one of them takes, s, without what its KV tokens cost.

    """

    prefill_tokens: int
    decodes: int
    iterations: float
    base_s: float


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Shadow prices of the linear program: seconds of the GPU that one unit costs, 0 where a limit does not bind.

    Attributes
    ----------
    prefill_token, decode, decode_kv : float
        A prompt token computed, a token decoded, a KV token read by a decode.
    memory, residence : float
        A KV token held during an iteration, an iteration of a request.

    """

    prefill_token: float
    decode: float
    decode_kv: float
    memory: float
    residence: float


@dataclass(frozen=True, kw_only=True)
class CapacityBound:
    """The largest rate of the mix that any schedule could serve.

    Attributes
    ----------
    request_rate, output_throughput : float
        Requests/s and output tokens/s.
    mixture : tuple of Composition
        The iterations that serve it.
    prices : Prices
        What each resource costs there.

    """

    request_rate: float
    output_throughput: float
    mixture: tuple[Composition, ...]
    prices: Prices

    @classmethod
    def of(cls, planner: _core.Planner) -> CapacityBound:
        """Return the bound of a workload."""
        found = planner.capacity_bound()
        mixture = (
            Composition(
                prefill_tokens=each["prefill_tokens"],
                decodes=each["decodes"],
                iterations=each["iterations"],
                base_s=each["base_seconds"],
            )
            for each in found["mixture"]
        )
        return cls(
            request_rate=found["requests"],
            output_throughput=found["throughput"],
            mixture=tuple(mixture),
            prices=Prices(**found["prices"]),
        )


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """The most requests that any scheduler serves within an objective.

    Attributes
    ----------
    goodput, request_goodput : float
        As a share of the requests offered, and in requests/s.
    slo_ttft_ms, slo_tpot_ms : float or None
        The objective, ms.

    """

    goodput: float
    request_goodput: float
    slo_ttft_ms: float | None
    slo_tpot_ms: float | None

    @classmethod
    def of(cls, planner: _core.Planner, slo_ttft_ms: float | None, slo_tpot_ms: float | None) -> Goodput:
        """Return the bound of a workload within an objective."""
        found = planner.goodput_bound(slo_ttft_ms=slo_ttft_ms, slo_tpot_ms=slo_tpot_ms)
        return cls(
            goodput=found["goodput"],
            request_goodput=found["requests"],
            slo_ttft_ms=slo_ttft_ms,
            slo_tpot_ms=slo_tpot_ms,
        )
