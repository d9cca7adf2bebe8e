"""`sweep`: many simulations of one workload, over rates, policies, memory and seeds, on all cores."""

from __future__ import annotations

import os
import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wait_core._core import WaitCoreError
from wait_core.checked import checked
from wait_core.simulation.run import simulate
from wait_core.workload import load

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One simulation of a sweep.

    Attributes
    ----------
    policy : str
        Which policy.
    request_rate : float or None
        Requests/s; None for a trace at its own times.
    kv_blocks : int or None
        KV blocks; None for the memory that goes with the law.
    seed : int
        Of arrivals and lengths.

    """

    policy: str
    request_rate: float | None = None
    kv_blocks: int | None = None
    seed: int = 0


class _StoppedError(Exception):
    """Another cell has failed, or the iterator was closed."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@checked
def sweep(
    cells: Sequence[Cell],
    *,
    workers: int | None = None,
    slo_ttft_ms: float | None = None,
    slo_tpot_ms: float | None = None,
    **simulation: Any,
) -> Generator[tuple[Cell, dict[str, Any]]]:
    """Simulate every cell, and yield each with its figures when it ends.

    The core releases the GIL, so threads use all cores. Closing the iterator stops the simulations that are running.

    Parameters
    ----------
    cells : sequence of Cell
        What to simulate.
    workers : int, optional
        Simulations at once, at least 1; by default one a core.
    slo_ttft_ms, slo_tpot_ms : float, optional
        An objective, ms, as for `Report.summary`.
    **simulation
        Arguments of `simulate` that all cells share: dataset_name or dataset_path, num_prompts, settings, ...

    Yields
    ------
    cell : Cell
        One of those given, in the order in which they end.
    row : dict
        `Report.summary`, with the request_rate of the cell.

    Raises
    ------
    WaitCoreError
        A value is refused; the message names it.

    """
    if workers is not None and workers < 1:
        raise WaitCoreError(f"workers = {workers}: must be at least 1")
    source = simulation.get("dataset_path")
    if isinstance(source, str | os.PathLike):  # read once, not by each
        simulation["dataset_path"] = load(Path(source))
    stop = threading.Event()

    def watch(_completed: int) -> None:
        if stop.is_set():
            raise _StoppedError

    def play(cell: Cell) -> dict[str, Any]:
        watch(0)
        memory = {} if cell.kv_blocks is None else {"kv_blocks": cell.kv_blocks}
        # Each has a core to itself.
        shared = {"threads": 1} | simulation | memory
        report = simulate(cell.policy, request_rate=cell.request_rate, seed=cell.seed, progress=watch, **shared)
        return {"request_rate": cell.request_rate} | report.summary(slo_ttft_ms=slo_ttft_ms, slo_tpot_ms=slo_tpot_ms)

    with ThreadPoolExecutor(cores() if workers is None else workers) as pool:
        running = {pool.submit(play, cell): cell for cell in cells}
        try:
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
