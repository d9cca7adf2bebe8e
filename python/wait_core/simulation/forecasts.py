"""`probe`: the KV use that a policy forecasts for its residents on a simulated GPU, and the actual one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from wait_core import _core, hardware
from wait_core.hardware import A100, kv_cache_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from wait_core.settings.types import EngineSettings
    from wait_core.workload import Requests


@dataclass(frozen=True, kw_only=True)
class Forecasts:
    """Forecasts of KV tokens and the truth: the same residents at their true lengths, with no later admissions.

    Attributes
    ----------
    capacity : int
        KV tokens that the cache holds.
    horizon : array of shape (horizons,)
        Iterations ahead.
    completed, residents : arrays of shape (probes,)
        Requests completed before the probe, and resident at it.
    held : array of shape (probes,)
        Whether the next request was held because the forecast left no room: memory binds.
    mean, deviation : arrays of shape (probes, horizons)
        KV tokens expected, and their standard deviation.
    overflow : array of shape (probes, horizons)
        Probability that the residents overflow the cache up to the horizon.
    truth, peak : arrays of shape (probes, horizons)
        KV tokens in whole blocks that they will hold at the horizon, and at most up to it.

    """

    capacity: int
    horizon: npt.NDArray[np.uint32]
    completed: npt.NDArray[np.uint64]
    residents: npt.NDArray[np.uint32]
    held: npt.NDArray[np.bool_]
    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]
    overflow: npt.NDArray[np.float64]
    truth: npt.NDArray[np.uint64]
    peak: npt.NDArray[np.uint64]

    @property
    def overflowed(self) -> npt.NDArray[np.bool_]:
        """Whether the residents overflow the cache up to the horizon; shape (probes, horizons)."""
        return np.asarray(self.peak > self.capacity)

    @property
    def peak_ratio(self) -> npt.NDArray[np.float64]:
        """Largest mean over the horizons / true peak; shape (probes,)."""
        return np.asarray(self.mean.max(axis=1) / self.peak[:, -1])


def probe(
    requests: Requests,
    *,
    policy: str = "adaptive",
    every: int = 64,
    iteration_time: str | Mapping[str, Any] = A100,
    **settings: Unpack[EngineSettings],
) -> Forecasts:
    """Simulate `requests` to completion, output lengths hidden, and record the forecast at regular intervals.

    Parameters
    ----------
    requests : Requests
        What to offer.
    policy : str
        A policy that forecasts; others give no probes.
    every : int
        Iterations between two probes.
    iteration_time, settings
        As for `wait_core.simulate`.

    Raises
    ------
    WaitCoreError
        A value is refused; the message names it.

    """
    if every < 1:
        raise _core.WaitCoreError(f"every = {every}: must be at least 1 iteration")
    law = hardware.iteration_time(iteration_time)
    core: dict[str, Any] = {"policy": policy, "block_size": 16, "iteration_time": law, **settings}
    core |= kv_cache_of(law, core)
    columns = _core.probe(core, law, requests.arrival_ns, requests.prompt, requests.output, every)
    shape = len(columns["completed"]), len(columns["horizon"])
    for name in ("mean", "deviation", "overflow", "truth", "peak"):
        columns[name] = columns[name].reshape(shape)
    return Forecasts(capacity=core["kv_blocks"] * core["block_size"], **columns)
