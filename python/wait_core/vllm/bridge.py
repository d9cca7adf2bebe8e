"""Between vLLM's scheduler and the core: names become integers, decisions become a gate, outcomes become reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.request import RequestStatus

from wait_core import DeadlineError, WaitCoreError
from wait_core.vllm import clock, gated_queue, kv_groups, late, prefixes, telemetry, transfer
from wait_core.vllm.control import Control
from wait_core.vllm.limits import Limits
from wait_core.vllm.outcomes import Outcomes
from wait_core.vllm.step_times import StepTimes
from wait_core.vllm.unready import Unready
from wait_core.vllm.watchdog import Watchdog

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request

    from wait_core import Plan

logger = init_logger(f"vllm.{__name__}")  # vLLM configures the loggers under its own name only

# Every step and request compares with these, and each access to a member of an enumeration is a call.
PAUSED_ALL = PauseState.PAUSED_ALL
RUNNING = RequestStatus.RUNNING
PREEMPTED = RequestStatus.PREEMPTED  # the last before those of requests that have ended
LENGTH_CAPPED = RequestStatus.FINISHED_LENGTH_CAPPED
LOOK_NS = 1_000_000_000
"""Time between two looks at what changes seldom: the files of the settings and of what is learned, the law."""
NOT_TIMED: tuple[int | None, int | None] = (None, None)
"""No step has ended whose plan has not been told: its time, ns, and the number of its plan."""
COMPLETE = (RequestStatus.FINISHED_STOPPED, LENGTH_CAPPED, RequestStatus.FINISHED_REPETITION)
"""How a request ends whose output is complete: of those the core learns lengths. The others left, or were given up."""


class Bridge:
    """One engine's line to the core.

    Ids: the core knows a request by a number given here at arrival and never used again. A request that the core does
    not know (it refused it, or the request is a streaming session) is `foreign`: it passes the gate freely and the core
    notices it only through the count of free blocks.

    Reports: what vLLM did with a plan is reported to the core at the start of the next step, together with what
    finished in between; only requests for which something other than the plan happened are named. So the work per step
    grows with the number of requests that changed, not with those running. In nearly every step the residents decode a
    token each, as planned: then it is one call of the core and a comparison of two numbers (`_steady`), for after the
    model has run the processor's caches hold none of this.

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
        self.unready = Unready(by_priority=scheduler.policy is SchedulingPolicy.PRIORITY)
        self.late = late.Late(scheduler)
        self.active = True
        self.queue = gated_queue.behind_a_gate(scheduler.policy, scheduler.waiting)
        scheduler.waiting = self.queue
        self.watchdog = Watchdog(scheduler, self.queue, self.unready)

        self._next = 0
        self._ids: dict[str, int] = {}
        self._requests: dict[int, Request] = {}
        self._arrivals: dict[int, int] = {}  # id -> ns
        self._foreign: dict[str, Request] = {}
        self._plan: Plan | None = None
        self._offered: list[int] = []
        self.paused = 0
        self.limits = Limits(scheduler)

        names = ("steps", "paused", "refused", "watchdog", "foreign", "corrected", "ungated", "reconfigured")
        self.counts = dict.fromkeys(names, 0)
        self.outcomes = Outcomes(scheduler, self.queue, self._ids, self._requests, self.counts)
        self.times: StepTimes[tuple[Any, int] | None] = StepTimes()
        self.now_ns = 0  # of the last call before a step, or with its output
        self._next_look_ns, self._next_due_ns = 0, late.NEVER
        self._timed = NOT_TIMED
        self._free_blocks = kv_groups.free_blocks(scheduler)
        # The core charges for shared prefixes until it has been told how many blocks are free.
        self.core.complete(free_blocks=self._free_blocks())
        # Whether the last step went as planned, and nothing is left to tell the core or to look after; once the next
        # plan is made, whether that lets the residents decode and no more.
        self._steady = False

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
                begun_ns = clock.tick_ns()
                now_ns = self.now_ns = clock.now_ns()
                scheduler = self.scheduler
                ended = scheduler.finished_req_ids or scheduler.reset_preempted_req_ids
                if not self._steady or ended or now_ns >= self._next_due_ns:
                    self._steady = False
                    self._report()
                if now_ns >= self._next_look_ns:
                    self._next_look_ns = now_ns + LOOK_NS
                    self._steady = False
                    self._exchange(now_ns)
                    self.telemetry.look(self.core)
                if scheduler.pause_state is not PAUSED_ALL:
                    self._decide(now_ns)
                    self.telemetry.decisions_ns.append(clock.tick_ns() - begun_ns)
            except BaseException as error:  # noqa: BLE001
                self._fail("before schedule", error)

    def release(self) -> None:
        """Undo what holds for one step only, also after an error of vLLM's own: nothing here can fail."""
        self.queue.close()
        if not self._steady:  # as it is until a plan has been followed and compared
            self.limits.lift()

    def after_step(self, output: SchedulerOutput) -> None:
        """Compare what vLLM scheduled with the plan and keep the difference for the next report."""
        if self.active:
            try:
                plan, self._plan = self._plan, None
                if (
                    plan is not None
                    and self._steady
                    and plan.num_decodes == len(output.num_scheduled_tokens) > 0
                    and not output.preempted_req_ids
                ):
                    self.counts["steps"] += 1
                    self.times.scheduled(self.now_ns, (self.core, plan.iteration))
                else:
                    self._compare(plan, output)
            except BaseException as error:  # noqa: BLE001
                self._fail("after schedule", error)

    def step_ended(self, output: SchedulerOutput) -> None:
        """Take the time of a step whose output is in."""
        if self.active and output.total_num_scheduled_tokens:
            try:
                now_ns = self.now_ns = clock.now_ns()
                step = self.times.ended(now_ns)
                # A core that has taken over since knows nothing of the plan.
                if step is not None and (planned := step[0]) is not None and planned[0] is self.core:
                    if self._timed is not NOT_TIMED:  # several steps are under way
                        self.core.complete(step_ns=self._timed[0], iteration=self._timed[1])
                    self._timed = step[1], planned[1]
            except BaseException as error:  # noqa: BLE001
                self._fail("update_from_output", error)

    def step_handled(self, output: ModelRunnerOutput) -> None:
        """Note that the output of a step has been taken in, and what of it the next step would see too late."""
        if self.active:
            try:
                self.times.handled(clock.now_ns())
                if not self.scheduler.running and self.scheduler.finished_req_ids:  # there may be no further step
                    self._let_go()
                loads = output.kv_connector_output
                if loads is not None and loads.invalid_block_ids:  # requests that ran on them compute them again
                    self._steady = False
                    self.outcomes.look_at_all()
            except BaseException as error:  # noqa: BLE001
                self._fail("update_from_output", error)

    def keep(self, *, ends: bool) -> None:
        """Write what is to outlive the engine, which rests now, or ends."""
        if self.active:
            try:
                self.control.keep(clock.now_ns(), ends=ends)
            except BaseException as error:  # noqa: BLE001
                self._fail("while resting", error)

    def report(self) -> dict[str, Any]:
        """Return the adapter's counts since the start."""
        law = self.telemetry.law.figures
        return {"active": self.active, "policy": self.settings.policy, "iteration_time": law, **self.counts}

    # -- arrivals ---------------------------------------------------------------------------------------------------

    def _add(self, request: Request) -> None:
        name = request.request_id
        if self.scheduler.requests.get(name) is not request:
            return  # a further input chunk of a streaming session
        if name in self._ids:  # reused before the core heard that its first bearer had left
            self._let_go()
        if request.resumable:
            self._make_foreign(request, None)
            return
        now_ns = clock.now_ns()
        self.telemetry.arrived(now_ns)
        if self.unready.keeps(request, now_ns):
            self._steady = False
        else:
            self._declare(request, now_ns)

    def _declare(self, request: Request, now_ns: int) -> None:
        number = self._next
        self._next += 1
        try:
            longest = transfer.declare(self.core, number, request, (self.scheduler, self.settings), now_ns)
        except DeadlineError:
            self.late.end(request, transfer.broken_bound(self.core, request, self.settings))
        except WaitCoreError as refusal:
            self._make_foreign(request, refusal)
        else:
            if longest is not None:
                self.late.watch(number, now_ns + longest[0], longest[1])
                self._next_due_ns = self.late.next_ns
            self.outcomes.moved = True
            self._steady = self._steady and not self.limits.seats()
            self._arrivals[number] = now_ns
            self._ids[request.request_id] = number
            self._requests[number] = request
            if request.status is RUNNING:  # vLLM took it by itself the moment it was ready
                self.outcomes.took(number)

    def _end(self, number: int, bound: str) -> None:
        """Let a late request, which has left the core, leave vLLM too."""
        self.late.end(request := self._requests[number], bound)
        self._left(request.request_id)

    def _make_foreign(self, request: Request, refusal: WaitCoreError | None) -> None:
        self._steady = False
        self._foreign[request.request_id] = request
        self.counts["foreign"] += 1
        self.telemetry.rejected_for(refusal)
        logger.debug("wait-core lets %s through ungated: %s", request.request_id, refusal or "a streaming session")

    def _forget(self, name: str) -> int:
        number = self._ids.pop(name)
        del self._requests[number], self._arrivals[number]
        self.outcomes.prefilling.pop(number, None)
        self.outcomes.loading.discard(number)
        return number

    def _left(self, name: str) -> int:
        if self.log is not None:
            number = self._ids[name]
            self.core.ended(number, self._requests[number].num_output_tokens)
        return self._forget(name)

    def _exchange(self, now_ns: int) -> None:
        """Look whether another core has taken over, and which requests it refuses."""
        if (refused := self.control.poll(now_ns, self.scheduler, self._requests, self._arrivals)) is None:
            return
        self.core, self.settings = self.control.core, self.control.settings
        self._timed = NOT_TIMED
        self.outcomes.moved = True  # the new core knows nothing of what is cached
        self.telemetry.restart(self.core)
        self.counts["reconfigured"] += 1
        for number, refusal in refused.items():
            self._make_foreign(request := self._requests[number], refusal)
            self._forget(request.request_id)

    # -- one step ---------------------------------------------------------------------------------------------------

    def _let_go(self) -> None:
        """Forget the requests that vLLM has ended since its last step, and keep how they ended for the next report."""
        outcomes = self.outcomes
        for name in self.scheduler.finished_req_ids:
            outcomes.moved = True
            # Not by whether vLLM still has it: a KV connector may keep the blocks of one that has ended, and with them
            # the request; and its name may be in use again.
            if name in self._foreign and self._foreign[name].is_finished():
                del self._foreign[name]
            number = self._ids.get(name)
            if number is None or (status := (request := self._requests[number]).status) <= PREEMPTED:
                continue
            outcomes.ended += status is LENGTH_CAPPED or request.pooling_params is not None
            self.prefixes.left(request)
            (outcomes.gone if status in COMPLETE else outcomes.aborted).append(self._left(name))

    def _report(self) -> None:
        """Tell the core what has come, gone and happened otherwise than planned."""
        if self.unready.kept:
            for request, arrival_ns in self.unready.ready():
                self._declare(request, arrival_ns)
        if self.scheduler.finished_req_ids:
            self._let_go()
        self.outcomes.tell(self.core, alone=not self._foreign)

    def _decide(self, now_ns: int) -> None:
        if not self._steady:
            self._look_after(now_ns)
        step_ns, iteration = self._timed
        self._timed = NOT_TIMED
        free = self._free_blocks()
        plan = self._plan = self.core.plan(now_ns, free_blocks=free, step_ns=step_ns, iteration=iteration)
        if self._steady and plan.only_decodes:
            self.queue.open(())
        else:
            self._steady = False
            self._follow(plan)

    def _look_after(self, now_ns: int) -> None:
        """See to what may have changed though nothing was told: what is cached, waits that are over, a stalled core."""
        if self.watchdog.quiet and not self.settings.shadow:
            self.counts["watchdog"] += self.watchdog.look(now_ns, self.settings.watchdog_s, self._why)
        # No more are admitted than there are seats: what is cached of the others can be asked for later.
        if self.outcomes.moved and (seats := self.limits.seats()) > 0:
            changes = self.prefixes.used and self.prefixes.tell(
                self.core, self._requests, seats, self.outcomes.prefilling
            )
            # Policy `vllm` is vLLM step by step; under any other a chunk may be longer than planned for once.
            self.outcomes.moved = changes and self.settings.policy == "vllm"
        if self.late.watched:
            for number, bound in self.late.due(now_ns, self._requests):
                self.core.abort(number)
                self._end(number, bound)
            self._next_due_ns = self.late.next_ns

    def _follow(self, plan: Plan) -> None:
        """Let vLLM do in this step what `plan` says, and no more."""
        for number, bound, _ in plan.refused:
            self._end(number, bound)
        self._offered = offered = [*plan.resumed, *plan.admitted]
        if self.settings.policy == "vllm" and self.scheduler.policy is SchedulingPolicy.PRIORITY:
            offered.sort(key=self._requests.__getitem__)  # the token budget may cut the last one short
        paused = plan.paused
        self.paused = len(paused)
        if self.telemetry.explains and plan.held:
            self.telemetry.explain(self.core, self.queue, self._ids)
        if self.settings.shadow or self.watchdog.is_open:
            return
        self.queue.open([*self._foreign.values(), *map(self._requests.__getitem__, offered)])
        if paused and self.limits.may_pause:
            self.limits.pause([self._requests[number] for number in paused])
            self.counts["paused"] += len(paused)
        self.limits.cut(plan, has_target=self.control.in_force["ttft_target"] is not None)

    def _compare(self, plan: Plan | None, output: SchedulerOutput) -> None:
        outcomes, planned = self.outcomes, None
        ungated = self.watchdog.is_open or self.settings.shadow
        if plan is not None:
            self.counts["steps"] += 1
            outcomes.compare(plan, self._offered, output, ungated=ungated, may_pause=self.limits.may_pause)
            if outcomes.admitted and (admitted := outcomes.admitted.intersection(plan.admitted)):
                self.telemetry.holds_ns += [self.now_ns - self._arrivals[number] for number in admitted]
            if outcomes.followed and not self._foreign:
                planned = self.core, plan.iteration
            self._offered = []
        if output.total_num_scheduled_tokens:
            self.watchdog.progressed()
            self.times.scheduled(self.now_ns, planned)
        else:
            self.watchdog.quiet = True
            outcomes.moved = True  # an engine at rest may be told to empty its prefix cache
        self._steady = planned is not None and not (
            ungated
            or self.paused
            or outcomes.under_way
            or self.watchdog.quiet
            or self.unready.kept
            or self.telemetry.explains
            or self.scheduler.num_spec_tokens  # which drafts are right is known a step or two later
            or (outcomes.moved and self.limits.seats() > 0)
        )

    # -- when things go wrong ---------------------------------------------------------------------------------------

    def _why(self, names: list[str]) -> str:
        holds = [(name, self.core.explain(self._ids[name])) for name in names if name in self._ids]
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
            "wait-core failed (%s). vLLM schedules by itself from now on; restart the engine to use wait-core again, "
            "and report this.",
            f"{where}: {type(error).__name__}: {error}",
            exc_info=error,
        )
