"""The waiting queue behind the gate, against vLLM's own."""

from __future__ import annotations

import random
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")


class Request:
    def __init__(self, request_id: str) -> None:
        self.request_id = request_id


def request(name: object) -> Any:
    return Request(str(name))


def test_without_a_gate_it_is_vllms_fcfs_queue() -> None:
    from vllm.v1.core.sched.request_queue import FCFSRequestQueue

    from wait_core.vllm.gated_queue import GatedQueue

    draw = random.Random(7)
    theirs, ours = FCFSRequestQueue(), GatedQueue()
    for i in range(2000):
        one = request(i)
        match draw.randrange(7):
            case 0 | 1 | 2:
                theirs.add_request(one)
                ours.add_request(one)
            case 3:
                theirs.prepend_request(one)
                ours.prepend_request(one)
            case 4 if theirs:
                assert theirs.peek_request() is ours.peek_request()
                assert theirs.pop_request() is ours.pop_request()
            case 5:
                some = [request(f"{i}.{j}") for j in range(3)]
                theirs.prepend_requests(some)
                ours.prepend_requests(some)
            case 6:
                gone = draw.sample(list(theirs), min(2, len(theirs)))
                theirs.remove_requests([*gone, one])
                ours.remove_requests([*gone, one])
                for queue in (theirs, ours):
                    with pytest.raises(ValueError, match=r"."):
                        queue.remove_request(one)
        assert list(theirs) == list(ours)
        assert all(theirs[place] is ours[place] for place in (0, -1) if theirs)
        assert (one in theirs) == (one in ours)
        assert len(theirs) == len(ours)
        assert bool(theirs) == bool(ours)


def test_without_a_gate_it_is_vllms_priority_queue() -> None:
    from vllm import SamplingParams
    from vllm.v1.core.sched.request_queue import PriorityRequestQueue, SchedulingPolicy
    from vllm.v1.request import Request as Theirs

    from wait_core.vllm.gated_queue import PriorityGatedQueue, behind_a_gate

    def ranked(number: int) -> Any:
        sampling = SamplingParams(max_tokens=1)
        return Theirs(str(number), [1], sampling, None, arrival_time=draw.random(), priority=draw.randint(-2, 2))

    draw = random.Random(8)
    theirs, ours = PriorityRequestQueue(), behind_a_gate(SchedulingPolicy.PRIORITY, [])
    assert isinstance(ours, PriorityGatedQueue)
    out: list[Any] = []
    longest = 0
    for i in range(2000):
        match draw.randrange(8):
            case 0 | 1:
                one = ranked(i)
                theirs.add_request(one)
                ours.add_request(one)
            case 2 if out:  # preempted: it was here before, and may be again
                one = out.pop()
                theirs.prepend_request(one)
                ours.prepend_request(one)
            case 3 if theirs:
                assert theirs.peek_request() is ours.peek_request()
                out.append(theirs.pop_request())
                assert ours.pop_request() is out[-1]
            case 4 if theirs:  # let through a gate, as most are
                one = draw.choice(list(theirs))
                ours.open([one])
                assert ours.pop_request() is one
                ours.close()
                theirs.remove_request(one)
                out.append(one)
            case 5:
                gone = draw.sample(list(theirs), min(2, len(theirs)))
                theirs.remove_requests(gone)
                ours.remove_requests(gone)
            case 6 if len(out) > 2:
                theirs.prepend_requests(out[:2])
                ours.prepend_requests(out[:2])
                del out[:2]
        assert list(theirs) == list(ours)
        assert len(theirs) == len(ours)
        assert bool(theirs) == bool(ours)
        longest = max(longest, len(ours))
        assert len(ours._heap) <= 2 * longest + 1, "requests that have left do not pile up"


def test_behind_the_gate_only_the_admitted_are_seen_and_all_are_counted() -> None:
    from wait_core.vllm.gated_queue import GatedQueue

    line = [request(i) for i in range(5)]
    queue = GatedQueue(line)
    queue.open([line[3], request(99), line[1]])  # 99 does not wait: it was aborted
    assert (bool(queue), len(queue), queue.peek_request()) == (True, 5, line[3])
    assert queue.pop_request() is line[3]
    queue.prepend_request(request(7))  # preempted meanwhile: behind the gate
    assert queue.pop_request() is line[1]
    assert not queue
    with pytest.raises(IndexError):
        queue.pop_request()
    assert [r.request_id for r in queue] == ["7", "0", "2", "4"]
    queue.close()
    assert queue
    assert queue.peek_request().request_id == "7"


def test_empty() -> None:
    from wait_core.vllm.gated_queue import GatedQueue

    queue = GatedQueue()
    for take in (queue.pop_request, queue.peek_request):
        with pytest.raises(IndexError):
            take()
    with pytest.raises(ValueError, match="1 is not waiting here"):
        queue.remove_request(request(1))


@pytest.mark.parametrize("passed_over", [(3,), (3, 1), (1, 3)])
def test_what_is_taken_and_passed_over_keeps_its_place(passed_over: tuple[int, ...]) -> None:
    from wait_core.vllm.gated_queue import GatedQueue

    line = [request(i) for i in range(5)]
    queue = GatedQueue(line)
    queue.open([line[1], line[2], line[3]])
    taken = [queue.pop_request() for _ in range(3)]
    assert (list(queue), len(queue), line[3] in queue) == ([line[0], line[4]], 2, False)
    queue.remove_requests(taken)
    queue.prepend_requests([line[i] for i in passed_over])
    queue.prepend_request(request(9))  # preempted: in front of all
    left = ["9", *(str(i) for i in range(5) if i not in {1, 2, 3} or i in passed_over)]
    assert [each.request_id for each in queue] == left
    queue.close()
    assert [each.request_id for each in queue] == left
    assert len(queue) == len(left)
