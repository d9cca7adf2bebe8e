"""Policy ``vllm`` and vLLM's own scheduler: the same tokens, the same victims, the same free blocks at every step."""

from __future__ import annotations

import pytest
from block_truth import ONE_FULL_GROUP, Case, compare

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("case", ONE_FULL_GROUP, ids=lambda case: case.name)
def test_one_full_group_is_exact(case: Case) -> None:
    found = compare(case)
    assert found.exact, found.first
    assert found.steps > 500
    assert found.preemptions >= case.preempts


def test_a_difference_is_seen() -> None:
    from block_truth import Comparison, Seen

    found = Comparison("")
    found.take(0, Seen({"1": 3}, set(), 7), Seen({"1": 3}, set(), 7))
    assert found.exact
    found.take(1, Seen({"1": 1, "2": 4}, set(), 5), Seen({"1": 1}, {"2"}, 8))
    assert (found.tokens_differ, found.free_differs, found.largest, found.core_preemptions) == (1, 1, 3, 1)
    assert found.first == "step 1: tokens (vLLM, core) {'2': (4, 0)}, preempted [] ['2'], free 5 8"
