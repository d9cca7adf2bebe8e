"""Between vLLM's scheduler and the core: names become integers, decisions become a gate, outcomes become reports."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import create_request_queue
from vllm.v1.request import RequestStatus

from wait_core.vllm import config, support
from wait_core.vllm.gated_queue import GatedQueue

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request

    from wait_core import Plan

logger = init_logger(__name__)


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
        self.settings = config.read(scheduler.vllm_config.additional_config.get(config.KEY))
        support.check(scheduler)
        pool = scheduler.kv_cache_manager.block_pool
        self.core = config.make_core(
            self.settings,
            {
                "kv_blocks": pool.num_gpu_blocks - 1,  # one is vLLM's null block
                "block_size": scheduler.block_size,
                "max_num_seqs": scheduler.max_num_active_reqs,
                "token_budget": scheduler.max_num_scheduled_tokens,
                "max_model_len": scheduler.max_model_len,
                "watermark": scheduler.scheduler_config.watermark,
                "host_preempts": True,
            },
        )
        self.active = True
        self.queue = GatedQueue(scheduler.waiting)
        scheduler.waiting = self.queue

        self._next = 0
        self._ids: dict[str, int] = {}
        self._requests: dict[int, Request] = {}
        self._foreign: dict[str, Request] = {}
        self._prefilling: dict[int, int] = {}  # id -> tokens computed when last looked at
        self._plan: Plan | None = None
        self._offered: list[int] = []
        self._preempted_before: frozenset[str] = frozenset()
        self._budget = scheduler.max_num_scheduled_tokens

        # For the next call of complete().
        self._preempted: list[int] = []
        self._refused: list[int] = []
        self._progress: list[tuple[int, int]] = []
        self._gone: list[int] = []
        self._missing = 0  # requests the last plan counted on and vLLM did not schedule

        self._quiet_since_ns: int | None = None
        self.gates_open = False
        self.counts = {"steps": 0, "paused": 0, "refused": 0, "watchdog": 0, "foreign": 0, "corrected": 0}

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
                self._report()
                if self.scheduler.pause_state != PauseState.PAUSED_ALL:
                    self._decide()
            except BaseException as error:  # noqa: BLE001
                self._fail("before schedule", error)

    def release(self) -> None:
        """Undo what holds for one step only; also after an error of vLLM's own."""
        self.queue.close()
        self.scheduler.max_num_scheduled_tokens = self._budget

    def after_step(self, output: SchedulerOutput) -> None:
        """Compare what vLLM scheduled with the plan and keep the difference for the next report."""
        if self.active:
            try:
                self._compare(output)
            except BaseException as error:  # noqa: BLE001
                self._fail("after schedule", error)

    def report(self) -> dict[str, Any]:
        """Return the adapter's counts since the start."""
        return {"active": self.active, "policy": self.settings.policy, **self.counts}

    # -- arrivals ---------------------------------------------------------------------------------------------------

    def _add(self, request: Request) -> None:
        name = request.request_id
        if self.scheduler.requests.get(name) is not request:
            return  # a further input chunk of a streaming session
        if name in self._ids:  # reused before the core heard that its first bearer had left
            self._gone.append(self._forget(name))
        if request.resumable:
            self._make_foreign(request, "a streaming session")
            return
        number = self._next
        self._next += 1
        room = max(1, self.scheduler.max_model_len - request.num_prompt_tokens)
        length = min(request.max_tokens, room)
        error = self._core_error()
        try:
            self.core.add(
                number,
                request.num_prompt_tokens,
                length if self.settings.use_max_tokens else None,
                output_tokens=length if self.settings.known_lengths and _length_is_known(request) else None,
                priority=request.priority,
                now_ns=time.monotonic_ns(),
            )
        except error as refusal:
            self._make_foreign(request, str(refusal))
            return
        self._ids[name] = number
        self._requests[number] = request

    def _make_foreign(self, request: Request, why: str) -> None:
        self._foreign[request.request_id] = request
        self.counts["foreign"] += 1
        logger.debug("wait-core lets request %s through ungated: %s", request.request_id, why)

    def _forget(self, name: str) -> int:
        number = self._ids.pop(name)
        del self._requests[number]
        self._prefilling.pop(number, None)
        return number

    # -- one step ---------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        scheduler = self.scheduler
        aborted: list[int] = []
        finished = self._gone
        ended = 0
        for name in scheduler.finished_req_ids:
            self._foreign.pop(name, None)
            number = self._ids.get(name)
            if number is None or scheduler.requests.get(name) is self._requests[number]:
                continue
            status = self._requests[number].status
            ended += status == RequestStatus.FINISHED_LENGTH_CAPPED
            (aborted if status == RequestStatus.FINISHED_ABORTED else finished).append(self._forget(name))
        # Preempted between two steps, by a reset of the prefix cache: the next step may already resume them.
        self._preempted_before = frozenset(scheduler.reset_preempted_req_ids)
        for name in self._preempted_before:
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
            refused=_without(self._refused, left),
            progress=[p for p in self._progress if p[0] not in stale] if stale else self._progress,
            free_blocks=free,
        )
        self._preempted, self._refused, self._progress, self._gone = [], [], [], []
        for number in aborted:
            self.core.abort(number)

    def _decide(self) -> None:
        scheduler = self.scheduler
        now_ns = time.monotonic_ns()
        self._watch(now_ns)
        plan = self._plan = self.core.plan(now_ns)
        requests = self._requests
        self._offered = [*plan.resumed, *plan.admitted]
        if not self.gates_open:
            offered = [requests[number] for number in self._offered]
            self.queue.open([*self._foreign.values(), *offered] if self._foreign else offered)
        # vLLM skips a running request while current_step < next_decode_eligible_step and increments current_step
        # first. Set anew for every step, so that a pause ends by itself should we no longer be asked.
        if paused := plan.paused:
            step = scheduler.current_step + 2
            for number in paused:
                requests[number].next_decode_eligible_step = step
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
            for name in output.preempted_req_ids - self._preempted_before:
                self._note_preempted(name)
        running = RequestStatus.RUNNING
        for number in self._offered:
            if self._requests[number].status == running:
                self._prefilling[number] = 0
            else:
                self._refused.append(number)
        if self.gates_open:
            self._note_ungated(output)
        self.counts["refused"] += len(self._refused)
        chunks = dict(plan.prefill)
        done = []
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
            self._missing = plan.num_decodes + len(chunks) - named - len(output.num_scheduled_tokens)
        if output.total_num_scheduled_tokens:
            self._quiet_since_ns = None

    def _note_preempted(self, name: str) -> None:
        number = self._ids.get(name)
        if number is not None:
            self._prefilling.pop(number, None)
            self._preempted.append(number)

    def _note_ungated(self, output: SchedulerOutput) -> None:
        """Tell the core of requests that vLLM took by itself: progress of a waiting request means it was admitted."""
        offered = set(self._offered)
        names = [data.req_id for data in output.scheduled_new_reqs]
        names += output.scheduled_cached_reqs.resumed_req_ids
        for name in names:
            number = self._ids.get(name)
            if number is not None and number not in offered:
                self._prefilling[number] = -1  # differs from any chunk: progress is reported below

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
        """Open the gates when requests wait and no token has been scheduled for too long; close them afterwards."""
        if self._quiet_since_ns is None:
            self._quiet_since_ns = now_ns
            self.gates_open = False
            return
        limit_ns = self.settings.watchdog_s * 1e9
        if self.gates_open or not limit_ns or not len(self.queue) or self.scheduler.pause_state != PauseState.UNPAUSED:
            return
        if now_ns - self._quiet_since_ns > limit_ns:
            self.gates_open = True
            self.counts["watchdog"] += 1
            # Once as a warning: a core that stalls again and again must not flood the log; the count tells.
            say = logger.warning if self.counts["watchdog"] == 1 else logger.debug
            say(
                "wait-core: %d requests wait and no token has been scheduled for %.1f s; the gates open until tokens "
                "flow. First in line: %s",
                len(self.queue),
                self.settings.watchdog_s,
                self._why_first(),
            )

    def _why_first(self) -> str:
        request = next(iter(self.queue))
        number = self._ids.get(request.request_id)
        hold = None if number is None else self.core.explain(number)
        return f"{request.request_id}, no hold" if hold is None else f"{request.request_id}, {hold.reason} {hold.limit}"

    def _fail(self, where: str, error: BaseException) -> None:
        """Leave scheduling to vLLM for the rest of the process."""
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise error
        self.active = False
        self._plan = None
        self.release()
        try:
            stock = create_request_queue(self.scheduler.policy)
            for request in self.queue:
                stock.add_request(request)
            self.scheduler.waiting = stock
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

    @staticmethod
    def _core_error() -> type[Exception]:
        from wait_core import WaitCoreError  # noqa: PLC0415  beside `config.make_core`, the only users of the extension

        return WaitCoreError


def _length_is_known(request: Request) -> bool:
    """Whether `request` ends at ``max_tokens`` and nowhere else, unless the client aborts it."""
    params = request.sampling_params
    return (
        params is not None
        and params.ignore_eos
        and not params.stop
        and not params.stop_token_ids
        and params.repetition_detection is None
        and request.structured_output_request is None
    )


def _without(numbers: list[int], left: Iterable[int]) -> list[int]:
    return [n for n in numbers if n not in left] if left else numbers
