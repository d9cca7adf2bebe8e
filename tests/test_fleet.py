"""The simulated fleet against a slow and obvious one, made of the same scheduler and router through their Python
API."""

from __future__ import annotations

import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from wait_core import Scheduler, WaitCoreError, simulate
from wait_core._core import iteration_seconds
from wait_core.cli import main
from wait_core.fleet import ROUTERS, Router
from wait_core.simulation import Change, Disaggregated, Transfer
from wait_core.workload import Requests, sampled

NEVER = np.iinfo(np.uint64).max
LAW: dict[str, Any] = {
    "law": "measured",
    "round_to": 1,
    "steps": [{"up_to": 1 << 20, "base_ns": 8_000_000.0, "per_token_ns": 40_000.0}],
    "attention": dict.fromkeys(
        ("decode_base_ns", "per_decode_ns", "per_decode_kv_ns", "prefill_base_ns", "per_prefill_token_ns",
         "per_prefill_kv_ns", "per_prefill_attention_ns"), 0.0,
    ),
}  # fmt: skip
CORE: dict[str, Any] = {"kv_blocks": 150, "max_num_seqs": 16, "token_budget": 256, "iteration_time": LAW}


class Replica:
    """An engine that is examined in every round."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        """Begin idle."""
        self.name, self.scheduler = name, Scheduler(**settings)
        self.inbox: list[int] = []
        self.here: set[int] = set()
        self.ends: int | None = None
        self.looked = True
        self.reported: tuple[int, dict[str, Any]] | None = None


def slow_fleet(
    requests: Requests, policies: list[str], router: str, staleness_ns: int, **settings: float
) -> dict[int, int]:
    """Return when each request ended: nothing is kept in order, and everything is examined all the time."""
    route = Router(router, seed=3, **settings)
    replicas = [Replica(f"{i}", {"policy": policy, **CORE}) for i, policy in enumerate(policies)]
    for replica in replicas:
        about = {key: CORE[key] for key in ("kv_blocks", "max_num_seqs", "token_budget", "iteration_time")}
        route.add_replica(replica.name, **about)
    arrivals = dict(enumerate(requests.arrival_ns.tolist()))
    half, reads = staleness_ns // 2, router in {"least-kv", "vllm", "forecast"}
    reports: list[tuple[int, str, int, dict[str, Any]]] = []
    door: list[int] = []
    late: list[int] = []
    finished: dict[int, int] = {}

    def send(request: int, now: int) -> str | None:
        for replica in replicas if reads else []:
            idle = replica.ends is None and replica.looked and not replica.inbox
            if idle and replica.reported and replica.reported[0] + 2 * max(half, 1) < now - half:
                replica.reported = (now - half, replica.reported[1])
                route.report(replica.name, *replica.reported)
        prompt, arrived_ns = int(requests.prompt[request]), int(requests.arrival_ns[request])
        choice = route.route(str(request), now, prompt_tokens=prompt, arrived_ns=arrived_ns)
        if choice.replica is not None:
            replicas[int(choice.replica)].inbox.append(request)
        return choice.hold

    def take(replica: Replica, now: int) -> None:
        replica.reported = (now, replica.scheduler.load())
        reports.append((now + half, replica.name, *replica.reported))

    def deliver(now: int) -> bool:
        arrived = [report for report in reports if report[0] <= now]
        for report in arrived:
            route.report(*report[1:])
            reports.remove(report)
        return bool(arrived)

    def open_door(now: int) -> None:
        while door:
            hold = send(door[0], now)
            if hold not in (None, "late"):
                return
            late.extend([door[0]] if hold else [])
            door.pop(0)
        while late and send(late[0], now) is None:
            late.pop(0)

    while len(finished) < len(requests):
        events = [*arrivals.values(), *(report[0] for report in reports)]
        now = min([*events, *(replica.ends for replica in replicas if replica.ends is not None)])
        changed = deliver(now)
        for replica in replicas:
            if replica.ends != now:
                continue
            replica.ends = None
            done = [i for i in sorted(replica.here) if replica.scheduler.stage(i) == requests.output[i]]
            replica.scheduler.complete(finished=done)
            for i in done:
                finished[i] = now
                route.finished(str(i), now)
            replica.here -= set(done)
            replica.looked = False
            changed |= bool(done)
        if changed:
            open_door(now)
        for i in [i for i, at in arrivals.items() if at == now]:
            del arrivals[i]
            hold = "all-full" if door else send(i, now)
            if hold is not None:
                (late if hold == "late" else door).append(i)
        while True:
            for replica in replicas:
                if replica.ends is not None or (replica.looked and not replica.inbox):
                    continue
                for i in replica.inbox:
                    sent = int(requests.arrival_ns[i])
                    replica.scheduler.add(i, int(requests.prompt[i]), now_ns=sent)
                    replica.here.add(i)
                replica.inbox, replica.looked = [], True
                if reads and (replica.reported is None or now >= replica.reported[0] + half):
                    take(replica, now)
                plan = replica.scheduler.plan(now)
                chunks = [(tokens, 0) for _, tokens in plan.prefill]
                if plan.preempted and not plan.num_decodes and not chunks:
                    replica.ends = now  # it only makes room
                elif plan.num_decodes or chunks:
                    seconds = iteration_seconds(LAW, decodes=plan.num_decodes, chunks=chunks)
                    replica.ends = now + round(seconds * 1e9)
                elif reads:
                    take(replica, now)
            if not deliver(now):
                break
            open_door(now)
    return finished


def stream(count: int, rate: float, seed: int) -> Requests:
    """Short chats, of which an engine of `CORE` holds a dozen."""
    requests = sampled("p64d32", request_rate=rate, num_prompts=count, seed=seed)
    random = np.random.default_rng(seed)
    prompt = random.integers(10, 300, count).astype(np.uint32)
    output = random.integers(1, 120, count).astype(np.uint32)
    return Requests(name="chats", arrival_ns=requests.arrival_ns, prompt=prompt, output=output, rate=rate)


@pytest.mark.parametrize("staleness_s", [0.0, 0.3])
@pytest.mark.parametrize("router", ROUTERS)
def test_the_fleet_does_what_a_slow_one_does(router: str, staleness_s: float) -> None:
    requests = stream(250, 40.0, 5)
    expected = slow_fleet(requests, ["vllm"] * 3, router, round(staleness_s * 1e9))
    report = simulate(
        "vllm",
        requests=requests,
        replicas=3,
        router=router,
        staleness_s=staleness_s,
        seed=3,
        **CORE | {"iteration_time": LAW},
    )
    assert report.run.finished_ns.tolist() == [expected[i] for i in range(len(requests))]
    assert report.run.fleet is not None
    assert sum(each["completed"] for each in report.run.fleet["replicas"]) == len(requests)


@pytest.mark.parametrize("policy", ["vllm", "adaptive"])
@pytest.mark.parametrize("staleness_s", [0.0, 0.3])
@pytest.mark.parametrize("router", ROUTERS)
def test_pools_are_two_fleets_in_series(router: str, staleness_s: float, policy: str) -> None:
    """Where no client waits for an answer, nor a transfer for a link, the decode replicas are a fleet to which requests
    come with their KV."""
    requests = stream(250, 40.0, 5)
    common: dict[str, Any] = {"router": router, "staleness_s": staleness_s, "seed": 3, **CORE}
    transfer = Transfer(bytes_per_token=0.0, bandwidth=1e10, latency_s=0.012)
    report = simulate(
        policy, requests=requests, replicas=Disaggregated(prefill=2, decode=3, transfer=transfer), **common
    )
    prompts = replace(requests, output=np.ones_like(requests.output))
    first = simulate(policy, requests=prompts, replicas=2, max_tokens=1, lengths="known", **common).run
    assert np.array_equal(report.run.first_token_ns, first.first_token_ns)
    several = np.flatnonzero(requests.output > 1)
    order = several[np.argsort(first.finished_ns[several], kind="stable")]
    handed = Requests(
        name="handed over",
        arrival_ns=first.finished_ns[order],
        prompt=requests.prompt[order] + 1,
        output=requests.output[order] - 1,
        rate=40.0,
    )
    second = simulate(policy, requests=handed, replicas=3, transfer=transfer, **common).run
    assert np.array_equal(report.run.finished_ns[order], second.finished_ns)
    assert report.run.counts["prompt_tokens"] == requests.prompt.sum()


@pytest.mark.parametrize("staleness_s", [0.0, 0.3])
def test_late_requests_wait_at_the_door_as_in_a_slow_fleet(staleness_s: float) -> None:
    requests = stream(400, 80.0, 5)
    expected = slow_fleet(requests, ["vllm"] * 3, "forecast", round(staleness_s * 1e9), ttft_target=1.0)

    def finished(router: Any) -> list[int]:
        fleet: dict[str, Any] = {"replicas": 3, "router": router, "staleness_s": staleness_s}
        report = simulate("vllm", requests=requests, seed=3, **fleet, **CORE)
        ended: list[int] = report.run.finished_ns.tolist()
        return ended

    found = finished({"router": "forecast", "ttft_target": 1.0})
    assert found == [expected[i] for i in range(len(requests))]
    assert found != finished("forecast")


def test_one_replica_is_what_a_simulation_without_a_fleet_is() -> None:
    requests = stream(300, 15.0, 2)
    alone = simulate("adaptive", requests=requests, **CORE)
    for router in ROUTERS:
        one = simulate(
            "adaptive", requests=requests, replicas=1, router={"router": router, "longest_queue": 1e9}, **CORE
        )
        assert one.run.finished_ns.tolist() == alone.run.finished_ns.tolist()
        figures = one.summary()
        for key in ("router", "replicas", "resent", "held", "held_s"):
            del figures[key]
        assert json.dumps(figures) == json.dumps(alone.summary())


def test_threads_and_pickles_change_nothing() -> None:
    requests = stream(300, 60.0, 2)

    def run(_: int) -> Any:
        changes = [Change(at_s=1.0, replica=0, kind="fail"), Change(at_s=2.0, replica=0, kind="join")]
        return simulate("adaptive", requests=requests, replicas=4, router="power-of-two", changes=changes, **CORE).run

    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(run, range(4)))
    runs.append(pickle.loads(pickle.dumps(runs[0])))  # noqa: S301  our own
    for other in runs[1:]:
        assert other.finished_ns.tolist() == runs[0].finished_ns.tolist()
        assert other.fleet["replica_of"].tolist() == runs[0].fleet["replica_of"].tolist()
        assert {key: str(value) for key, value in other.fleet.items()} == {
            key: str(value) for key, value in runs[0].fleet.items()
        }
    assert runs[0].fleet["resent"] > 0
    assert (runs[0].finished_ns != NEVER).all()


def test_replicas_may_differ() -> None:
    requests = stream(400, 60.0, 2)
    slow = LAW | {"steps": [{"up_to": 1 << 20, "base_ns": 40_000_000.0, "per_token_ns": 200_000.0}]}
    fleet = [{}, {}, {"iteration_time": slow, "kv_blocks": 60}]
    report = simulate("adaptive", requests=requests, replicas=fleet, router="forecast", **CORE)
    assert report.run.fleet is not None
    served = [each["completed"] for each in report.run.fleet["replicas"]]
    assert served[2] < min(served[:2]) / 2
    assert [each["kv_blocks"] for each in report.run.fleet["replicas"]] == [150, 150, 60]
    predicted = report.run.fleet["predicted_ttft_s"]
    assert (predicted[-100:] > 0).all()


def test_bad_input_is_refused_by_name() -> None:
    requests = stream(10, 60.0, 2)

    def refused(match: str, **given: Any) -> None:
        with pytest.raises(WaitCoreError, match=match):
            simulate("adaptive", requests=requests, **{"replicas": 2} | given, **CORE)

    refused("replicas = 0", replicas=0)
    refused("replicas = 0", replicas=[])
    refused("router = 'nearest': one of random", router="nearest")
    refused("unknown field `patience`", router={"router": "forecast", "patience": 3})
    refused("staleness_s = -1", staleness_s=-1)
    refused("threads = 0", threads=0)
    refused("routers = 0", routers=0)
    refused("changes.replica = 2", changes=[Change(at_s=0, replica=2, kind="fail")])
    refused("at_s = -1", changes=[Change(at_s=-1, replica=0, kind="fail")])
    refused('kind = "die": must be one of', changes=[Change(at_s=1, replica=0, kind="die")])  # type: ignore[arg-type]
    refused("did you mean", replicas=[{"kv_block": 3}])


def test_the_commands_take_a_fleet(capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--dataset-name", "chat", "--num-prompts", "200", "--request-rate", "20", "--replicas", "4"]
    assert main(["simulate", *common, "--router", "least-requests", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["router"], row["replicas"], row["completed"]) == ("least-requests", 4, 200)
    assert (
        main(
            [
                "compare",
                *common,
                "--routers",
                "random",
                "forecast",
                "--staleness",
                "1",
                "--threads",
                "2",
                "--num-routers",
                "3",
            ]
        )
        == 0
    )
    table = capsys.readouterr().out
    assert "random" in table
    assert "forecast" in table
    assert main(["simulate", "--dataset-name", "chat", "--request-rate", "20", "--router", "random"]) == 2
    assert "--replicas is missing" in capsys.readouterr().err


@pytest.mark.parametrize("router", ["round-robin", "power-of-two", "forecast"])
def test_threads_change_no_result(router: str) -> None:
    requests = stream(600, 60.0, 2)
    changes = [Change(at_s=at_s, replica=1, kind=kind) for at_s, kind in ((2, "fail"), (4, "join"))]  # type: ignore[arg-type]
    one, three = (
        simulate(
            "adaptive",
            requests=requests,
            replicas=4,
            router=router,
            changes=changes,
            staleness_s=0.2,
            threads=threads,
            **CORE,
        ).run
        for threads in (1, 3)
    )
    assert one.__reduce__() == three.__reduce__()


@pytest.mark.parametrize("router", ["random", "forecast"])
def test_threads_end_on_an_exception_and_leave_the_lock_to_others(router: str) -> None:
    requests = stream(200_000, 60.0, 2)
    seen: list[tuple[int, int]] = []
    ticks, ends = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not ends.wait(1e-4):
            ticks += 1

    def watch(completed: int) -> None:
        seen.append((completed, ticks))
        if len(seen) == 4:
            raise KeyboardInterrupt

    other = threading.Thread(target=tick)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        simulate("adaptive", requests=requests, replicas=4, router=router, threads=2, progress=watch, **CORE)
    ends.set()
    other.join()
    assert len(seen) == 4
    assert seen == sorted(seen)
    assert seen[0][1] < seen[-1][1] < ticks + 1
