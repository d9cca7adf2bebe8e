"""Requests that the core receives later than vLLM: until their grammar is compiled, or, by priority, the next step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.v1.request import RequestStatus

if TYPE_CHECKING:
    from vllm.v1.request import Request

NOT_READY = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR


class Unready:
    """Keeps them from the core until they are ready.

    vLLM passes over a request whose grammar is not compiled and takes the next. The core would offer it in every step,
    and hold others for the seat, the blocks and the tokens that it counts on.

    Under priority scheduling vLLM orders equals by their arrival at the front end, which several front ends and long
    prompts may pass on in another order. The core orders equals as it receives them: before each step, in vLLM's order.
    """

    def __init__(self, *, by_priority: bool = False) -> None:
        self._by_priority = by_priority
        self.kept: dict[str, tuple[Request, int]] = {}
        """Those kept, by name, with their arrival, ns."""

    def keeps(self, request: Request, now_ns: int) -> bool:
        """Return whether `request`, which arrives, is kept: it is not ready, or its order is not known yet."""
        if request.status is not NOT_READY and not self._by_priority:
            return False
        self.kept[request.request_id] = request, now_ns
        return True

    def ready(self) -> list[tuple[Request, int]]:
        """Return those that have become ready, with their arrival in ns; those gone are forgotten.

        One whose grammar is wrong is ready too: vLLM ends it once it is offered.
        """
        kept = {name: one for name, one in self.kept.items() if not one[0].is_finished()}
        ready = [one for one in kept.values() if _is_compiled(one[0])]
        for request, _ in ready:
            del kept[request.request_id]
        self.kept = kept
        return sorted(ready) if self._by_priority else ready


def _is_compiled(request: Request) -> bool:
    wanted = request.structured_output_request
    return wanted is None or wanted.grammar is not None
