"""Between vLLM's scheduler and the core: names become integers, decisions become a gate, outcomes become reports."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import RequestStatus

from wait_core import WaitCoreError
from wait_core.vllm import gated_queue, prefixes, telemetry, transfer
from wait_core.vllm.control import Control
from wait_core.vllm.unready import Unready
from wait_core.vllm.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.metrics.stats import SchedulerStats
    from vllm.v1.request import Request

    from wait_core import Plan

logger = init_logger(f"vllm.{__name__}")  # vLLM configures the loggers under its own name only


class Bridge:
    """One engine's line to the core.

    Ids: the core knows a request by a number given here at arrival and never used again. A request that the core does
    not know (it refused it, or the request is a streaming session) is `foreign`: it passes the gate freely and the core
    notices it only through the count of free blocks.

    Reports: what vLLM did with a plan is told to the core at the start of the next step, in one call, together with
    what finished in between; only requests for which something other than the plan happened are named. So the work
    per step grows with the number of requests that changed, not with those running.

    Errors: every entry point catches everything. The first error ends the core's part for good (`_fail`).
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.control = Control(scheduler)
        self.core = self.control.core
        self.settings = self.control.settings
        self.log = self.control.log
        self.telemetry = telemetry.Telemetry()
        self.prefixes = prefixes.Prefixes(scheduler)
        self.unready = Unready(scheduler)
        self.watchdog = Watchdog()
        self.active = True
        self.queue = gated_queue.behind_a_gate(scheduler.policy, scheduler.waiting)
        scheduler.waiting = self.queue

        self._next = 0
        self._ids: dict[str, int] = {}
        self._requests: dict[int, Request] = {}
        self._arrivals: dict[int, int] = {}  # id -> ns
        self._foreign: dict[str, Request] = {}
        self._prefilling: dict[int, int] = {}  # id -> tokens computed when last looked at
        self._plan: Plan | None = None
        self._offered: list[int] = []
        self._held = {"held": 0, "paused": 0}
        self._preempted_before: frozenset[str] = frozenset()
        self._budget = scheduler.max_num_scheduled_tokens
        # vLLM counts the adapters of those that run; one that pauses would come back beside too many others.
        self._may_pause = scheduler.lora_config is None

        # For the next call of complete().
        self._preempted: list[int] = []
        self._refused: list[int] = []
        self._progress: list[tuple[int, int]] = []
        self._gone: list[int] = []
        self._missing = 0  # requests the last plan counted on and vLLM did not schedule

        names = ("steps", "paused", "refused", "watchdog", "foreign", "corrected", "ungated", "reconfigured")
        self.counts = dict.fromkeys(names, 0)

    # -- entry points: they never raise ---------------------------------------------------------------------------

    def added(self, request: Request) -> None:
        """Tell the core of a request that vLLM has just queued."""
        if self.active:
            try:
                self._add(request)
            except BaseException as error:  # noqa: BLE001
                self._fail("add_request", error)

    def before_step(self) -> None:
        """Report what has happened, ask for a plan, and set gate, pauses and token budget for one step."""
        if self.active:
            try:
                now_ns = time.monotonic_ns()
                for request, arrival_ns in self.unready.ready():
                    self._declare(request, arrival_ns)
                self._report()
                self._exchange(now_ns)
                if self.scheduler.pause_state != PauseState.PAUSED_ALL:
                    self._decide(now_ns)
                    self.telemetry.decisions_ns.append(time.monotonic_ns() - now_ns)
            except BaseException as error:  # noqa: BLE001
                self._fail("before schedule", error)

    def release(self) -> None:
        """Undo what holds for one step only, also after an error of vLLM's own: nothing here can fail."""
        self.queue.close()
        self.scheduler.max_num_scheduled_tokens = self._budget

    def after_step(self, output: SchedulerOutput) -> None:
        """Compare what vLLM scheduled with the plan and keep the difference for the next report."""
        if self.active:
            try:
                self._compare(output)
            except BaseException as error:  # noqa: BLE001
                self._fail("after schedule", error)

    def send(self, stats: SchedulerStats) -> None:
        """Put our figures into what vLLM sends to its front end."""
        if self.telemetry.failed:
            return
        try:
            now_ns = time.monotonic_ns()
            if not self.telemetry.is_due(now_ns, idle=not self.scheduler.running):
                return
            state: dict[str, Any] = {"active": self.active, "policy": self.settings.policy}
            if self.active:
                state |= {"shadow": self.settings.shadow, "blocks": self.control.engine["kv_blocks"], **self._held}
                state |= self.telemetry.collect(self.core, now_ns, self.counts)
            self.telemetry.attach(stats, state, now_ns)
        except BaseException as error:  # noqa: BLE001  figures are not worth the scheduling
            self.telemetry.fail(error)

    def stop(self) -> None:
        """Keep what is to outlive the engine."""
        if self.active:
            try:
                self.control.stop()
            except BaseException as error:  # noqa: BLE001
                self._fail("shutdown", error)

    def report(self) -> dict[str, Any]:
        """Return the adapter's counts since the start."""
        return {"active": self.active, "policy": self.settings.policy, **self.counts}

    # -- arrivals ---------------------------------------------------------------------------------------------------

    def _add(self, request: Request) -> None:
        name = request.request_id
        if self.scheduler.requests.get(name) is not request:
            return  # a further input chunk of a streaming session
        if name in self._ids:  # reused before the core heard that its first bearer had left
            self._gone.append(self._left(name))
        if request.resumable:
            self._make_foreign(request, None)
            return
        now_ns = time.monotonic_ns()
        self.telemetry.arrived(now_ns)
        if not self.unready.keeps(request, now_ns):
            self._declare(request, now_ns)

    def _declare(self, request: Request, now_ns: int) -> None:
        number = self._next
        self._next += 1
        try:
            transfer.declare(self.core, number, request, (self.scheduler, self.settings), now_ns)
        except WaitCoreError as refusal:
            self._make_foreign(request, refusal)
            return
        self.prefixes.moved = True
        self._arrivals[number] = now_ns
        self._ids[request.request_id] = number
        self._requests[number] = request
        if request.status == RequestStatus.RUNNING:  # vLLM took it by itself the moment it was ready
            self._prefilling[number] = -1

    def _make_foreign(self, request: Request, refusal: WaitCoreError | None) -> None:
        self._foreign[request.request_id] = request
        self.counts["foreign"] += 1
        self.telemetry.rejected_for(refusal)
        logger.debug("wait-core lets %s through ungated: %s", request.request_id, refusal or "a streaming session")

    def _forget(self, name: str) -> int:
        number = self._ids.pop(name)
        del self._requests[number], self._arrivals[number]
        self._prefilling.pop(number, None)
        return number

    def _left(self, name: str) -> int:
        if self.log is not None:
            number = self._ids[name]
            self.core.ended(number, self._requests[number].num_output_tokens)
        return self._forget(name)

    def _exchange(self, now_ns: int) -> None:
        """Look whether another core has taken over, and whom it refuses."""
        refused = self.control.poll(now_ns, self.scheduler, self._requests, self._arrivals)
        if refused is None:
            return
        self.core, self.settings = self.control.core, self.control.settings
        self.telemetry.restart(self.core)
        self.counts["reconfigured"] += 1
        for number, refusal in refused.items():
            self._make_foreign(request := self._requests[number], refusal)
            self._forget(request.request_id)

    # -- one step ---------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        scheduler = self.scheduler
        aborted: list[int] = []
        finished, ended = self._gone, 0
        for name in scheduler.finished_req_ids:
            self.prefixes.moved = True
            if scheduler.requests.get(name) is not self._foreign.get(name):  # else its name is in use again
                self._foreign.pop(name, None)
            number = self._ids.get(name)
            if number is None or scheduler.requests.get(name) is self._requests[number]:
                continue
            status = self._requests[number].status
            ended += status == RequestStatus.FINISHED_LENGTH_CAPPED
            (aborted if status == RequestStatus.FINISHED_ABORTED else finished).append(self._left(name))
        # Preempted between two steps, by a reset of the prefix cache: the next step may already resume them.
        self._preempted_before = frozenset(scheduler.reset_preempted_req_ids)
        for name in self.queue.last_first(self._preempted_before):
            self._note_preempted(name)
        # Under asynchronous scheduling vLLM skips a request whose last token is still being computed; the core learns
        # only now that it has ended. Any other difference in number needs a look at every running request.
        if self._missing not in (0, ended) and not self._foreign:
            self._correct()
        self._missing = 0
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        if not (finished or aborted or self._preempted or self._refused or self._progress):
            self.core.complete(free_blocks=free)  # nearly every step: what the plan said came true
            return
        left = {*finished, *aborted}
        # Progress of a request that a reset has preempted since would read as its admission.
        stale = left.union(self._preempted)
        self.core.complete(
            finished=finished,
            preempted=_without(self._preempted, left),
            refused=self._refused,
            progress=[p for p in self._progress if p[0] not in stale] if stale else self._progress,
            free_blocks=free,
        )
        self._preempted, self._refused, self._progress, self._gone = [], [], [], []
        for number in aborted:
            self.core.abort(number)

    def _decide(self, now_ns: int) -> None:
        scheduler = self.scheduler
        if not self.settings.shadow:
            self._watch(now_ns)
        if self.prefixes.moved and self.prefixes.used:
            self.prefixes.tell(self.core, self._requests)
        plan = self._plan = self.core.plan(now_ns)
        requests = self._requests
        self._offered = [*plan.resumed, *plan.admitted]
        self._held = {"held": plan.held, "paused": len(plan.paused)}
        if plan.held:
            self.telemetry.explain(self.core, self.queue, self._ids)
        if self.settings.shadow or self.watchdog.is_open:
            return
        offered = [requests[number] for number in self._offered]
        self.queue.open([*self._foreign.values(), *offered] if self._foreign else offered)
        # vLLM skips a running request while current_step < next_decode_eligible_step and increments current_step
        # first. Set anew for every step, so that a pause ends by itself should we no longer be asked.
        if (paused := plan.paused) and self._may_pause:
            step = scheduler.current_step + 2
            for number in paused:
                request = requests[number]
                request.next_decode_eligible_step = max(request.next_decode_eligible_step, step)
            self.counts["paused"] += len(paused)
        # Below one token per running request the last ones would starve, and without chunked prefill a long prompt
        # would wait for ever.
        if plan.token_budget < self._budget and scheduler.scheduler_config.enable_chunked_prefill:
            per_request = 1 + scheduler.num_spec_tokens
            floor = per_request * (len(scheduler.running) + 1)
            scheduler.max_num_scheduled_tokens = min(self._budget, max(plan.token_budget, floor))

    def _compare(self, output: SchedulerOutput) -> None:
        plan, self._plan = self._plan, None
        if plan is None:
            return
        self.counts["steps"] += 1
        if output.preempted_req_ids:
            for name in self.queue.last_first(output.preempted_req_ids - self._preempted_before):
                self._note_preempted(name)
        cached = dict(plan.cached)
        for number in self._offered:
            if self._requests[number].status == RequestStatus.RUNNING:
                self._prefilling[number] = cached.get(number, 0)
            else:
                self._refused.append(number)
        if plan.admitted:
            now_ns = time.monotonic_ns()
            admitted = [n for n in plan.admitted if n in self._prefilling]
            self.telemetry.holds_ns += [now_ns - self._arrivals[n] for n in admitted]
        ungated = self.watchdog.is_open or self.settings.shadow
        unplanned = self._note_ungated(output) if ungated else 0
        if plan.paused and (ungated or not self._may_pause):
            unplanned += self._note_unpaused(plan.paused, output)
        self.counts["refused"] += len(self._refused)
        chunks = dict(plan.prefill)
        done = []
        self.prefixes.moved |= bool(self._prefilling)
        for number, before in self._prefilling.items():
            request = self._requests[number]
            now = request.num_computed_tokens
            if now - before != chunks.get(number, 0):
                self._progress.append((number, now))
            self._prefilling[number] = now
            if not request.is_prefill_chunk:
                done.append(number)
        for number in done:
            del self._prefilling[number]
        if output.scheduled_spec_decode_tokens:
            for name in output.scheduled_spec_decode_tokens:
                if (known := self._ids.get(name)) is not None:
                    self._progress.append((known, self._requests[known].num_computed_tokens))
        else:
            named = len(self._preempted) + len(self._refused)
            scheduled = len(output.num_scheduled_tokens) - unplanned
            self._missing = plan.num_decodes + len(chunks) - named - scheduled
        if output.total_num_scheduled_tokens:
            self.watchdog.progressed()

    def _note_preempted(self, name: str) -> None:
        number = self._ids.get(name)
        if number is not None:
            self.prefixes.moved = True
            self._prefilling.pop(number, None)
            self._preempted.append(number)

    def _note_ungated(self, output: SchedulerOutput) -> int:
        """Tell the core of requests that vLLM took by itself: progress of a waiting request means it was admitted."""
        offered = set(self._offered)
        names = [data.req_id for data in output.scheduled_new_reqs]
        names += output.scheduled_cached_reqs.resumed_req_ids
        taken = [number for name in names if (number := self._ids.get(name)) is not None and number not in offered]
        for number in taken:
            self._prefilling[number] = -1  # differs from any chunk: progress is reported below
        self.counts["ungated"] += len(taken)
        return len(taken)

    def _note_unpaused(self, paused: Iterable[int], output: SchedulerOutput) -> int:
        """Tell the core of requests that vLLM ran although the plan paused them."""
        ran = [n for n in paused if self._requests[n].request_id in output.num_scheduled_tokens]
        self._progress += [(n, self._requests[n].num_computed_tokens) for n in ran if n not in self._prefilling]
        return len(ran)

    def _correct(self) -> None:
        """Report every running request: vLLM left out decodes that the plan counted on, or ran others."""
        self.counts["corrected"] += 1
        known = {number for number, _ in self._progress}
        for request in self.scheduler.running:
            number = self._ids.get(request.request_id)
            if number is not None and number not in known:
                self._progress.append((number, request.num_computed_tokens))

    # -- when things go wrong ---------------------------------------------------------------------------------------

    def _watch(self, now_ns: int) -> None:
        """Open the gates when requests wait or pause and no token was scheduled for too long; close them afterwards."""
        pause = self.scheduler.pause_state
        stuck = len(self.scheduler.running) if pause != PauseState.PAUSED_ALL else 0
        stuck += len(self.queue) - len(self.unready) if pause == PauseState.UNPAUSED else 0
        self.counts["watchdog"] += self.watchdog.look(now_ns, self.settings.watchdog_s, stuck, self._why_first)

    def _why_first(self) -> str:
        first = [request.request_id for request in [*self.scheduler.running[:1], *list(self.queue)[:1]]]
        holds = [(name, self.core.explain(self._ids[name])) for name in first if name in self._ids]
        return ", ".join(f"{name}: {hold.reason} {hold.limit}" for name, hold in holds if hold) or "no hold"

    def _fail(self, where: str, error: BaseException) -> None:
        """Leave scheduling to vLLM for the rest of the process."""
        telemetry.let_pass(error)
        self.active = False
        self._plan = None
        self.release()
        if self.log is not None:
            self.log.close()
        try:
            self.scheduler.waiting = gated_queue.without_a_gate(self.scheduler.policy, self.queue)
        except Exception:
            logger.exception("wait-core: the waiting queue stays ours")
        logger.error(
            "wait-core failed (%s: %s: %s). vLLM schedules by itself from now on; restart the engine to use wait-core "
            "again, and report this.",
            where,
            type(error).__name__,
            error,
            exc_info=error,
        )


def _without(numbers: list[int], left: Iterable[int]) -> list[int]:
    return [n for n in numbers if n not in left] if left else numbers
