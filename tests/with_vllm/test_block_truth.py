"""Policy ``vllm`` and vLLM's own scheduler: the same tokens, the same victims, the same free blocks at every step."""

from __future__ import annotations

import pytest
from block_cases import ALL
from block_truth import Case, Comparison, Seen, compare

pytestmark = pytest.mark.filterwarnings("ignore")

CASES = [pytest.param(case, id=case.name) for cases in ALL.values() for case in cases]


@pytest.mark.parametrize("case", CASES)
def test_the_core_counts_as_vllm_does(case: Case) -> None:
    found = compare(case)
    assert found.steps > 500
    assert found.preemptions >= case.preempts
    if not case.differs:
        assert found.exact, found.first
        return
    assert not found.exact, f"they agree now: {case.differs}"
    assert found.largest <= case.apart
    assert found.core_preemptions == pytest.approx(found.preemptions, rel=0.2, abs=9)


def test_a_difference_is_seen() -> None:
    found = Comparison()
    found.take(0, Seen({"1": 3}, set(), 7), Seen({"1": 3}, set(), 7))
    assert found.exact
    found.take(1, Seen({"1": 1, "2": 4}, set(), 5), Seen({"1": 1}, {"2"}, 8))
    assert (found.tokens_differ, found.free_differs, found.largest, found.core_preemptions) == (1, 1, 3, 1)
    assert found.first == "step 1: tokens (vLLM, core) {'2': (4, 0)}, preempted [] ['2'], free 5 8"
