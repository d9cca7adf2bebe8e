"""`simulate`: one policy, one workload, one simulated GPU."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from tqdm import tqdm

from wait_core import _core, hardware
from wait_core.checked import checked
from wait_core.hardware import A100, kv_cache_of
from wait_core.simulation import frames
from wait_core.simulation.fleet import ROUTER, Disaggregated, described
from wait_core.workload import Hints, Requests, offered

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt
    import polars as pl
    import pyarrow as pa

    from wait_core.settings.types import EngineSettings
    from wait_core.simulation.fleet import Change
    from wait_core.simulation.transfer import Transfer
    from wait_core.workload import Dataset, Trace

LENGTHS_KNOWN = frozenset({"wait", "clairvoyant"})
"""Policies that are defined for known output lengths; all others run with hidden ones by default."""

KNOWLEDGE = ("known", "learned", "hidden")
"""What a policy may know of the iteration-time law."""

MOST_SECONDS = 1e9
"""Longest overhead of an iteration: the range of nanoseconds in 64 bits allows for it."""

STALENESS_S = 0.1
"""Largest age of the router's view of a replica, s: vLLM's ranks report as often."""

TYPED = frozenset({"wait", "nested-wait"})
"""Policies that need request types."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of one simulation. Columns have one entry per request, in the order of arrival.

    Attributes
    ----------
    policy, workload : str
        What ran.
    seed : int
        Seed of the arrivals and lengths.
    settings : dict
        The settings of the core.
    run : Run
        The recorded columns: arrival_ns, first_token_ns, ..., and `series`.
    dropped : dict of str to int
        Rows of a trace that were left out, by reason.
    notes : tuple of str
        What was assumed of a trace, or ignored in it.
    router : str, optional
        Which router a fleet had; `run.fleet` then says which replica served what, and `settings` are those of the
        first replica that decodes.
    prefill_replicas : int, optional
        How many of the replicas, the first, only computed prompts.

    """

    policy: str
    workload: str
    seed: int
    settings: dict[str, Any]
    run: _core.Run
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    router: str | None = None
    prefill_replicas: int | None = None

    @property
    def name(self) -> str:
        """The name that tells it from other runs of the same requests: a fleet's router, else the policy."""
        return self.policy if self.router is None else self.router

    @property
    def ttft_s(self) -> npt.NDArray[np.float64]:
        """Time to first token of the completed requests, s."""
        return self._seconds(self.run.first_token_ns)

    @property
    def e2el_s(self) -> npt.NDArray[np.float64]:
        """Arrival to completion of the completed requests, s."""
        return self._seconds(self.run.finished_ns)

    def _seconds(self, until_ns: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
        done = self.run.finished_ns != np.iinfo(np.uint64).max
        return np.asarray((until_ns[done] - self.run.arrival_ns[done]) * 1e-9)

    @property
    def kv_over_time(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Times in s and KV tokens in use (whole blocks) from each on."""
        at_ns, blocks, _, _ = self.run.series
        return at_ns.astype(np.float64) * 1e-9, blocks.astype(np.float64) * self.settings["block_size"]

    def summary(self, *, slo_ttft_ms: float | None = None, slo_tpot_ms: float | None = None) -> dict[str, Any]:
        """Return the figures under the keys of `vllm bench serve`, and further ones.

        With a service-level objective: request_goodput (requests/s that met it) and goodput (share of those offered).
        """
        named: dict[str, Any] = {"policy": self.policy, "workload": self.workload, "seed": self.seed}
        if (fleet := self.run.fleet) is not None:
            named |= {"router": self.router, "replicas": len(fleet["replicas"])}
            if self.prefill_replicas is not None:
                named["prefill_replicas"] = self.prefill_replicas
            named |= {key: fleet[key] for key in ("resent", "held", "held_s")}
        read = {"dropped": dict(self.dropped), "notes": list(self.notes)}
        return named | self.run.summary(slo_ttft_ms, slo_tpot_ms) | read

    def to_polars(self) -> pl.DataFrame:
        """Return the requests as a Polars data frame: one row a request, in the order of arrival.

        Its columns are listed in docs/results.md; null where a request never got that far.

        Raises
        ------
        WaitCoreError
            If polars is not installed: it comes with the extra `polars`.

        """
        return frames.to_polars(self.run)

    def to_arrow(self) -> pa.Table:
        """Return the requests as an Arrow table: the columns of `to_polars`.

        Its metadata has policy, workload, seed and settings, as JSON under the key wait_core.

        Raises
        ------
        WaitCoreError
            If pyarrow is not installed: it comes with the extra `arrow`.

        """
        about = {"policy": self.policy, "workload": self.workload, "seed": self.seed, "settings": self.settings}
        return frames.to_arrow(self.run, about)

    def to_json(self, **slo: float | None) -> str:
        """Return `summary` as one line of JSON; what was never observed is null."""
        return json.dumps(
            {
                key: None if isinstance(value, float) and np.isnan(value) else value
                for key, value in self.summary(**slo).items()
            }
        )


@checked
def simulate(
    policy: str = "adaptive",
    *,
    dataset_name: str | Dataset | None = None,
    dataset_path: Trace | str | os.PathLike[str] | None = None,
    requests: Requests | None = None,
    request_rate: float | None = None,
    num_prompts: int | None = None,
    seed: int = 0,
    burstiness: float = 1.0,
    max_concurrency: int | None = None,
    iteration_time: str | Mapping[str, Any] = A100,
    overhead_s: float = 0.0,
    step_jitter: float = 0.0,
    lengths: str | None = None,
    iteration_time_knowledge: str = "known",
    learned: Mapping[str, Any] | None = None,
    max_tokens: int | None = None,
    num_types: int = 8,
    hints: Hints | None = None,
    acceptance: Sequence[float] = (),
    transfer: Transfer | None = None,
    replicas: int | Sequence[Mapping[str, Any]] | Disaggregated | None = None,
    router: str | Mapping[str, Any] = ROUTER,
    routers: int = 1,
    session_affinity: bool = False,
    staleness_s: float = STALENESS_S,
    changes: Sequence[Change] = (),
    threads: int | None = None,
    progress: bool | Callable[[int], object] = False,
    **settings: Unpack[EngineSettings],
) -> Report:
    """Simulate one policy on one workload until every request has finished.

    Parameters
    ----------
    policy : str
        "adaptive", "vllm", ...: see docs/policies.md.
    dataset_name, dataset_path, requests
        The requests, exactly one of them: a named dataset, a trace, or a `Requests` object.
    request_rate : float, optional
        Mean requests/s; needed for a dataset (inf: all at once), scales the time of a trace.
    num_prompts : int, optional
        Number of requests (dataset: 1000; trace: all of it).
    seed, burstiness
        Of the arrivals, see `wait_core.workload`.
    max_concurrency : int, optional
        The client keeps at most this many requests under way.
    iteration_time : str or mapping
        How long an iteration takes on the simulated GPU, see `wait_core.hardware.iteration_time`.
    overhead_s : float
        Time added to each iteration, s.
    step_jitter : float
        Each iteration takes exp(s Z - s^2/2) times what the law says, Z standard normal and seeded by `seed`: noise of
        mean 1 whose relative standard deviation is about s, in [0, 1].
    lengths : {"known", "hidden"}, optional
        Whether the policy may see output lengths; by default as the policy is defined.
    iteration_time_knowledge : {"known", "learned", "hidden"}
        What the policy knows of `iteration_time`: the law itself; only how long each iteration took, from which
        "adaptive" learns the law (`report.run.iteration_time`); nothing.
    learned : mapping, optional
        What a scheduler of this policy has learned in an earlier run (`report.run.learned`).
    max_tokens : int, optional
        Declared for every request, whose output ends there (`finished_by_length` counts them); absent means the model's
        limit.
    num_types : int
        Most types for policies that need them, see `Requests.types`.
    hints : Hints, optional
        What the host passes with its requests: predicted lengths, labels, priorities.
    acceptance : sequence of float
        Speculative decoding: the probability that the first draft of a decode is accepted, that the first two are, and
        so on, as vLLM's acceptance rates by position. `num_speculative_tokens` defaults to their number.
    transfer : Transfer, optional
        The KV of every prompt but its last token is computed elsewhere, and transferred once its memory is reserved.
    replicas : int, sequence of mapping or Disaggregated, optional
        A fleet of so many engines, or of these: the settings in which each differs, and its `iteration_time`; or a pool
        that computes prompts and one that decodes. By default a single engine without a router.
    router : str or mapping
        Which replica a request goes to, one of `wait_core.fleet.ROUTERS`; or a mapping of that (`router`) and of
        settings of `wait_core.fleet.Router`.
    routers : int
        How many such routers there are, as processes side by side: each knows of the others' choices only what replicas
        report. Requests come to them in turn, as they are sent.
    session_affinity : bool
        The load balancer in front of several routers sends all turns of a conversation to one of them.
    staleness_s : float
        How old what the router knows of a replica is at most, s; 0: as of its last iteration. Half of it passes between
        two reports, half until one arrives. When a request ends the router sees itself.
    changes : sequence of Change
        Replicas that fail, drain or join.
    threads : int, optional
        Threads that advance the engines of a fleet, by default as many as there are cores. The results do not depend on
        them.
    progress : bool or callable
        Show a progress bar on standard error, if that is a terminal. A callable is called at intervals with the number
        of requests that have finished; an exception that it raises ends the simulation.
    **settings
        Settings of the core (kv_blocks, block_size, max_num_seqs, token_budget, watermark, ...): `wait-core settings`
        and docs/settings.md list them. `kv_blocks` and `kv_groups` default to what goes with the law.

    Returns
    -------
    Report

    Raises
    ------
    WaitCoreError
        A value is refused; the message names it.
    StalledError
        The policy left requests waiting forever.

    """
    wanted = offered(dataset_name, dataset_path, requests, request_rate, num_prompts, seed, burstiness)
    gpu = hardware.iteration_time(iteration_time)
    known = _lengths_known(policy, lengths)
    if num_types < 1:
        raise _core.WaitCoreError(f"num_types = {num_types}: must be at least 1")
    if iteration_time_knowledge not in KNOWLEDGE:
        rule = f"one of {', '.join(KNOWLEDGE)}"
        raise _core.WaitCoreError(f"iteration_time_knowledge = {iteration_time_knowledge!r}: {rule}")
    known_law = gpu if iteration_time_knowledge == "known" else None
    defaults: dict[str, Any] = {"policy": policy, "block_size": 16, "iteration_time": known_law}
    if acceptance:
        defaults["num_speculative_tokens"] = len(acceptance)
    core: dict[str, Any] = {**defaults, **settings}
    labels = np.zeros(len(wanted), np.uint16)
    typed = policy in TYPED and "types" not in core
    if typed:
        types, labels = wanted.types(num_types)
        core["types"] = [{"prompt": p, "output": o, "rate": r} for p, o, r in types]
    fleet = None
    if isinstance(replicas, Disaggregated):
        if transfer is not None:
            raise _core.WaitCoreError("transfer: a Disaggregated fleet has its own")
        transfer = replicas.transfer
    if replicas is not None:
        same = {key: value for key, value in core.items() if key != "iteration_time"}
        fleet = described(
            same,
            gpu,
            law_known=known_law is not None,
            typed=policy in TYPED,
            replicas=replicas,
            router=router,
            routers=routers,
            sessions=wanted.sessions() if session_affinity and routers > 1 else None,
            staleness_s=staleness_s,
            changes=changes,
            threads=threads,
            seed=seed,
        )
    prefilling = fleet["prefill"][0] if fleet is not None and fleet["prefill"] is not None else None
    core |= kv_cache_of(gpu, core)
    if not 0 <= overhead_s <= MOST_SECONDS:
        raise _core.WaitCoreError(f"overhead_s = {overhead_s}: must be between 0 and {MOST_SECONDS:g} s")
    with tqdm(
        total=len(wanted), desc=policy, unit="req", leave=False, disable=progress is not True or not sys.stderr.isatty()
    ) as bar:
        run = _core.run(
            core,
            gpu,
            wanted.arrival_ns,
            wanted.prompt,
            wanted.output,
            labels,
            lengths_known=known,
            typed=typed,
            max_tokens=max_tokens,
            max_concurrency=max_concurrency,
            overhead_ns=round(overhead_s * 1e9),
            step_jitter=step_jitter,
            seed=seed,
            steps_reported=iteration_time_knowledge == "learned",
            learned=learned,
            **_columns(hints),
            tenants=None if wanted.tenant is None else wanted.tenant.tolist(),
            **_connections(wanted),
            acceptance=list(acceptance),
            transfer=None if transfer is None else transfer.columns(),
            fleet=fleet,
            callback=progress if callable(progress) else lambda completed: bar.update(completed - bar.n),
        )
    return Report(
        policy=policy,
        workload=wanted.name,
        seed=seed,
        settings=core if fleet is None else fleet["engines"][prefilling or 0][0],
        run=run,
        dropped=wanted.dropped,
        notes=wanted.notes,
        router=None if fleet is None else fleet["router"],
        prefill_replicas=prefilling,
    )


def _columns(hints: Hints | None) -> dict[str, Any]:
    if hints is None:
        return {}
    columns = {"predicted": hints.predicted_tokens, "classes": hints.label, "priorities": hints.priority}
    given: dict[str, Any] = {name: column.tolist() for name, column in columns.items() if column is not None}
    return given | {"predicted_log_error": hints.predicted_log_error}


def _connections(requests: Requests) -> dict[str, Any]:
    follows, blocks = requests.follows, requests.prefix_blocks
    return {
        "follows": None if follows is None else (follows.after, follows.think_ns),
        "system": requests.system_tokens,
        "hash_ids": None if blocks is None else (blocks.ids, blocks.offsets, blocks.tokens),
    }


def _lengths_known(policy: str, lengths: str | None) -> bool:
    if lengths not in {None, "known", "hidden"}:
        raise _core.WaitCoreError(f"lengths = {lengths!r}: known or hidden")
    return policy in LENGTHS_KNOWN if lengths is None else lengths == "known"
