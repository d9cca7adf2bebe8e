"""Refusing at the door: ``vllm serve ... --middleware wait_core.vllm.AdmissionMiddleware``.

An ASGI application around vLLM's. It answers 503 before anything is tokenised where a request would wait too long, and
two routes that routers poll. Everything else, and every answer of vLLM's, passes as it is. Nothing here imports vLLM.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from wait_core.vllm import clock
from wait_core.vllm.load import LOADS, Loads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from wait_core.vllm.load import Refusal

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Message, Receive, Send], Awaitable[None]]

GUARDED = frozenset(
    {
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/messages",
        "/inference/v1/generate",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
    }
)
"""Routes whose POST requests generate tokens."""
HEADERS = {
    b"x-wait-core-deadline": ("wait_core_deadline", float),
    b"x-wait-core-priority": ("wait_core_priority", int),
    b"x-wait-core-tenant": ("wait_core_tenant", int),
}
"""Headers that say something of one request: the name by which the scheduler finds it in ``vllm_xargs``, its kind."""
MOST = 2**63
"""Numbers from here on do not reach the scheduler's process."""
RANK = b"x-data-parallel-rank"
"""Header by which vLLM lets a request choose its engine."""


class AdmissionMiddleware:
    """Lets a request in, or answers 503 with ``Retry-After`` and the reason.

    Parameters
    ----------
    app
        The application around which it stands.
    loads
        What is known of the engines; those of this process by default.
    """

    def __init__(self, app: App, loads: Loads = LOADS) -> None:
        self.app = app
        self.loads = loads

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, method = scope["path"].removeprefix(scope.get("root_path", "")), scope["method"]
        if method == "GET" and path == "/get_load":
            return await _answer(send, 200, {"load": self.loads.requests()})
        if method == "GET" and path == "/v1/loads":
            engines = self.loads.by_engine()
            now = datetime.fromtimestamp(clock.unix_ns() * 1e-9, UTC)
            answer = {"timestamp": now.isoformat(), "dp_rank_count": len(engines), "loads": engines}
            return await _answer(send, 200, answer)
        if method != "POST" or path not in GUARDED:
            return await self.app(scope, receive, send)
        return await self._admit(scope, receive, send)

    async def _admit(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            asked = _asked(scope["headers"])
        except ValueError as error:
            return await _answer(send, 400, _error(400, str(error)))
        rank = _rank(scope["headers"])
        refusal = self.loads.refusal(asked.get("wait_core_deadline"), rank)
        if refusal is not None:
            retry = (b"retry-after", b"%d" % refusal.retry_after_s)
            return await _answer(send, 503, _refused(refusal), retry)
        if asked:
            scope, receive = await _with_arguments(scope, receive, asked)
        ended = self.loads.let_in(rank)
        try:
            return await self.app(scope, receive, send)
        finally:
            ended()


def _asked(headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    """Return what the headers say of the request, by its name in ``vllm_xargs``."""
    asked: dict[str, Any] = {}
    for header, text in headers:
        if (found := HEADERS.get(header.lower())) is None:
            continue
        name, kind = found
        try:
            value = kind(text)
        except ValueError:
            value = None
        least = -MOST if name == "wait_core_priority" else 0
        if value is None or not least <= value < MOST:
            expected = {"wait_core_deadline": "a number of seconds, 0 or more", "wait_core_tenant": "an index from 0"}
            wanted = expected.get(name, "an integer")
            raise ValueError(f"{header.decode()} must be {wanted}, got {text[:60].decode(errors='replace')!r}")
        asked[name] = value
    return asked


def _rank(headers: list[tuple[bytes, bytes]]) -> int | None:
    text = next((text for header, text in headers if header.lower() == RANK), b"")
    return int(text) if text.isdigit() else None


async def _with_arguments(scope: Message, receive: Receive, asked: dict[str, Any]) -> tuple[Message, Receive]:
    """Put `asked` into ``vllm_xargs`` of the request's body, where the scheduler sees it; what is no JSON stays."""
    parts: list[Message] = []
    while not parts or parts[-1].get("more_body", False):
        parts.append(await receive())
    if parts[-1]["type"] == "http.disconnect":  # it has no more to say
        return scope, _first(parts, receive)
    body = b"".join(part.get("body", b"") for part in parts)
    try:
        value = json.loads(body)
        value["vllm_xargs"] = {**(value.get("vllm_xargs") or {}), **asked}
        body = json.dumps(value).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass  # vLLM says what is wrong with it
    kept = [(name, text) for name, text in scope["headers"] if name.lower() != b"content-length"]
    scope = {**scope, "headers": [*kept, (b"content-length", b"%d" % len(body))]}
    return scope, _first([{"type": "http.request", "body": body, "more_body": False}], receive)


def _first(messages: list[Message], receive: Receive) -> Receive:
    """Return what receives `messages` before the others."""
    left = iter(messages)

    async def received() -> Message:
        return next(left, None) or await receive()

    return received


def _refused(refusal: Refusal) -> dict[str, Any]:
    wait_s, limit_s = round(refusal.predicted_wait_s, 3), round(refusal.limit_s, 3)
    message = f"The request would wait about {wait_s:g} s, longer than the {limit_s:g} s that {refusal.reason} leaves."
    answer = _error(503, message)
    answer["error"] |= {"reason": refusal.reason, "predicted_wait_s": wait_s, "limit_s": limit_s}
    answer["error"]["retry_after_s"] = refusal.retry_after_s
    return answer


def _error(code: int, message: str) -> dict[str, Any]:
    """Return an error in OpenAI's shape, as vLLM fills it."""
    kind = {400: "BadRequestError", 503: "Service Unavailable"}[code]
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


async def _answer(send: Send, status: int, content: dict[str, Any], *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps(content).encode()
    every = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": every})
    await send({"type": "http.response.body", "body": body})
