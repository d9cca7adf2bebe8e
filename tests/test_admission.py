"""Refusing requests at the door, and the routes that routers poll: an ASGI application, without a server or
vLLM."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from wait_core.vllm import clock
from wait_core.vllm.admission import AdmissionMiddleware
from wait_core.vllm.load import Loads

SECOND = 1_000_000_000


def report(**changes: Any) -> dict[str, Any]:
    """Return what an overloaded engine reports: 20 wait, one leaves per second."""
    full = {"running": 8, "waiting": 20, "seats": 8, "waiting_tokens": 2000, "used": 900, "capacity": 1000}
    return full | {"wait_ns": 20 * SECOND, "gap_ns": SECOND, "bounds": {"ttft_target": 5.0}} | changes


class Clock:
    now_ns = 100 * SECOND

    def __call__(self) -> int:
        return self.now_ns


TIME = Clock()


@pytest.fixture(autouse=True)
def _time_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now_ns", TIME)
    monkeypatch.setattr(clock, "unix_ns", lambda: 86_400 * SECOND)


class Served:
    """A fake of vLLM's application: reads the body, and streams an answer."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for part in (b"data: 1\n\n", b"data: 2\n\n"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Door:
    def __init__(self, *reports: dict[str, Any]) -> None:
        self.loads = Loads()
        for engine, each in enumerate(reports):
            self.loads.report(engine, each)
        self.served = Served()
        self.app = AdmissionMiddleware(self.served, self.loads)

    def ask(
        self, path: str = "/v1/completions", method: str = "POST", parts: tuple[bytes, ...] = (b"{}",), **headers: str
    ) -> list[dict[str, Any]]:
        """Return the messages that one request is answered with."""
        sent: list[dict[str, Any]] = []
        named = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
        body = [{"type": "http.request", "body": part, "more_body": i + 1 < len(parts)} for i, part in enumerate(parts)]

        async def receive() -> Any:
            return body.pop(0) if body else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(dict(message))

        scope = {"type": "http", "path": path, "method": method, "headers": named, "root_path": ""}
        asyncio.run(self.app(scope, receive, send))
        return sent

    def status(self, **asked: Any) -> int:
        return int(self.ask(**asked)[0]["status"])

    def get(self, path: str) -> Any:
        return json.loads(self.ask(path, "GET")[1]["body"])


def test_a_request_that_would_be_late_is_answered_503_with_the_reason() -> None:
    counted: list[tuple[int, str]] = []
    door = Door(report())
    door.loads.on_refusal = lambda engine, reason: counted.append((engine, reason))
    start, body = door.ask()
    assert start["status"] == 503
    assert dict(start["headers"])[b"retry-after"] == b"15"
    error = json.loads(body["body"])["error"]
    assert error == {
        "message": "The request would wait about 20 s, longer than the 5 s that ttft_target leaves.",
        "type": "Service Unavailable",
        "param": None,
        "code": 503,
        "reason": "ttft_target",
        "predicted_wait_s": 20.0,
        "limit_s": 5.0,
        "retry_after_s": 15,
    }
    assert door.served.bodies == [], "vLLM has not seen it"
    assert counted == [(0, "ttft_target")]


@pytest.mark.parametrize(
    ("reports", "asked"),
    [
        ((), {}),
        ((report(bounds={}),), {}),
        ((report(bounds={"ttft_target": 21.0}),), {}),
        ((report(waiting=0, wait_ns=0, running=3),), {}),
        ((report(), report(waiting=0, wait_ns=0, running=3)), {}),
        ((report(),), {"path": "/v1/models"}),
        ((report(),), {"path": "/tokenize"}),
        ((report(),), {"method": "OPTIONS"}),
    ],
    ids=["no report", "no bound", "in time", "no queue", "another engine is free", "models", "tokenize", "preflight"],
)
def test_everything_else_passes_as_it_is(reports: tuple[Any, ...], asked: dict[str, Any]) -> None:
    door = Door(*reports)
    sent = door.ask(**asked)
    assert [message.get("body") for message in sent] == [None, b"data: 1\n\n", b"data: 2\n\n", b""]
    assert door.served.bodies == [b"{}"]


def test_the_least_bound_holds_and_a_request_may_set_its_own() -> None:
    door = Door(report(bounds={"ttft_target": 30.0, "max_wait_s": 25.0}))
    assert door.status() == 200
    refused = door.ask(x_wait_core_deadline="4.5")
    assert json.loads(refused[1]["body"])["error"]["reason"] == "deadline"
    assert door.status(x_wait_core_deadline="20.5") == 200
    door = Door(report(bounds={"ttft_target": 30.0, "max_wait_s": 15.0}))
    assert json.loads(door.ask(x_wait_core_deadline="60")[1]["body"])["error"]["reason"] == "max_wait_s"


def test_a_request_may_choose_its_engine() -> None:
    door = Door(report(), report(waiting=0, wait_ns=0, running=0))
    assert door.status(x_data_parallel_rank="0") == 503
    assert door.status(x_data_parallel_rank="1") == 200
    assert door.status(x_data_parallel_rank="7") == 200, "no such engine: vLLM says so"


@pytest.mark.parametrize(
    ("header", "text"),
    [("deadline", "soon"), ("deadline", "-1"), ("deadline", "nan"), ("deadline", "inf"), ("tenant", "-1"),
     ("tenant", "a"), ("priority", "1.5"), ("priority", "9" * 400), ("tenant", "9" * 5000)],
)  # fmt: skip
def test_a_header_that_says_nothing_is_refused(header: str, text: str) -> None:
    door = Door(report(bounds={}))
    named: dict[str, Any] = {f"x_wait_core_{header}": text}
    start, body = door.ask(**named)
    assert start["status"] == 400
    assert f"x-wait-core-{header} must be" in json.loads(body["body"])["error"]["message"]
    assert door.served.bodies == []


def test_what_headers_say_reaches_the_scheduler() -> None:
    door = Door(report(bounds={}))
    parts = (b'{"prompt": "a", "vllm_xargs":', b' {"wait_core_tenant": 3, "x": 1}}')
    asked: dict[str, Any] = {"x_wait_core_deadline": "60.5", "x_wait_core_tenant": "1", "x_wait_core_priority": "-2"}
    assert door.status(parts=parts, content_length="59", **asked) == 200
    body = door.served.bodies[0]
    arguments = {"wait_core_tenant": 1, "x": 1, "wait_core_deadline": 60.5, "wait_core_priority": -2}
    assert json.loads(body) == {"prompt": "a", "vllm_xargs": arguments}
    lengths = [text for name, text in door.served.scopes[0]["headers"] if name == b"content-length"]
    assert lengths == [b"%d" % len(body)]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"5", b"[" * 100_000, b'{"vllm_xargs": 3}', b"\xff"])
def test_a_body_that_is_no_request_reaches_vllm_as_it_is(body: bytes) -> None:
    door = Door(report(bounds={}))
    assert door.status(parts=(body,), x_wait_core_deadline="60") == 200
    assert door.served.bodies == [body]


def test_a_client_that_leaves_while_it_sends_is_left_to_vllm() -> None:
    door = Door(report(bounds={}))
    assert door.status(parts=(), x_wait_core_deadline="60") == 200
    assert door.served.bodies == [b""]


def test_it_counts_what_it_has_let_in_until_the_next_report() -> None:
    door = Door(report(wait_ns=int(3.5 * SECOND), waiting=3))
    open_requests = [door.loads.let_in() for _ in range(2)]
    assert door.loads.refusal() is not None, "two gaps more"
    open_requests.pop()()
    assert door.loads.refusal() is None, "one has ended: vLLM would not have it"
    assert door.get("/get_load") == {"load": 12}
    open_requests[0]()
    assert door.status() == 200
    assert door.get("/get_load") == {"load": 11}, "answered requests are not counted"
    for _ in range(5):
        door.loads.let_in()
    assert door.status() == 503
    door.loads.report(0, report(wait_ns=int(3.5 * SECOND), waiting=3))
    assert door.status() == 200, "the report has counted them"


def test_what_finds_a_seat_does_not_wait() -> None:
    door = Door(report(waiting=0, wait_ns=0, running=2))
    for _ in range(11):
        door.loads.let_in()
    assert door.loads.refusal() is None, "six seats, and five gaps"
    door.loads.let_in()
    assert door.loads.refusal() is not None


def test_a_report_loses_its_force_with_time() -> None:
    """A server that refuses everything receives no more reports of the engine: it must not refuse forever."""
    door = Door(report())
    assert door.status() == 503
    TIME.now_ns += 14 * SECOND
    start, _ = door.ask()
    assert dict(start["headers"])[b"retry-after"] == b"1"
    TIME.now_ns += SECOND
    assert door.status() == 200


def test_the_routes_that_routers_poll() -> None:
    door = Door(report(), report(waiting=0, wait_ns=0, running=3, used=0, waiting_tokens=0))
    for _ in range(2):
        door.loads.let_in()
    for _ in range(50):
        TIME.now_ns += SECOND // 10
        door.loads.generated(1, 30)
    assert door.get("/get_load") == {"load": 33}
    answer = door.get("/v1/loads")
    assert answer["dp_rank_count"] == 2
    assert answer["timestamp"] == "1970-01-02T00:00:00+00:00"
    first, second = answer["loads"]
    assert first == {
        "dp_rank": 0,
        "num_running_reqs": 8,
        "num_waiting_reqs": 21,
        "num_waiting_uncached_tokens": 2000,
        "num_used_tokens": 900,
        "num_total_tokens": 2900,
        "max_total_num_tokens": 1000,
        "max_running_requests": 8,
        "token_usage": 0.9,
        "gen_throughput": 0.0,
        "predicted_wait_s": 16.0,
        "age_s": 5.0,
    }
    assert second["token_usage"] == 0.0
    assert second["gen_throughput"] == pytest.approx(300 * (1 - 0.6065), rel=0.02), "half a time constant at 300/s"
    assert Door().get("/v1/loads")["loads"] == []
    assert Door().get("/get_load") == {"load": 0}


def test_other_connections_pass() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
        seen.append(scope["type"])

    door = AdmissionMiddleware(app, Loads())
    for kind in ("lifespan", "websocket"):
        asyncio.run(door({"type": kind}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan", "websocket"]
