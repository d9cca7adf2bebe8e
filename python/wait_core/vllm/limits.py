"""What holds for one step of vLLM beside the gate: which requests pause, how many tokens it and a prompt may take."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request

    from wait_core import Plan


class Limits:
    """Sets vLLM's own limits to those of a plan, and back.

    Attributes
    ----------
    may_pause
        Whether residents can pause: vLLM counts the LoRA adapters of those that run, and one that pauses would come
        back beside too many others.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._budget = scheduler.max_num_scheduled_tokens
        self._threshold = scheduler.scheduler_config.long_prefill_token_threshold
        # It cuts decodes with drafts as well, and a state that ends with a block takes no chunk shorter than that.
        self._may_cut = not (scheduler.num_spec_tokens or scheduler.need_mamba_block_aligned_split)
        self.may_pause = scheduler.lora_config is None

    def seats(self) -> int:
        """Return how many more requests vLLM lets run."""
        free: int = self._scheduler.max_num_active_reqs - len(self._scheduler.running)
        return free

    def pause(self, requests: Collection[Request]) -> None:
        """Let these keep their KV and not run.

        vLLM skips a running request while current_step < next_decode_eligible_step and increments current_step first.
        Set anew for every step, so that a pause ends by itself should we no longer be asked.
        """
        step = self._scheduler.current_step + 2
        for request in requests:
            request.next_decode_eligible_step = max(request.next_decode_eligible_step, step)

    def cut(self, plan: Plan, *, has_target: bool) -> None:
        """Let the step, and each prompt in it, take no more tokens than `plan` says."""
        scheduler, config = self._scheduler, self._scheduler.scheduler_config
        if not config.enable_chunked_prefill:
            return  # a long prompt would wait for ever
        # vLLM computes residents in the order of their admission. With a target a late prompt may stand before decodes,
        # and would take the tokens that the plan leaves for them.
        if self._may_cut and has_target and (chunks := plan.prefill):
            longest = max(tokens for _, tokens in chunks)
            config.long_prefill_token_threshold = min(longest, self._threshold or longest)
        # Below one token per running request the last ones would starve.
        if plan.token_budget < self._budget:
            per_request = 1 + scheduler.num_spec_tokens
            floor = per_request * (len(scheduler.running) + 1)
            scheduler.max_num_scheduled_tokens = min(self._budget, max(plan.token_budget, floor))

    def lift(self) -> None:
        """Undo the cuts."""
        self._scheduler.max_num_scheduled_tokens = self._budget
        self._scheduler.scheduler_config.long_prefill_token_threshold = self._threshold
