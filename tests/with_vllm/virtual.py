"""vLLM's own scheduler and KV cache manager, under a clock that passes as a law of iteration times says.

No engine, no model, made-up tokens: a run repeats exactly, on any machine. Steps overlap as on vLLM's GPU engines: one
is scheduled while the one before it runs, so what arrives in between enters one step later.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from in_process import Driver, Setup
from serving import Serving

from wait_core._core import iteration_seconds
from wait_core.vllm import clock

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from serving import Call, Client, Served


def step_ns(law: Mapping[str, Any], driver: Driver, scheduled: Any) -> int:
    """Return how long a step takes that was just scheduled, ns."""
    decodes, decode_kv, chunks = 0, 0, []
    for name, tokens in scheduled.num_scheduled_tokens.items():
        request = driver.scheduler.requests[name]
        before = request.num_computed_tokens - tokens  # vLLM counts what it has scheduled as computed
        if tokens == 1 and before >= request.num_prompt_tokens:
            decodes, decode_kv = decodes + 1, decode_kv + before + 1
        else:
            chunks.append((tokens, before))
    return round(1e9 * iteration_seconds(law, decodes=decodes, decode_kv=decode_kv, chunks=chunks))


class _Ending:
    """The requests whose answer ends with the token that is made up next."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __contains__(self, name: object) -> bool:
        request = self._engine.driver.scheduler.requests[name]
        length = self._engine.open[str(name)].call.output
        return bool(request.num_computed_tokens - request.num_prompt_tokens + 1 >= length)


class Engine(Serving):
    """One scheduler under a law.

    Parameters
    ----------
    setup
        The scheduler; with `ahead` 1 steps overlap.
    law
        The iteration-time law, as `wait_core.hardware.iteration_time` gives it.
    """

    def __init__(self, setup: Setup, law: Mapping[str, Any]) -> None:
        super().__init__(setup.max_model_len)
        self.setup = setup
        self.law = law
        self._now_ns = 0
        with self._clock():
            self.driver = Driver(setup)
        self._ending = _Ending(self)
        self._running: deque[int] = deque()  # when the steps in flight end, ns
        self._free_ns = 0  # the GPU has nothing to do from then on

    @contextmanager
    def _clock(self) -> Iterator[None]:
        real, clock.now_ns = clock.now_ns, lambda: self._now_ns
        try:
            yield
        finally:
            clock.now_ns = real

    @property
    def now_ns(self) -> int:
        """The virtual time."""
        return self._now_ns

    def wait(self, until_ns: int) -> None:
        """Let time pass while nothing runs."""
        self._now_ns = max(self._now_ns, until_ns)

    def steps(self, clients: Sequence[Client]) -> Generator[None, None, Served]:
        """Serve under the virtual clock."""
        with self._clock():
            return (yield from super().steps(clients))

    def add(self, call: Call, max_tokens: int) -> None:
        """Queue a request; the model ends its answer after `call.output` tokens, which the scheduler does not know."""
        self.driver.add(call.name, call.prompt, max_tokens, ignore_eos=call.ignores_eos)

    def abort(self, name: str) -> None:
        """End a request as a client that goes away does."""
        self.driver.abort(name)

    def step(self) -> tuple[Any, Mapping[int, Any] | None]:
        """Schedule a step, and let pass what it has to wait for."""
        step = self.driver.step(self._ending, self._begin)
        return step.scheduled, step.outputs

    def _begin(self, scheduled: Any) -> None:
        """Let time pass: a step begins, and if it has to wait for one before it, until that ends."""
        ahead = self.setup.ahead
        if scheduled.total_num_scheduled_tokens:
            self._free_ns = max(self._free_ns, self._now_ns) + step_ns(self.law, self.driver, scheduled)
            self._running.append(self._free_ns)
        else:
            ahead = 0
        if len(self._running) > ahead:
            self._now_ns = self._running.popleft()
