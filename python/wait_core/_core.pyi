from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Unpack, final

import numpy as np
import numpy.typing as npt

from wait_core.settings.types import Settings

__all__ = [
    "DEBUG_BUILD",
    "ROUTERS",
    "SETTINGS",
    "CapacityError",
    "Choice",
    "DeadlineError",
    "DuplicateIdError",
    "Hold",
    "Plan",
    "Planner",
    "QueueFullError",
    "Router",
    "Run",
    "SafetyBuffer",
    "Scheduler",
    "StalledError",
    "WaitCoreError",
    "__version__",
    "batch",
    "group_types",
    "iteration_seconds",
    "probe",
    "run",
    "sample",
]

__version__: Final[str]
DEBUG_BUILD: Final[bool]
ROUTERS: Final[list[str]]
SETTINGS: Final[list[str]]

class WaitCoreError(ValueError):
    """An input that wait-core refuses; nothing has changed."""

class CapacityError(WaitCoreError):
    """A request that could not run even alone."""

class DuplicateIdError(WaitCoreError):
    """A request id that is in use."""

class QueueFullError(WaitCoreError):
    """The bound on waiting requests or tokens is reached."""

class DeadlineError(WaitCoreError):
    """A request that would wait longer than it may."""

class StalledError(WaitCoreError):
    """A policy under which nothing will ever run again."""

@final
class Hold:
    """Why a request waits: the reason, what it needs and the number that limits it."""
    @property
    def reason(self) -> str:
        """One of no_blocks, too_large (more blocks than the cache has now: other requests overtake it), below_threshold,
        forecast_overflow, tpot_target, ttft_target, tenant_share, batch_cap, head_of_line (others go before it),
        paused_at_boundary, host_refused (admitted by the last plan, and refused by the host), engine_paused.
        """
    @property
    def needs(self) -> float:
        """What the request needs, in the reason's unit (blocks, requests, seconds)."""
    @property
    def limit(self) -> float:
        """What is available, in the same unit; at least 0."""
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...

@final
class Plan:
    """One planned iteration. Ids are those given to `Scheduler.add`."""
    @property
    def iteration(self) -> int:
        """Number of the plan, from 1; see `Scheduler.complete(iteration=...)`."""
    @property
    def admitted(self) -> list[int]:
        """Requests to admit, in order."""
    @property
    def resumed(self) -> list[int]:
        """Preempted requests to admit again, in order; they come before the admitted."""
    @property
    def preempted(self) -> list[int]:
        """Requests to preempt first, last admitted first."""
    @property
    def prefill(self) -> list[tuple[int, int]]:
        """Prompt tokens to compute: (id, tokens), residents before admissions, and late requests last."""
    @property
    def cached(self) -> list[tuple[int, int]]:
        """Prompt tokens of the admitted and the resumed that are in the cache already: (id, tokens), where there are any."""
    @property
    def paused(self) -> list[int]:
        """Resident requests that must not run in this iteration; they keep their KV."""
    @property
    def refused(self) -> list[tuple[int, str, int]]:
        """Waiting requests that are refused and have left: (id, reason, expected time to first token in ns)."""
    @property
    def num_decodes(self) -> int:
        """Requests that decode one token each: all residents not listed elsewhere."""
    @property
    def token_budget(self) -> int:
        """Most tokens to compute in this iteration."""
    @property
    def held(self) -> int:
        """Requests outside the KV cache after this plan."""
    @property
    def wake_ns(self) -> int | None:
        """When to plan again even if no event occurs, ns; None if only events matter."""
    @property
    def only_decodes(self) -> bool:
        """True if the residents decode a token each, and that is all: nothing is admitted, computed of a prompt, paused,
        preempted or refused.
        """
    @property
    def is_empty(self) -> bool:
        """True if there is nothing to compute."""

@final
class Scheduler:
    """The scheduling core of one engine: add, plan, complete, abort.

    Settings are keyword arguments, listed below; `wait-core settings` and docs/settings.md have them as a table. All ids are
    integers chosen by the caller. Not thread-safe by design: one engine loop owns it, and a second thread gets an exception.

    Raises `WaitCoreError` where a setting is unknown or out of its range; the message names it.
    """
    def __new__(cls, policy: str = "adaptive", **settings: Unpack[Settings]) -> Scheduler: ...
    def add(
        self,
        request_id: int,
        prompt_tokens: int,
        max_tokens: int | None = None,
        *,
        output_tokens: int | None = None,
        predicted_tokens: int | None = None,
        predicted_log_error: float = 0.0,
        type_id: int | None = None,
        priority: int = 0,
        tenant: int = 0,
        computed_tokens: int = 0,
        shared_prefix: int = 0,
        block_hashes: Sequence[int] = ...,
        receives: bool = False,
        encoder_blocks: int = 0,
        max_wait_ns: int | None = None,
        now_ns: int = 0,
    ) -> None:
        """Puts a request in the queue. Lengths in tokens, `now_ns` is its arrival on the caller's clock, ns.

        `max_tokens`: most output tokens (None: what the model allows); `output_tokens`: their exact number, if known;
        `predicted_tokens`: a prediction, with the standard deviation `predicted_log_error` of ln(true / predicted);
        `type_id`: index into `types`, or a class label; `priority`: lower goes first; `tenant`: index into
        `tenant_weights`.

        `computed_tokens` of the prompt need not be computed: their KV is cached, or comes from elsewhere. Residents
        hold the blocks of `shared_prefix` of these tokens: they are not charged again, while `free_blocks` is reported.
        With `prefix_caching` the scheduler looks both up by `block_hashes`, one integer for each full block of the
        prompt (and of the output as far as it is known in advance) that identifies all tokens up to there. A request
        with `receives` set holds its memory once admitted and computes nothing until `complete(received=...)` names it.
        `encoder_blocks`: KV blocks that it holds beside those of its tokens from its admission to its end, in a model with
        cross-attention.

        Raises `CapacityError` if it could not run even alone, `DuplicateIdError` if the id is in use, `QueueFullError`
        at the bounds `max_queued_requests` and `max_queued_tokens`, `DeadlineError` if its predicted wait for admission
        is longer than `max_wait_ns`, or, with `late = "refuse"`, its predicted time to first token longer than
        `ttft_target`, and `WaitCoreError` for any other value that is refused. Nothing has changed then.
        """
    def plan(
        self,
        now_ns: int = 0,
        *,
        free_blocks: int | None = None,
        step_ns: int | None = None,
        iteration: int | None = None,
    ) -> Plan:
        """Plans the next iteration and assumes that it happens; `now_ns` is the time on the caller's clock, ns.

        `free_blocks`, `step_ns` and `iteration` are reported first, as by `complete`: a host whose iterations go as planned,
        as nearly all do, needs one call for each. Raises `WaitCoreError` as that does, and plans nothing then.
        """
    def complete(
        self,
        *,
        finished: Sequence[int] = ...,
        preempted: Sequence[int] = ...,
        refused: Sequence[int] = ...,
        progress: Sequence[tuple[int, int]] = ...,
        receiving: Sequence[tuple[int, int]] = ...,
        received: Sequence[int] = ...,
        hits: Sequence[tuple[int, int, int] | tuple[int, int, int, int]] = ...,
        free_blocks: int | None = None,
        step_ns: int | None = None,
        iteration: int | None = None,
    ) -> None:
        """Reports what turned out differently from the plan, and what has finished. Ids that are unknown are counted and
        ignored.

        `finished`, `preempted`, `refused`: ids of requests that ended, that the host preempted by itself, and whose
        admission it did not carry out; `progress`: (id, KV tokens it holds) where the plan assumed otherwise;
        `receiving`: (id, KV tokens that come) of requests that the host has admitted and whose KV it fetches;
        `received`: those whose KV has arrived from elsewhere; `hits`: (id, computed tokens, shared tokens) of waiting
        requests: how much of the prompt is cached, and how much of that residents hold; optionally, as a
        fourth number, the tokens behind those that were cached before and have been evicted: "adaptive" learns from it;
        `free_blocks`: the host's count of free KV blocks, which takes precedence. Raises `WaitCoreError` for an
        impossible report, and changes nothing then.

        `step_ns` is how long an iteration took on the host's clock, ns: from when it could begin (its inputs were
        ready, the previous iteration had ended) to when its outputs were ready. "adaptive" learns the iteration-time
        law from it (`iteration_time`); None, 0 and other policies: nothing. It belongs to the oldest plan with
        something to compute whose time was not reported, so the next plan may be made before; a host that does not
        report every iteration gives its number, `iteration=plan.iteration`. An iteration that differed from its plan
        (`preempted`, `refused`, `progress`) is not learned from.
        """
    def first_in_queue(self, count: int) -> list[tuple[int, int, int]]:
        """The first `count` of each queue, the preempted before the others: (request, prompt tokens known to
        be computed, those of them whose blocks residents hold).
        """
    def abort(self, request_id: int) -> bool:
        """Aborts a request, in whatever state it is; False if no request has this id."""
    def set_capacity(self, kv_blocks: int) -> None:
        """Changes the number of usable KV blocks, and with it what follows from it: the blocks of `watermark`, and the
        longest request where no `max_model_len` was set. Requests present keep their `max_tokens`. Raises
        `WaitCoreError` if it is out of the range of `kv_blocks`.
        """
    def reset_prefix_cache(self) -> bool:
        """Empties the prefix cache that the scheduler keeps (`prefix_caching`), as after a change of the model's
        weights. False, and nothing changes, while a request is resident.
        """
    def drain(self) -> None:
        """No more arrivals will come: thresholds no longer wait for more requests."""
    def set_paused(self, paused: bool) -> None:
        """A paused engine plans empty iterations and keeps everything."""
    def learned(self) -> dict[str, Any] | None:
        """What the policy has learned from the traffic, as JSON-compatible data; None where it learns nothing."""
    def restore(self, learned: Mapping[str, Any]) -> None:
        """Restores what another scheduler of this policy had learned, while no request is present.

        Raises `WaitCoreError` if a request is present, the policy is another, or the state is damaged.
        """
    def kv_forecast(self) -> list[tuple[int, float, float, float]]:
        """The KV tokens that the residents are expected to hold if no request is admitted after them: (iterations ahead, mean,
        standard deviation, probability of an overflow up to then); empty where the policy forecasts nothing.
        """
    @property
    def iteration_time(self) -> dict[str, Any] | None:
        """The iteration-time law learned from `complete(step_ns=...)`; None for policies that learn none.

        `law`: in the form of the setting of this name, None before 64 iterations; `error`: mean relative error of the
        last 512 iterations, each predicted before it was learned from, None before the first; `observations`:
        iterations learned from; `used`: whether it is used, which it is once 256 iterations were predicted with an
        error of at most 0.2 and no law was given as a setting.
        """
    def load(self) -> dict[str, Any]:
        """How busy the engine is, for a router that compares it with others (`wait_core.fleet.Router.report`): a
        dictionary of a dozen numbers, whatever the number of requests. Does not affect any decision.

        `waiting` and `residents`: requests outside and in the KV cache; `waiting_tokens`, `prefill_tokens`: prompt
        tokens that these have still to compute; `kv_tokens`: KV tokens that residents hold; `free_blocks`;
        `admission_gap_ns`: mean time between two admissions while a request waited, 0 if none has. Where the policy
        learns them also `kv_peak` and `kv_deviation`: the most KV tokens that the residents are expected to hold, and
        its standard deviation; `mean_output`, tokens.
        """
    @property
    def admission_gap_ns(self) -> int:
        """What one more request ahead adds to `predicted_wait_ns`: the mean gap between the last admissions out of a queue, ns;
        0 as long as no request has waited.
        """
    @property
    def waiting_tokens(self) -> int:
        """Tokens of prompts, and of outputs lost to preemption, that the requests outside the KV cache bring, cached or not."""
    @property
    def predicted_wait_ns(self) -> int:
        """How long a request that joined the queue now would wait for its admission, ns; 0 while no request waits."""
    def explain(self, request_id: int) -> Hold | None:
        """Why a request waits, by the last plan; None if it does not wait."""
    def stage(self, request_id: int) -> int | None:
        """Output tokens of a resident or preempted request, as far as the core knows; None for unknown ids."""
    def __len__(self) -> int: ...
    def __contains__(self, key: int, /) -> bool: ...
    @property
    def num_waiting(self) -> int:
        """Requests outside the KV cache."""
    @property
    def num_resident(self) -> int:
        """Requests in the KV cache."""
    @property
    def used_blocks(self) -> int:
        """KV blocks in use; the host's last correction included."""
    @property
    def thresholds(self) -> list[float]:
        """The thresholds in force, requests per service: one a type (wait) or segment (nested-wait), else none. One that is
        not an integer accrues as credit.
        """
    @property
    def stats(self) -> dict[str, Any]:
        """Counters since the start: iterations, admitted, finished, aborted, refused, preemptions, recomputed_tokens,
        unknown_ids, and holds, a dictionary by reason.
        """
    @property
    def settings(self) -> dict[str, Any]:
        """Every setting in force, defaults included, under the names that the constructor takes; `kv_blocks` as
        `set_capacity` left it.
        """

@final
class Choice:
    """Where a request goes."""
    @property
    def replica(self) -> str | None:
        """The replica; None: the request is held at the door, to be routed again when a replica has reported or another
        request has ended.
        """
    @property
    def hold(self) -> str | None:
        """Why it is held: "no-replica"; "all-full": no replica could start it soon; or "late": none could start it in time any
        more, and it yields to those that can be. None if it is not.
        """
    @property
    def by(self) -> str:
        """Which router decided: "power-of-two" where the configured one knew too little."""
    @property
    def predicted_ttft_s(self) -> float | None:
        """When its first token is predicted, s from now; None if not predicted."""
    @property
    def overflow(self) -> float | None:
        """The probability that the replica's KV cache overflows with it; None if not predicted."""
    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that are assumed to be cached on the replica."""

@final
class Router:
    """Chooses the replica for each request, from what the replicas report and what it has sent itself since.

    `router` is one of `wait_core.fleet.ROUTERS`. Times are ns on one clock, the caller's, by which replicas report too;
    replicas and requests are named by strings. Not thread-safe by design: one thread routes, and a second gets an
    exception.

    `seed`: seed of the random choices. `stale_after`: age from which a report is stale, s; such a replica is judged by
    what was sent to it, and while no report is younger, a router that reads reports falls back to power of two.
    `affinity_load`: by how much a replica that "prefix-affinity" chooses may exceed the mean number of requests, a
    factor. `longest_queue`: "forecast" holds a request at the door while it would wait longer than this on every
    replica, s.
    `ttft_target`: longest time to first token that "forecast" keeps where it can, s; none by default. Requests are then
    held at the door, where those that can be in time go first, and not in the queues of the replicas.

    Raises `WaitCoreError` where a name is unknown or a value out of its range; the message names it.
    """
    def __new__(
        cls,
        router: str = "forecast",
        *,
        seed: int = 0,
        stale_after: float | None = None,
        affinity_load: float | None = None,
        longest_queue: float | None = None,
        ttft_target: float | None = None,
    ) -> Router: ...
    def add_replica(
        self,
        replica: str,
        *,
        kv_blocks: int,
        block_size: int = 16,
        max_num_seqs: int = 256,
        token_budget: int = 2048,
        iteration_time: Mapping[str, Any] | None = None,
        ttft_target: float | None = None,
        receives: bool = False,
        model: str = "",
    ) -> None:
        """Adds a replica, or updates one that is present, as when its iteration-time law was learned.

        `kv_blocks`, `block_size`, `max_num_seqs`, `token_budget`: as the settings of its scheduler. `iteration_time`:
        its law, given or learned; without it "forecast" assumes a nominal one. `ttft_target`: the target by which it
        orders its own queue, if it does; no request is then held at the door for its sake. `receives`: prompts come with
        their KV, as to a decode replica. `model`: the same for all replicas of a router.

        Raises `WaitCoreError` for a size of 0 or a model other than that of the others; nothing has changed then.
        """
    def drain_replica(self, replica: str) -> bool:
        """A replica accepts no more requests, and finishes those it has; False if there is no such replica."""
    def remove_replica(self, replica: str) -> list[str]:
        """A replica is gone. Returns the requests that were sent to it and have not ended, for the caller to route again."""
    @property
    def replicas(self) -> list[str]:
        """The replicas present, draining ones included, in the order in which they were added."""
    def report(self, replica: str, at_ns: int, load: Mapping[str, Any]) -> bool:
        """The load of a replica at `at_ns`: a dictionary as `Scheduler.load()` returns it, of which any key may be absent.
        False, and nothing changes, if the replica is gone or a later report is known. Raises `WaitCoreError` for an
        invalid load.
        """
    def route(
        self,
        request: str,
        now_ns: int,
        *,
        prompt_tokens: int,
        max_tokens: int | None = None,
        block_hashes: Sequence[int] = ...,
        arrived_ns: int | None = None,
    ) -> Choice:
        """Chooses a replica for a request, and counts it as sent there; a request that is already present moves.

        `block_hashes`: one integer for each full block of the prompt that identifies all tokens up to there, if known;
        `max_tokens`: most output tokens; `arrived_ns`: when it arrived, from where a target counts, by default when the
        router was first asked. Raises `WaitCoreError` for an empty prompt.
        """
    def finished(self, request: str, now_ns: int) -> bool:
        """A request has ended, in whatever way, also one held at the door whose client has left; False if it is not known.
        Without a target, requests at the door are not known.
        """
    @property
    def unknown_reports(self) -> int:
        """Reports of replicas that were gone, or older than one already known."""

@final
class Planner:
    """One workload on one GPU, and what follows from them: arXiv 2504.11320 §3 to §5 and the capacity bound.

    `types` are (prompt, output, rate) in tokens and 1/s. `capacity` is C in KV tokens, `max_running` the most residents,
    `token_budget` the most tokens in an iteration. The convention says whether the prefill emits the first token
    ("vllm") or none ("paper"), or that requests come with the KV of their prompts ("decode-only"). Times are
    seconds, memory KV tokens.

    `windows` are more types, one list for each further window of a workload that changes over time: segments, Nested
    WAIT's thresholds and the safety buffer then hold in every window; all else is about `types`.

    Here and in its methods, `WaitCoreError` names the argument that is refused.
    """
    def __new__(
        cls,
        types: Sequence[tuple[int, int, float]],
        law: Mapping[str, Any],
        *,
        capacity: int,
        max_running: int | None = None,
        token_budget: int | None = None,
        convention: str = "vllm",
        windows: Sequence[Sequence[tuple[int, int, float]]] = ...,
    ) -> Planner: ...
    @property
    def load(self) -> float:
        """x: the share of the GPU's time that the workload needs; stable with enough memory if and only if below 1."""
    @property
    def mean_token_iterations(self) -> float:
        """E[A]: KV tokens · iterations of a request."""
    def equilibrium(self) -> dict[str, Any] | None:
        """The fluid equilibrium, or None where x ≥ 1: iteration_time (s), memory (KV tokens), resident (requests)."""
    def largest_stable_rate(self) -> dict[str, Any]:
        """The largest rate of this mix inside the stability region (requests, throughput in output tokens: both 1/s), and
        what binds there.
        """
    def capacity_bound(self) -> dict[str, Any]:
        """The largest rate that any schedule can serve, in the same terms: the linear program over compositions."""
    def goodput_bound(self, *, slo_ttft_ms: float | None = None, slo_tpot_ms: float | None = None) -> dict[str, Any]:
        """The most requests of this workload that any schedule can serve within an objective, ms (goodput: their share,
        requests: 1/s): the same program with an accept variable for each type.
        """
    def thresholds(
        self,
        per_type: Sequence[float] | None = None,
        *,
        spacing: float | None = None,
        block_size: int | None = None,
    ) -> dict[str, Any]:
        """WAIT's thresholds: those given by type; those with this spacing (n = λ Δ'); those that serve the most, as caps,
        in KV blocks of `block_size` tokens; or, with no argument, the feasible ones with the least latency.
        """
    def segments(self, boundaries: Sequence[int] | None = None, *, count: int | None = None) -> list[dict[str, Any]]:
        """Segments of the workload: at these boundaries, or `count` of equal range, or one per output length."""
    def nested(
        self,
        boundaries: Sequence[int] | None = None,
        *,
        count: int | None = None,
        per_segment: Sequence[float] | None = None,
        margin: float = 0.05,
        failure_probability: float | None = None,
        horizon: float = 0.0,
        block_size: int = 1,
    ) -> dict[str, Any]:
        """Nested WAIT's thresholds: those given by segment, or the chain with this margin that has the least latency.

        With a failure probability they are those whose safety buffer, in KV blocks of block_size tokens, fits as well.
        Where no chain is feasible, per_segment is None and the violations say why.
        """
    def stage_caps(
        self,
        total: int,
        boundaries: Sequence[int] | None = None,
        *,
        count: int | None = None,
        margin: float = 0.05,
    ) -> dict[str, Any]:
        """The paper's experimental construction: `total` requests in service, spread over segments and stages; caps in
        requests a stage.
        """
    def safety_buffer(
        self,
        per_segment: Sequence[float],
        boundaries: Sequence[int] | None = None,
        *,
        count: int | None = None,
        block_size: int = 1,
    ) -> SafetyBuffer:
        """The safety buffer of thresholds by segment, in KV blocks of `block_size` tokens."""

@final
class SafetyBuffer:
    """Memory for the queues at the segment boundaries, as a function of how rarely it may overflow (§5)."""
    @property
    def theta(self) -> list[float]:
        """θ_k of the queue before each segment 2, 3, …"""
    def tokens(self, failure_probability: float, horizon: float) -> float:
        """KV tokens to keep free for this probability of an overflow within a horizon in seconds."""
    def residents(self, failure_probability: float, horizon: float) -> float:
        """Most requests resident at once under that protection, boundary queues included."""
    def queue_bounds(self, failure_probability: float, horizon: float) -> list[float]:
        """Requests that the queue before each segment 2, 3, … may hold under that protection."""
    def failure_probability(self, tokens: float, horizon: float) -> float:
        """The bound on the probability of an overflow that this many tokens give over a horizon in seconds."""
    def horizon(self, tokens: float, failure_probability: float) -> float:
        """The longest horizon in seconds over which this many tokens keep that probability."""

@final
class Run:
    """One finished simulation; the constructor restores a pickled one."""
    def __new__(cls, state: bytes) -> Run: ...
    def __reduce__(self) -> tuple[type[Run], tuple[bytes]]: ...
    @property
    def fleet(self) -> dict[str, Any] | None:
        """Of a fleet: which replica served each request (`replica_of`, 2^32 − 1 where none did), when the router predicted
        its first token (`predicted_ttft_s`, after it was sent on; -1 without a prediction), the counters of each
        replica (`replicas`, a list of dictionaries as `counts`, with `completed`), how often requests were sent again
        because their replica was gone (`resent`), how many were held at the router's door (`held`) and for how long in
        total (`held_s`). None of a single engine.
        """
    @property
    def learned(self) -> dict[str, Any] | None:
        """What the policy has learned, as in `Scheduler.learned`."""
    def summary(self, slo_ttft_ms: float | None = None, slo_tpot_ms: float | None = None) -> dict[str, Any]:
        """The figures of the run under the keys of `vllm bench serve`: times in ms, rates in 1/s, lengths in tokens; NaN where
        nothing was observed.

        With an objective in ms, also request_goodput (requests/s that met it) and goodput (share of those offered).
        """
    @property
    def counts(self) -> dict[str, Any]:
        """The part of the summary that was counted during the run, and is free to read."""
    @property
    def iteration_time(self) -> dict[str, Any] | None:
        """The iteration-time law that the policy has learned, as in `Scheduler.iteration_time`."""
    @property
    def arrival_ns(self) -> npt.NDArray[np.uint64]:
        """Arrival times, ns."""
    @property
    def predicted_wait_ns(self) -> npt.NDArray[np.uint64]:
        """Each request's predicted wait for admission when it arrived, ns."""
    @property
    def admitted_ns(self) -> npt.NDArray[np.uint64]:
        """First admissions, ns; 2^64 − 1 where a request was refused."""
    @property
    def first_token_ns(self) -> npt.NDArray[np.uint64]:
        """Ends of the prefills that gave the first tokens, ns."""
    @property
    def finished_ns(self) -> npt.NDArray[np.uint64]:
        """Completions, ns; 2^64 − 1 where a request was refused."""
    @property
    def prompt(self) -> npt.NDArray[np.uint32]:
        """Prompt lengths, tokens."""
    @property
    def output(self) -> npt.NDArray[np.uint32]:
        """Output lengths, tokens."""
    @property
    def preemptions(self) -> npt.NDArray[np.uint32]:
        """Times each request was preempted."""
    @property
    def series(
        self,
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """The state over time: (end of iteration in ns, KV blocks in use, residents, waiting)."""

def sample(
    dataset: Mapping[str, Any], num_requests: int, request_rate: float, seed: int
) -> tuple[
    npt.NDArray[np.uint64],
    npt.NDArray[np.uint32],
    npt.NDArray[np.uint32],
    npt.NDArray[np.uint16],
    tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]] | None,
    int | None,
]:
    """Arrival times (ns), prompt and output lengths (tokens) and component labels of a synthetic dataset, each of shape
    (num_requests,); of conversations also which request each follows (or -1) and how long its user thinks after that one
    (ns), and the tokens of the system prompt. Raises `WaitCoreError` where the dataset or a value is refused.
    """

def probe(
    settings: dict[str, Any],
    law: Mapping[str, Any],
    arrival_ns: npt.NDArray[np.uint64],
    prompt: npt.NDArray[np.uint32],
    output: npt.NDArray[np.uint32],
    every: int,
) -> dict[str, npt.NDArray[Any]]:
    """Forecasts of the residents' KV, one row a probe, and the truth beside them: see `wait_core.simulation.Forecasts`."""

def batch(
    settings: dict[str, Any],
    law: Mapping[str, Any],
    dataset: Mapping[str, Any],
    *,
    request_rate: float,
    horizon_ns: int,
    runs: int,
    first_seed: int,
    lengths_known: bool,
    typed: bool,
    threads: int = 1,
) -> dict[str, npt.NDArray[Any]]:
    """Simulates a synthetic dataset once for each seed in `first_seed .. first_seed + runs`, up to `horizon_ns`; arrivals
    continue beyond it. Returns columns with one entry a run: arrived, completed, output_tokens (of the completed),
    latency_s and ttft_s (means over the arrived, cut at the horizon), peak_kv_blocks, peak_parked, preemptions,
    iterations.
    """

def group_types(
    prompt: npt.NDArray[np.uint32], output: npt.NDArray[np.uint32], rate: float, classes: int
) -> tuple[list[tuple[int, int, float]], npt.NDArray[np.uint16]]:
    """Groups lengths that arrive at `rate` per second into at most `classes` types by quantiles of the output length.

    Returns the types as (prompt, output, rate) and the type of each request. Where there are no more distinct pairs
    than classes, the types are exactly these pairs.
    """

def iteration_seconds(
    law: Mapping[str, Any], *, decodes: int = 0, decode_kv: int = 0, chunks: Sequence[tuple[int, int]] = ...
) -> float:
    """Seconds that one iteration takes under a law: `decodes` requests that read `decode_kv` tokens, and prefill chunks
    of (tokens, tokens computed before).
    """

def run(
    settings: dict[str, Any],
    law: Mapping[str, Any],
    arrival_ns: npt.NDArray[np.uint64],
    prompt: npt.NDArray[np.uint32],
    output: npt.NDArray[np.uint32],
    labels: npt.NDArray[np.uint16],
    *,
    lengths_known: bool,
    typed: bool,
    max_tokens: int | None,
    max_concurrency: int | None,
    overhead_ns: int,
    step_jitter: float = 0.0,
    seed: int = 0,
    steps_reported: bool = False,
    learned: Mapping[str, Any] | None = None,
    predicted: Sequence[int] | None = None,
    predicted_log_error: float = 0.0,
    classes: Sequence[int] | None = None,
    priorities: Sequence[int] | None = None,
    tenants: Sequence[int] | None = None,
    follows: tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]] | None = None,
    system: int | None = None,
    hash_ids: tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], int] | None = None,
    acceptance: Sequence[float] = ...,
    transfer: tuple[float, float, float] | None = None,
    fleet: dict[str, Any] | None = None,
    callback: Callable[[int], object] | None = None,
) -> Run:
    """Simulates all arrivals to their end. Columns have one entry a request, by rising arrival (ns, tokens);
    `callback(completed)` is called at intervals, and an exception that it raises ends the run. Raises `StalledError`
    where requests would wait forever, `WaitCoreError` where a value is refused.
    """
