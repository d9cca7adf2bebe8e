"""vLLM's waiting queue, behind a gate."""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from vllm.v1.core.sched.request_queue import RequestQueue, SchedulingPolicy, create_request_queue

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from vllm.v1.request import Request

SHUT: deque[Request] = deque()
"""What a gate lets through that is shut: nothing is ever put into it."""


class GatedQueue(RequestQueue):
    """Every waiting request in order, of which stock vLLM may take only those let through the gate.

    Between two steps, and whenever no gate is set, it is a plain first-come-first-served queue, except that removing a
    request costs O(1) where vLLM's deque costs O(waiting). `open` sets the gate for one call of vLLM's ``schedule()``:
    truth value, `peek_request` and `pop_request` then see the admitted requests only, while length and iteration still
    see all, so that counts, metrics, aborts and ``has_requests()`` stay right during the call too. One that vLLM takes
    and passes over keeps its place: in vLLM's queue those before it have been passed over as well.

    Nothing here may raise inside vLLM's loop, so it stays this small.
    """

    def __init__(self, requests: Iterable[Request] = ()) -> None:
        self._line: OrderedDict[str, Request] = OrderedDict((r.request_id, r) for r in requests)
        self._gate: deque[Request] | None = None
        self._taken: set[str] = set()  # through the gate: they leave when it closes

    def open(self, admitted: Collection[Request]) -> None:
        """Let only `admitted` through, in this order; those no longer waiting are left out."""
        self._gate = deque([r for r in admitted if r.request_id in self._line]) if admitted else SHUT

    def close(self) -> None:
        """Take the gate away: the queue is whole again."""
        self._gate = None
        if self._taken:
            for name in self._taken:
                del self._line[name]
            self._taken.clear()

    def add_request(self, request: Request) -> None:
        """Append `request`."""
        self._line[request.request_id] = request
        self._taken.discard(request.request_id)

    def prepend_request(self, request: Request) -> None:
        """Put `request` in front of the queue, behind the gate; one that has just been taken, where it was."""
        if request.request_id in self._taken:
            self._taken.remove(request.request_id)
            return
        self._line[request.request_id] = request
        self._line.move_to_end(request.request_id, last=False)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """Put `requests` in front one after the other, so that the last comes first, as vLLM's own queue does."""
        for request in requests:
            self.prepend_request(request)

    def pop_request(self) -> Request:
        """Take the next request that may be admitted; IndexError if there is none."""
        if self._gate is None:
            if not self._line:
                raise IndexError("pop from an empty queue")
            return self._line.popitem(last=False)[1]
        request = self._gate.popleft()
        self._taken.add(request.request_id)
        return request

    def peek_request(self) -> Request:
        """Return the next request that may be admitted; IndexError if there is none."""
        if self._gate is not None:
            return self._gate[0]
        if not self._line:
            raise IndexError("peek from an empty queue")
        return next(iter(self._line.values()))

    def remove_request(self, request: Request) -> None:
        """Remove `request`; ValueError if it is not waiting here, as vLLM's own queue says."""
        if request not in self:
            raise ValueError(f"{request.request_id} is not waiting here")
        del self._line[request.request_id]

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Remove those of `requests` that are waiting here."""
        for request in requests:
            if request.request_id not in self._taken:
                self._line.pop(request.request_id, None)

    def last_first(self, names: Collection[str]) -> list[str]:
        """Return `names` from the back of the queue to its front: the core puts each before the last reported.

        The preempted stand in front, so the queue is hardly looked at; by priority it is.
        """
        if not names:
            return []
        left, found = set(names), []
        for request in self:
            if request.request_id in left:
                left.remove(request.request_id)
                found.append(request.request_id)
                if not left:
                    break
        return [*sorted(left), *reversed(found)]

    def __contains__(self, request: object) -> bool:
        name = getattr(request, "request_id", "")
        return request is not None and self._line.get(name) is request and name not in self._taken

    def __getitem__(self, place: int) -> Request:
        """Return the request at a place, as vLLM's own queue does: a look from outside, not for each step."""
        return list(self)[place]

    def __bool__(self) -> bool:
        return bool(self._line if self._gate is None else self._gate)

    def __len__(self) -> int:
        return len(self._line) - len(self._taken)

    def __iter__(self) -> Iterator[Request]:
        waiting = self._line.values()
        return iter([each for each in waiting if each.request_id not in self._taken] if self._taken else waiting)


class PriorityGatedQueue(GatedQueue):
    """The same where vLLM goes by priority: without a gate the order is vLLM's, (priority, arrival)."""

    def __init__(self, requests: Iterable[Request] = ()) -> None:
        super().__init__(requests)
        # A request that has left the queue stays in the heap until it comes to the top, or the heap is made anew.
        self._heap = [*self._line.values()]
        heapq.heapify(self._heap)

    def add_request(self, request: Request) -> None:
        """Put `request` where its priority says."""
        super().add_request(request)
        if len(self._heap) > 2 * len(self._line):
            self._heap = [*self._line.values()]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, request)

    def prepend_request(self, request: Request) -> None:
        """Put `request` where its priority says: vLLM's queue by priority has no front of its own."""
        self.add_request(request)

    def pop_request(self) -> Request:
        """Take the next request that may be admitted; IndexError if there is none."""
        if self._gate is not None:
            return super().pop_request()
        request = self.peek_request()
        heapq.heappop(self._heap)
        del self._line[request.request_id]
        return request

    def peek_request(self) -> Request:
        """Return the next request that may be admitted; IndexError if there is none."""
        if self._gate is not None:
            return super().peek_request()
        while self._heap and self._line.get(self._heap[0].request_id) is not self._heap[0]:
            heapq.heappop(self._heap)
        if not self._heap:
            raise IndexError("peek from an empty queue")
        return self._heap[0]

    def __iter__(self) -> Iterator[Request]:
        return iter(sorted(super().__iter__()))


def behind_a_gate(policy: SchedulingPolicy, requests: Iterable[Request]) -> GatedQueue:
    """Return a queue with a gate that holds `requests`, ordered as vLLM's `policy` wants."""
    return PriorityGatedQueue(requests) if policy == SchedulingPolicy.PRIORITY else GatedQueue(requests)


def without_a_gate(policy: SchedulingPolicy, requests: Iterable[Request]) -> RequestQueue:
    """Return vLLM's own queue that holds `requests`."""
    queue = create_request_queue(policy)
    for request in requests:
        queue.add_request(request)
    return queue
