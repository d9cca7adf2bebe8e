"""What vLLM did otherwise than planned, kept until the next report to the core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.request import RequestStatus

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request

    from wait_core import Plan
    from wait_core.vllm.gated_queue import GatedQueue

RUNNING = RequestStatus.RUNNING  # each access to a member of an enumeration is a call


class Outcomes:
    """Compares each step with its plan; only requests for which something else happened are named.

    Attributes
    ----------
    admitted
        Of those that the last plan admitted the ones that vLLM did.
    gone, aborted
        Requests that have ended since the last report: with their output complete, and without.
    ended
        How many of them ended at their maximum length.
    prefilling
        Requests that compute their prompt, each with the tokens computed when last looked at.
    loading
        Requests that hold blocks and wait: a KV connector fetches their KV, or has, and vLLM runs them next.
    followed
        Whether the last step computed what its plan said, as far as can be seen: then its time is that of the plan.
    moved
        Whether the last step may have changed what of a prompt is cached or held.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        queue: GatedQueue,
        ids: Mapping[str, int],
        requests: Mapping[int, Request],
        counts: dict[str, int],
    ) -> None:
        self._scheduler = scheduler
        self._queue = queue
        self._ids = ids
        self._requests = requests
        self._counts = counts
        self.gone: list[int] = []
        self.aborted: list[int] = []
        self.ended = 0
        self.prefilling: dict[int, int] = {}
        self.loading: set[int] = set()
        self.admitted: set[int] = set()
        self.followed = False
        self.moved = False
        self._preempted: list[int] = []
        self._refused: list[int] = []
        self._progress: list[tuple[int, int]] = []
        self._receiving: list[tuple[int, int]] = []
        self._received: list[int] = []
        self._drafted: list[list[int]] = []  # those with drafts: in the last step, and in the one before it
        self._missing = 0  # requests the last plan counted on and vLLM did not schedule
        self._preempted_before: frozenset[str] = frozenset()

    @property
    def under_way(self) -> bool:
        """Whether requests compute or load their prompts, so that the next step has more to compare than a number."""
        return bool(self.prefilling or self.loading or self._received)

    def took(self, number: int) -> None:
        """Note that vLLM admitted a request by itself: its progress is reported, which the core reads as that."""
        self.prefilling[number] = -1  # differs from any chunk

    def look_at_all(self) -> None:
        """Report every running request as far as it has come, and compare its next step: some were set back."""
        for request in self._scheduler.running:
            if (number := self._ids.get(request.request_id)) is not None:
                self.prefilling[number] = request.num_computed_tokens
                self._progress.append((number, request.num_computed_tokens))

    def tell(self, core: Any, *, alone: bool) -> None:
        """Report all of it to `core`; `alone` says that it knows all requests that run."""
        # A reset of the prefix cache preempts between two steps, and the next one resumes.
        self._preempted_before = frozenset(self._scheduler.reset_preempted_req_ids)
        if self._preempted_before:
            self._note_preempted(self._preempted_before)
        finished, aborted = self.gone, self.aborted
        # Under asynchronous scheduling vLLM skips a request whose last token is still being computed; the core learns
        # only now that it has ended. Any other difference in number needs a look at every running request.
        if self._missing not in (0, self.ended) and alone:
            self._correct()
        self._missing = self.ended = 0
        if self._drafted:
            self._tell_drafted()
        if self._received:  # before their progress
            core.complete(received=self._received)
            self._received = []
        if not (finished or aborted or self._preempted or self._refused or self._progress or self._receiving):
            return
        left = {*finished, *aborted}
        # Progress of a request that a reset has preempted since would read as its admission.
        stale = left.union(self._preempted)
        core.complete(
            finished=finished,
            preempted=[number for number in self._preempted if number not in left],
            refused=[number for number in self._refused if number not in finished],
            progress=[p for p in self._progress if p[0] not in stale] if stale else self._progress,
            receiving=self._receiving,
        )
        self._preempted, self._refused, self._progress, self._receiving = [], [], [], []
        self.gone, self.aborted = [], []
        for number in aborted:
            core.abort(number)

    def compare(
        self, plan: Plan, offered: list[int], output: SchedulerOutput, *, ungated: bool, may_pause: bool
    ) -> None:
        """Keep what `output` does otherwise than `plan`, which `offered` those; `ungated`: vLLM was not held to it."""
        if output.preempted_req_ids:
            self._note_preempted(output.preempted_req_ids - self._preempted_before)
            self._preempted_before = frozenset()
        chunks = plan.prefill
        missing = plan.num_decodes + len(chunks) - len(output.num_scheduled_tokens)
        if self.loading or self._scheduler.kv_holding_waiting:  # without a connector never
            missing += self._note_loads() - len(self.loading.intersection(offered))
        self.admitted.clear()
        unlike = False
        if offered:
            self._note_offered(offered, plan.cached)
            # Of a prompt less may be cached than the core was told, and the more computed.
            unlike = output.total_num_scheduled_tokens != plan.num_decodes + sum(tokens for _, tokens in chunks)
        if ungated:
            missing += self._note_ungated(output, offered)
        if (ungated or not may_pause) and (paused := plan.paused):
            missing += self._note_unpaused(paused, output)
        if self.prefilling:
            self.moved = True
            self._note_chunks(dict(chunks))
        missing -= len(self._preempted) + len(self._refused)
        if (drafted := output.scheduled_spec_decode_tokens) or self._drafted:
            self._drafted = [[self._ids[name] for name in drafted if name in self._ids], *self._drafted[:1]]
        self._missing = 0 if drafted else missing
        others = self._preempted or self._refused or self._progress or self._receiving
        self.followed = not (missing or others or unlike or drafted or output.scheduled_encoder_inputs)

    def _note_loads(self) -> int:
        """Note which requests have begun to load their KV, and return how many that had it run now.

        vLLM takes those that hold blocks by itself, before it looks at the queue.
        """
        runs = [n for n in self.loading if self._requests[n].status is RUNNING]
        for number in runs:
            self.loading.remove(number)
            self._received.append(number)
            self.took(number)
        for request in self._scheduler.kv_holding_waiting:
            known = self._ids.get(request.request_id)
            if known is not None and known not in self.loading:
                self.moved = True
                self.loading.add(known)
                self._receiving.append((known, request.num_computed_tokens))
        return len(runs)

    def _note_offered(self, offered: Collection[int], cached: Iterable[tuple[int, int]]) -> None:
        """Note which of those that the plan admits vLLM did, and what is `cached` of their prompts."""
        known = dict(cached)
        for number in offered:
            if self._requests[number].status is RUNNING:
                self.admitted.add(number)
                self.prefilling[number] = known.get(number, 0)
            elif number not in self.loading:
                self._refused.append(number)
                self._counts["refused"] += 1

    def _note_chunks(self, chunks: Mapping[int, int]) -> None:
        done = []
        for number, before in self.prefilling.items():
            request = self._requests[number]
            now = request.num_computed_tokens
            if now - before != chunks.get(number, 0):
                self._progress.append((number, now))
            self.prefilling[number] = now
            if not request.is_prefill_chunk:
                done.append(number)
        for number in done:
            del self.prefilling[number]

    def _note_preempted(self, names: Collection[str]) -> None:
        for name in self._queue.last_first(names):
            number = self._ids.get(name)
            if number is not None:
                self.moved = True
                self.prefilling.pop(number, None)
                self._preempted.append(number)

    def _note_ungated(self, output: SchedulerOutput, offered: Collection[int]) -> int:
        """Tell the core of requests that vLLM took by itself: progress of a waiting request means it was admitted."""
        names = [data.req_id for data in output.scheduled_new_reqs]
        names += output.scheduled_cached_reqs.resumed_req_ids
        known = {number for name in names if (number := self._ids.get(name)) is not None}
        taken = known.difference(offered, self.prefilling)  # those that load have been noted
        for number in taken:
            self.took(number)
        self._counts["ungated"] += len(taken)
        return len(taken)

    def _note_unpaused(self, paused: Iterable[int], output: SchedulerOutput) -> int:
        """Tell the core of requests that vLLM ran although the plan paused them."""
        names = {n: self._requests[n].request_id for n in paused if n not in self.prefilling}
        ran = [n for n, name in names.items() if name in output.num_scheduled_tokens]
        self._progress += [(n, self._requests[n].num_computed_tokens) for n in ran]
        return len(ran)

    def _tell_drafted(self) -> None:
        """Report those with drafts as far as they have come: which drafts were right is known a step or two later."""
        drafted = {number for numbers in self._drafted for number in numbers}
        if not drafted:
            self._drafted = []
        for number in drafted.difference(number for number, _ in self._progress):
            request = self._requests.get(number)
            if request is not None and request.status is RUNNING:
                self._progress.append((number, request.num_computed_tokens))

    def _correct(self) -> None:
        """Report every running request: vLLM left out decodes that the plan counted on, or ran others."""
        self._counts["corrected"] += 1
        known = {number for number, _ in self._progress}
        for request in self._scheduler.running:
            number = self._ids.get(request.request_id)
            if number is not None and number not in known:
                self._progress.append((number, request.num_computed_tokens))
