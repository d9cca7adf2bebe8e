"""A live API server with the middleware: 503 at the door, requests that end late, what routers poll, and its end."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
from live import get, samples
from test_server import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MIDDLEWARE = "wait_core.vllm.AdmissionMiddleware"
CROWD = 24


def ask(url: str, tokens: int = 80, *, chat: bool = False, headers: Any = None, **more: Any) -> tuple[int, Any, Any]:
    """Return status, headers and the answer of one request; of a streamed one its chunks."""
    said: dict[str, Any] = {"messages": [{"role": "user", "content": "w5 w6"}]} if chat else {"prompt": [5, 6, 7] * 10}
    body = {"model": "tiny", "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **said, **more}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    request = urllib.request.Request(  # noqa: S310
        url + path, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
            if not more.get("stream"):
                return answer.status, answer.headers, json.load(answer)
            lines = [line.decode().strip() for line in answer]
            assert lines[-2] == "data: [DONE]"
            return answer.status, answer.headers, [json.loads(line[6:]) for line in lines if line[6:7] == "{"]
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.load(error)


def until(found: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait until `found` returns something true, and return it."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def loads(url: str) -> Any:
    return json.loads(get(f"{url}/v1/loads?include=core"))["loads"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("servers", [1, 2])
def test_an_overloaded_server_refuses_and_says_why(tmp_path: Path, servers: int) -> None:
    kept = tmp_path / "learned.json"
    options: dict[str, Any] = {
        "middleware": MIDDLEWARE,
        "max_num_seqs": 2,
        "chat_template": "{{ messages[0].content }}",
    }
    if servers > 1:
        options["api_server_count"] = servers
    with serving(tmp_path, {"learned_file": str(kept)}, **options) as (url, log):
        assert json.loads(get(f"{url}/get_load")) == {"load": 0}
        with crowd(url):
            until(lambda: any(each["predicted_wait_s"] > 1.0 for each in loads(url)))
            assert until(lambda: json.loads(get(f"{url}/get_load"))["load"] > 4)
            look_at_the_door(url)
            look_at_the_queue(url)
            assert ask(url, 5, headers={"x-wait-core-deadline": "100"})[2]["choices"][0]["finish_reason"] == "length"
        shown = samples(get(f"{url}/metrics"))
        labels = '{engine="0",model_name="tiny",reason="deadline"}'
        assert shown[f"wait_core_refused_total{labels}"] >= 1
        # The three of `look_at_the_queue`, and what a server admitted that did not know the queue yet.
        assert shown[f"wait_core_late_total{labels}"] >= 3
        until(lambda: json.loads(get(f"{url}/get_load"))["load"] == 0 or servers > 1)
        time.sleep(1.5)  # the engine has come to rest a second after it was kept last
        ask(url, 2)
        until(kept.exists)
        time.sleep(0.5)
        assert "wait-core failed" not in log.read_text()
        before = kept.read_text()
    assert json.loads(kept.read_text())["policy"] == "adaptive", "it is there after SIGTERM"
    assert len(before) > 500


RUST = os.environ.get("WAIT_CORE_VLLM_RS", "")


@pytest.mark.timeout(600)
@pytest.mark.skipif(not RUST, reason="WAIT_CORE_VLLM_RS names no vllm-rs: GPU wheels of vLLM have one")
def test_behind_the_front_end_in_rust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the scheduler does by itself works, and the log says what does not."""
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    monkeypatch.setenv("VLLM_RUST_FRONTEND_PATH", RUST)
    kept = tmp_path / "learned.json"
    with serving(tmp_path, {"learned_file": str(kept)}, max_num_seqs=2) as (url, log):
        with crowd(url):
            time.sleep(0.5)
            answer = ask(url, 5, vllm_xargs={"wait_core_deadline": 0.02})[2]
            assert answer["choices"][0]["finish_reason"] == "abort"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"{url}/get_load")
        assert "wait_core" not in get(f"{url}/metrics")
        assert "behind vLLM's Rust front end" in log.read_text()
        time.sleep(1.5)
        ask(url, 2)
        until(kept.exists)


@contextmanager
def crowd(url: str) -> Iterator[None]:
    """Keep more requests waiting than the server has seats, however fast it is; each of them ends by its length."""
    left = Event()

    def client(stream: bool) -> int:
        asked = 0
        while not left.is_set():
            status, _, answer = ask(url, 160, stream=stream)
            last = answer[-1] if stream else answer
            assert (status, last["choices"][0]["finish_reason"]) == (200, "length")
            asked += 1
        return asked

    with ThreadPoolExecutor(CROWD) as pool:
        clients = [pool.submit(client, i % 2 == 0) for i in range(CROWD)]
        try:
            yield
        finally:
            left.set()
        assert all(each.result() for each in clients)


def look_at_the_door(url: str) -> None:
    def refused() -> Any:  # by the server that knows: with several, one of them may know nothing yet
        status, headers, answer = ask(url, 1, headers={"x-wait-core-deadline": "0.05"})
        return (headers, answer) if status == 503 else None

    headers, answer = until(refused)
    error = answer["error"]
    assert int(headers["Retry-After"]) == error["retry_after_s"] >= 1
    assert (error["reason"], error["code"], error["limit_s"]) == ("deadline", 503, 0.05)
    assert error["predicted_wait_s"] > 0.05
    assert ask(url, headers={"x-wait-core-deadline": "soon"})[0] == 400


def look_at_the_queue(url: str) -> None:
    """What stands in the body alone is the scheduler's to decide."""
    late: dict[str, Any] = {"vllm_xargs": {"wait_core_deadline": 0.02}}
    for chat in (False, True):
        status, _, answer = ask(url, 5, chat=chat, **late)
        choice = answer["choices"][0]
        assert (status, choice["finish_reason"], choice["stop_reason"]) == (200, "abort", "late: deadline")
        assert answer["usage"]["completion_tokens"] == 0
    status, _, chunks = ask(url, 5, stream=True, **late)
    assert (status, chunks[-1]["error"]["code"]) == (200, 500), (
        "vLLM passes on no other end of a stream without a token"
    )
