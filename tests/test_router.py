"""`wait_core.fleet.Router` at its Python border; the rules themselves are tested where they are, in rust/core."""

from __future__ import annotations

from typing import Any

import pytest

from wait_core import Scheduler, WaitCoreError
from wait_core.fleet import ROUTERS, Router


def router(name: str, replicas: int = 2, **settings: Any) -> Router:
    made = Router(name, **settings)
    for i in range(replicas):
        made.add_replica(f"gpu-{i}", kv_blocks=1000, iteration_time={"law": "a100"})
    return made


@pytest.mark.parametrize("name", ROUTERS)
def test_every_request_goes_somewhere_and_is_forgotten_once(name: str) -> None:
    made = router(name, 3)
    for i in range(30):
        choice = made.route(f"request-{i}", i, prompt_tokens=100)
        assert choice.replica in made.replicas
        assert choice.hold is None
    assert all(made.finished(f"request-{i}", 100) for i in range(30))
    assert not any(made.finished(f"request-{i}", 100) for i in range(30))


def test_a_scheduler_says_how_busy_it_is() -> None:
    schedulers = [Scheduler(kv_blocks=1000) for _ in range(2)]
    for i in range(20):
        schedulers[0].add(i, 500)
    schedulers[0].plan()
    made = router("forecast")
    for i, scheduler in enumerate(schedulers):
        assert made.report(f"gpu-{i}", 1_000_000, scheduler.load())
    choice = made.route("request", 2_000_000, prompt_tokens=100)
    assert (choice.replica, choice.by) == ("gpu-1", "forecast")
    assert choice.predicted_ttft_s is not None
    assert 0 < choice.predicted_ttft_s < 1
    assert repr(choice) == 'Choice(replica="gpu-1", by="forecast")'
    load = schedulers[0].load()
    assert load["waiting"] + load["residents"] == 20
    assert load["waiting_tokens"] + load["prefill_tokens"] + load["kv_tokens"] == 20 * 500
    # Other policies learn no lengths: what is not known is absent.
    assert "kv_peak" not in Scheduler("vllm", kv_blocks=10).load()


# Lengths known in advance teach the curve of output lengths nothing: a router was told its prior, hundreds of tokens.
@pytest.mark.parametrize("known", [False, True])
def test_a_scheduler_says_how_long_its_outputs_are(known: bool) -> None:
    scheduler = Scheduler(kv_blocks=1000)
    for i in range(400):
        scheduler.add(i, 16, output_tokens=20 if known else None, now_ns=i * 10**9)
        for step in range(20):
            scheduler.plan(i * 10**9 + step * 10**7)
        scheduler.complete(finished=[i])
    scheduler.plan(400 * 10**9)
    # The curve of hidden lengths keeps a little of its prior.
    assert 19 < scheduler.load()["mean_output"] < (20.1 if known else 35)


def test_a_replica_that_dies_gives_back_the_names_of_its_requests() -> None:
    made = router("round-robin")
    sent = {f"request-{i}": made.route(f"request-{i}", i, prompt_tokens=1).replica for i in range(6)}
    lost = made.remove_replica("gpu-0")
    assert lost == [name for name, replica in sent.items() if replica == "gpu-0"]
    assert made.replicas == ["gpu-1"]
    assert not made.report("gpu-0", 10, {})
    assert {made.route(name, 11, prompt_tokens=1).replica for name in lost} == {"gpu-1"}
    made.add_replica("gpu-0", kv_blocks=1000)  # it comes back, empty
    assert made.remove_replica("gpu-0") == []


def test_a_request_that_is_routed_again_moves() -> None:
    made = router("least-requests")
    first = made.route("request", 0, prompt_tokens=100).replica
    other = made.route("other", 1, prompt_tokens=100).replica
    assert first != other
    made.route("request", 2, prompt_tokens=100)
    assert made.finished("request", 3)
    assert not made.finished("request", 3)


def test_without_replicas_requests_are_held_not_lost() -> None:
    made = router("forecast", 0)
    held = made.route("request", 0, prompt_tokens=100)
    assert (held.replica, held.hold) == (None, "no-replica")
    assert repr(held) == 'Choice(hold="no-replica", by="power-of-two")'
    made.add_replica("gpu", kv_blocks=1000)
    assert made.route("request", 1, prompt_tokens=100).replica == "gpu"


@pytest.mark.parametrize("name", ["least-kv", "vllm", "forecast"])
def test_reports_that_are_stale_for_ever_leave_power_of_two(name: str) -> None:
    made = router(name, stale_after=5.0)
    for replica in made.replicas:
        made.report(replica, 0, {"free_blocks": 1000})
    assert made.route("first", 5_000_000_000, prompt_tokens=100).by == name
    for i in range(50):
        choice = made.route(f"{i}", 5_000_000_001 + i, prompt_tokens=100)
        assert (choice.by, choice.hold) == ("power-of-two", None)
        assert choice.replica in made.replicas


def test_with_a_target_a_late_request_yields_until_none_in_time_is_held() -> None:
    made = router("forecast", 1, ttft_target=2.0)
    full = {"waiting": 20, "residents": 60, "kv_tokens": 15_900, "kv_peak": 15_990.0, "mean_output": 2000.0}
    second = 1_000_000_000
    made.report("gpu-0", 0, full)
    assert made.route("first", 1, prompt_tokens=100).hold == "all-full"
    made.report("gpu-0", 3 * second, full)
    assert made.route("zeroth", 3 * second, prompt_tokens=100, arrived_ns=0).replica == "gpu-0", "one of them may queue"
    assert made.route("first", 3 * second, prompt_tokens=100).hold == "late", "when it came is remembered"
    assert made.route("second", 3 * second, prompt_tokens=100).hold == "all-full"
    assert made.route("third", 3 * second, prompt_tokens=100, arrived_ns=0).hold == "late"
    made.report("gpu-0", 3 * second + 1, {"free_blocks": 1000})
    assert made.route("first", 3 * second + 2, prompt_tokens=100).hold == "late", "the second is in time"
    assert made.finished("second", 3 * second + 3), "its client has left the door"
    assert not made.finished("second", 3 * second + 3)
    assert made.route("first", 3 * second + 4, prompt_tokens=100).replica == "gpu-0"
    assert made.finished("first", 4 * second)
    made.report("gpu-0", 4 * second, {"free_blocks": 1000})
    assert made.route("third", 4 * second, prompt_tokens=100).replica == "gpu-0"


def test_bad_input_is_refused_by_name() -> None:
    with pytest.raises(WaitCoreError, match='did you mean "power-of-two"'):
        Router("power-of-to")
    with pytest.raises(WaitCoreError, match="stale_after = -1"):
        Router(stale_after=-1)
    with pytest.raises(WaitCoreError, match="ttft_target = 0"):
        Router(ttft_target=0.0)
    made = router("forecast")
    with pytest.raises(WaitCoreError, match='model = "other": the other replicas serve ""'):
        made.add_replica("gpu-2", kv_blocks=10, model="other")
    with pytest.raises(WaitCoreError, match="kv_blocks = 0"):
        made.add_replica("gpu-2", kv_blocks=0)
    with pytest.raises(WaitCoreError, match="iteration_time"):
        made.add_replica("gpu-2", kv_blocks=10, iteration_time={"law": "guess"})
    assert made.replicas == ["gpu-0", "gpu-1"]
    with pytest.raises(WaitCoreError, match="unknown field `queue`"):
        made.report("gpu-0", 0, {"queue": 3})
    with pytest.raises(WaitCoreError, match="kv_peak"):
        made.report("gpu-0", 0, {"kv_peak": float("inf")})
    with pytest.raises(WaitCoreError, match="out of range"):
        made.report("gpu-0", -1, {})
    with pytest.raises(WaitCoreError, match="prompt = 0"):
        made.route("request", 0, prompt_tokens=0)
