"""A scheduler to drive by hand, with every policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from wait_core._core import Scheduler, WaitCoreError

if TYPE_CHECKING:
    from collections.abc import Callable

TYPES: list[Any] = [{"prompt": 8, "output": 4, "rate": 1.0}, {"prompt": 8, "output": 12, "rate": 1.0}]
POLICIES: dict[str, dict[str, Any]] = {
    "vllm": {},
    "wait": {"types": TYPES},
    "nested-wait": {"types": TYPES},
    "prefill-first": {},
    "adaptive": {},
    "sarathi": {},
    "clairvoyant": {},
}


def scheduler(policy: str = "vllm", **changes: Any) -> Scheduler:
    """Return a scheduler over ten blocks of four tokens."""
    sizes = {"kv_blocks": 10, "block_size": 4, "max_num_seqs": 8, "token_budget": 64}
    return Scheduler(policy, **(sizes | POLICIES[policy] | changes))


def said(error: BaseException) -> str:
    """Return the message and its notes: a traceback shows both."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


def refused(call: Callable[[], object], *names: str, kind: type[Exception] = WaitCoreError) -> str:
    with pytest.raises(kind) as caught:
        call()
    for name in names:
        assert name in said(caught.value), said(caught.value)
    return said(caught.value)


def run_to_the_end(core: Scheduler, outputs: dict[int, int], *, iterations: int = 2000) -> None:
    """Plan and complete until every request in `outputs` has its tokens."""
    for _ in range(iterations):
        core.plan()
        ended = [i for i, tokens in outputs.items() if (core.stage(i) or 0) >= tokens and i not in held(core)]
        core.complete(finished=ended)
        for i in ended:
            del outputs[i]
        if not outputs:
            assert len(core) == 0
            assert core.used_blocks == 0
            return
    pytest.fail(f"not finished: {outputs}")


def held(core: Scheduler) -> set[int]:
    """Return the requests that the last plan did not run."""
    return {i for i in range(1000) if i in core and core.explain(i) is not None}
