"""The core inside a serving loop of your own: add, plan, complete, abort.

The "engine" here computes nothing and draws when outputs end; everything else is what a real host does.
"""

from __future__ import annotations

import random

from wait_core import Scheduler


def main() -> None:
    """Serve 200 requests on a KV cache that holds about twenty of them."""
    rng = random.Random(0)  # noqa: S311 - lengths, not secrets
    scheduler = Scheduler("vllm", kv_blocks=160, block_size=16, max_num_seqs=64, token_budget=512)
    output_length = {}
    for request in range(200):
        scheduler.add(request, prompt_tokens=rng.randint(16, 128), max_tokens=64)
        output_length[request] = rng.randint(4, 64)

    running: set[int] = set()
    iterations = 0
    while len(scheduler):
        plan = scheduler.plan()
        iterations += 1
        # 1. Do what the plan says: preempt, admit, compute the prefill chunks, decode everything that is not paused.
        running -= set(plan.preempted)
        running |= {request for request, _ in plan.prefill}
        # 2. Report only what the plan could not know: here, the requests that have completed.
        finished = [request for request in running if scheduler.stage(request) == output_length[request]]
        running -= set(finished)
        scheduler.complete(finished=finished)
    stats = scheduler.stats
    print(f"{stats['finished']} requests in {iterations} iterations, {stats['preemptions']} preemptions")


if __name__ == "__main__":
    main()
