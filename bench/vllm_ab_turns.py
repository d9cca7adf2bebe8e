"""The arms of bench/vllm_ab.py where others use the machine too: an engine a process, by turns, each on its own time.

The clock of an engine is the processor time that its steps take (tests/with_vllm/processor.py), and the arms work a
quarter of a second each in turn: what others do to the machine's caches and clock rate meets all arms alike. Arrivals
go by the same clock. For an overload, stock first serves the round's requests all at once: what that takes is what it
carries, and they then come so many times as fast.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import vllm_virtual
from contract import ROOT

sys.path.insert(0, str(ROOT / "tests" / "with_vllm"))
from processor import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from serving import Client, Served

CLIENTS: dict[str, Callable[..., list[Client]]] = {"turns": vllm_virtual.turns, "chat": vllm_virtual.chat}
"""Kinds of clients, as the settings name them: those of bench/vllm_virtual.py."""
SLICE_NS = 250_000_000
AT_ONCE = float("inf")
"""A rate of arrivals."""


def work(pipe: Connection, model: dict[str, Any], options: dict[str, Any]) -> None:
    """Be an arm: serve the clients that the pipe names, a slice of time for each message."""
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"  # of this process only: the one that started it has a log of its own
    with tempfile.TemporaryDirectory(prefix="wait-core-ab-") as folder:
        engine = Engine(model, options, Path(folder))
        pipe.send(None)
        try:
            while True:
                kind, sizes = pipe.recv()
                steps = engine.steps(CLIENTS[kind](**sizes))
                while (served := advance(steps)) is None:
                    pipe.send(None)
                    pipe.recv()
                pipe.send(served)
        except EOFError:
            return


def advance(steps: Generator[None, None, Served]) -> Served | None:
    """Take steps for one slice; return what was served when there are no more."""
    until_ns = time.process_time_ns() + SLICE_NS
    try:
        while time.process_time_ns() < until_ns:
            next(steps)
    except StopIteration as end:
        served: Served = end.value
        return served
    return None


class Turns:
    """The engines of a cell, alive through some of its rounds.

    Parameters
    ----------
    settings
        A block of bench/vllm_ab.json whose cells have `clients`.
    cell
        One of them.
    arms
        The options of each arm's engine, named as those of `vllm serve`; stock is first.
    share
        Of the cell's clients, those that are served.
    """

    def __init__(
        self, settings: Mapping[str, Any], cell: Mapping[str, Any], arms: Mapping[str, Any], share: float
    ) -> None:
        self.cell, self.share = cell, share
        self.stock = next(iter(arms))
        self.pipes: dict[str, Connection] = {}
        self.processes: list[BaseProcess] = []
        spawn = multiprocessing.get_context("spawn")  # what has imported torch is not to be forked
        for arm, own in arms.items():
            named = settings["serve"] | cell["serve"] | own
            options = {name.replace("-", "_"): value for name, value in named.items()}
            self.pipes[arm], theirs = spawn.Pipe()
            self.processes.append(spawn.Process(target=work, args=(theirs, settings["model"], options), daemon=True))
            self.processes[-1].start()
            theirs.close()
            self.pipes[arm].recv()  # one starts after the other
        self._served(list(arms), self._sizes(0, 0.5, AT_ONCE))

    def stop(self) -> None:
        """End the engines."""
        for pipe in self.pipes.values():
            pipe.close()
        for process in self.processes:
            process.join()

    def serve(self, arms: Sequence[str], number: int) -> dict[str, dict[str, float]]:
        """Serve a round's clients with each of `arms`, in turns; return their figures."""
        rate = float(self.cell.get("request_rate", AT_ONCE))
        if "load" in self.cell:
            rate = self.cell["load"] * carried(
                self._served([self.stock], self._sizes(number, 1.0, AT_ONCE))[self.stock]
            )
        found = self._served(arms, self._sizes(number, 1.0, rate))
        figures = {arm: figured(served, self.cell.get("ttft_target")) for arm, served in found.items()}
        if "load" in self.cell:
            for each in figures.values():
                each["load"] = rate / carried(found[self.stock])
        return figures

    def _sizes(self, number: int, share: float, rate: float) -> dict[str, Any]:
        """Return what a round's clients are made of."""
        sizes = dict(self.cell["sizes"])
        counted = "count" if "count" in sizes else "users"
        sizes[counted] = round(share * self.share * sizes[counted])
        return sizes | {"seed": number} | ({"rate": rate} if counted == "count" else {})

    def _served(self, arms: Sequence[str], sizes: Mapping[str, Any]) -> dict[str, Served]:
        """Let `arms` serve clients, in turns."""
        messages: dict[str, Any] = dict.fromkeys(arms, (self.cell["clients"], sizes))
        found: dict[str, Served] = {}
        while messages:
            for arm in list(messages):
                self.pipes[arm].send(messages[arm])
                messages[arm] = None
                if (served := self.pipes[arm].recv()) is not None:
                    found[arm] = served
                    del messages[arm]
        return found


def carried(served: Served) -> float:
    """Return the requests per second that were served, to the last one's end."""
    return len(served.output) * served.throughput / float(served.output.sum())


def figured(served: Served, target_s: float | None) -> dict[str, float]:
    """Return the figures of a run under the names that `vllm bench serve` has for them, and the share in time."""
    ttft, e2e = served.ttft, served.e2e
    figures = {
        "completed": len(served.output),
        "total_output_tokens": served.output.sum(),
        "duration": served.output.sum() / served.throughput,
        "output_throughput": served.throughput,
        "mean_ttft_ms": 1e3 * ttft.mean(),
        "p99_ttft_ms": 1e3 * np.quantile(ttft, 0.99),
        "mean_e2el_ms": 1e3 * e2e.mean(),
        "p99_e2el_ms": 1e3 * np.quantile(e2e, 0.99),
        "preemptions": served.preemptions,
    }
    if target_s is not None:
        figures["in_time"] = served.in_time(target_s)
    return {name: float(value) for name, value in figures.items()}
