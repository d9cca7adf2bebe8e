"""Send requests to two replicas behind Ray Serve, kill one of them, and print the outcome of each request as
JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray_serve
from engine import Job, workload

if TYPE_CHECKING:
    from collections.abc import Callable

JOB = Job(requests=48, prompt_tokens=(8, 120), output_tokens=(8, 100))
UNDER_WAY = 12
"""Requests under way when a replica dies: as many as both have memory for."""
AFTER = 8
"""Requests sent the moment after."""


async def main(router: str) -> dict[str, Any]:
    import ray

    from wait_core.fleet.ray import request_router_config

    work = workload(JOB)
    with ray_serve.serving(request_router_config(router)) as handle:
        answer: dict[str, Any] = {"tokens": {}, "taken": {}, "reported": {}}

        async def ask(_: str, prompt: list[int], output: int) -> list[int] | str:
            try:
                return await asyncio.wait_for(ray_serve.complete(handle, prompt, output), 120)
            except Exception as error:  # noqa: BLE001  what it is is what is asked for
                return f"{type(error).__name__}: {error}"

        # One to let the router come to be, which is then watched from inside this process.
        await ask(*work[0])
        serve_router = ray_serve.request_router(handle)
        taken: dict[str, int] = {}
        heard = serve_router.on_request_routed

        def on_request_routed(pending: Any, replica: Any, result: Any) -> None:
            taken[replica.unique_id] = taken.get(replica.unique_id, 0) + 1
            heard(pending, replica, result)

        serve_router.on_request_routed = on_request_routed
        # Short and long ones in turn, all at once: a router that deals them out in turn gives one replica all the
        # long ones.
        uneven = sorted(work, key=lambda each: each[2])
        uneven = [each for pair in zip(uneven[:24], uneven[24:], strict=True) for each in pair]
        answers = await asyncio.gather(*(ask(*each) for each in uneven))
        answer["tokens"] = {each[0]: tokens for each, tokens in zip(uneven, answers, strict=True)}
        answer["taken"] = dict(taken)
        # A client that leaves.
        left = [asyncio.ensure_future(ask(*each)) for each in work[:4]]
        await asyncio.sleep(0.05)
        for each in left:
            each.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        replicas = list(serve_router.curr_replicas.values())
        # It takes a while for the abort to reach the engine through Ray, and for the report to come back.
        await until(lambda: not serve_router._dispatcher._sent and all(_is_idle(each) for each in replicas))
        answer["reported"] = {each.replica_id.unique_id: each.routing_stats["wait_core"] for each in replicas}
        answer["now_ns"] = time.time_ns()
        answer["known_when_idle"] = len(serve_router._dispatcher._sent)

        # Its process dies while it serves.
        before = sum(taken.values())
        under_way = [asyncio.ensure_future(ask(name, prompt, 120)) for name, prompt, _ in work[:UNDER_WAY]]
        await until(lambda: sum(taken.values()) >= before + UNDER_WAY)  # all are on a replica, where they stay a while
        ray.kill(replicas[0]._actor_handle)
        after = [asyncio.ensure_future(ask(*each)) for each in work[UNDER_WAY : UNDER_WAY + AFTER]]
        answer["under_way"] = dict(zip([each[0] for each in work], await asyncio.gather(*under_way), strict=False))
        answer["after"] = {
            each[0]: tokens for each, tokens in zip(work[UNDER_WAY:], await asyncio.gather(*after), strict=False)
        }
        await until(lambda: not serve_router._dispatcher._sent)
        answer["known_at_end"] = len(serve_router._dispatcher._sent)
    return answer


async def until(holds: Callable[[], bool]) -> None:
    """Wait for an effect of Ray's threads, for half a minute at most."""
    deadline = time.monotonic() + 30
    while not holds() and time.monotonic() < deadline:  # noqa: ASYNC110  other threads set no event of this loop
        await asyncio.sleep(0.02)


def _is_idle(replica: Any) -> bool:
    load = replica.routing_stats["wait_core"]["load"]
    return bool(load["waiting"] == load["residents"] == 0)


if __name__ == "__main__":
    job = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as name:
        ray_serve.prepare(Path(name))
        print(json.dumps(asyncio.run(main(job["router"]))))
