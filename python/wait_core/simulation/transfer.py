"""The transfer of KV from where a prompt was computed to where its output is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wait_core.hardware import A100, iteration_time, kv_bytes_of

if TYPE_CHECKING:
    from collections.abc import Mapping

BANDWIDTH = 50e9
"""Bytes/s to one GPU where nothing is said: a network card of 400 Gbit/s for each, as in DGX H100."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """The transfer of KV that was computed elsewhere.

    Attributes
    ----------
    bytes_per_token : float
        Bytes of KV a token, of all layers; where several GPUs serve a replica, those that each of them holds.
    bandwidth : float
        Bytes/s that the link of each GPU carries: the KV of one request at a time, in the order in which prompts are
        computed where it leaves, and in which memory is reserved where it arrives. Infinite: KV is there at once.
    latency_s : float
        Fixed time that each transfer adds, s.

    """

    bytes_per_token: float
    bandwidth: float
    latency_s: float = 0.0

    @staticmethod
    def of(
        law: str | Mapping[str, Any] = A100,
        *,
        bandwidth: float = BANDWIDTH,
        latency_s: float = 0.0,
        bytes_per_token: float | None = None,
        block_size: int = 16,
    ) -> Transfer:
        """Return the transfer of the KV of the model that goes with a law.

        Raises
        ------
        WaitCoreError
            No model goes with the law, and `bytes_per_token` is not given.

        """
        if bytes_per_token is None:
            # What takes no time may be of any size.
            endless = bandwidth == float("inf")
            bytes_per_token = 0.0 if endless else kv_bytes_of(iteration_time(law), block_size)
        return Transfer(bytes_per_token=bytes_per_token, bandwidth=bandwidth, latency_s=latency_s)

    def seconds(self, tokens: float) -> float:
        """Return how long the KV of so many tokens takes on links that are free."""
        return self.latency_s + tokens * self.bytes_per_token / self.bandwidth

    def columns(self) -> tuple[float, float, float]:
        """Return the three numbers."""
        return self.bytes_per_token, self.bandwidth, self.latency_s
