"""Routers that poll the middleware's routes send their traffic where it says the load is lower.

    pip install vllm-router smg uvicorn        # none of them is a dependency
    python -m pytest -m slow tests/test_routers.py

Two workers that answer immediately act as vLLM; the middleware in front of each reports a different load.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wait_core.vllm.admission import AdmissionMiddleware
from wait_core.vllm.load import Loads

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("uvicorn") is None, reason="uvicorn is not installed")]

REQUESTS = 40
ROUTERS = {
    "vllm-router": ["--policy", "power_of_two"],
    "smg": ["launch", "--policy", "least_load", "--load-monitor-interval", "1"],
}


def command(router: str) -> str | None:
    beside = Path(sys.executable).with_name(router)
    return str(beside) if beside.exists() else shutil.which(router)


def serve(port: int, waiting: int) -> None:
    """Run one worker: what vLLM's application answers to a router, and its load."""
    import uvicorn  # type: ignore[import-not-found,unused-ignore]

    served = 0

    async def vllm(scope: Any, receive: Any, send: Any) -> None:
        nonlocal served
        if scope["type"] != "http":
            return
        more = scope["method"] == "POST"
        while more:
            more = (await receive()).get("more_body", False)
        path = scope["path"]
        served += path == "/v1/completions"
        answers: dict[str, Any] = {
            "/v1/models": {"object": "list", "data": [{"id": "tiny", "object": "model", "max_model_len": 256}]},
            "/served": {"served": served},
            "/v1/completions": {"id": "c", "object": "text_completion", "created": 1, "model": "tiny", "choices": []},
        }
        body = json.dumps(answers.get(path, {})).encode()
        known = path in answers or path == "/health"
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200 if known else 404, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    loads = Loads()
    report = {
        "running": 8,
        "waiting": waiting,
        "seats": 8,
        "waiting_tokens": 500 * waiting,
        "used": 400,
        "capacity": 1000,
    }
    loads.report(0, report | {"wait_ns": 0, "gap_ns": 0, "bounds": {}})
    uvicorn.run(AdmissionMiddleware(vllm, loads), host="127.0.0.1", port=port, log_level="error")


@contextlib.contextmanager
def running(*words: str) -> Iterator[None]:
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return json.loads(answer.read() or b"{}")


def until_answered(url: str, body: Any = None, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            get(url, body)
        except (OSError, urllib.error.URLError, ValueError):
            assert time.monotonic() < deadline, url
            time.sleep(0.3)
        else:
            return


@pytest.mark.timeout(240)
@pytest.mark.parametrize("router", ROUTERS)
def test_the_worker_with_the_lower_load_gets_the_traffic(router: str) -> None:
    program = command(router)
    if program is None:
        pytest.skip(f"{router} is not installed")
    busy, calm, front = free_port(), free_port(), free_port()
    urls = [f"http://127.0.0.1:{port}" for port in (busy, calm)]
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
    with (
        running(sys.executable, __file__, str(busy), "60"),
        running(sys.executable, __file__, str(calm), "0"),
    ):
        for url in urls:
            until_answered(f"{url}/get_load")
        options = ["--host", "127.0.0.1", "--port", str(front), "--worker-urls", *urls]
        with running(program, *ROUTERS[router], *options):
            until_answered(f"http://127.0.0.1:{front}/v1/completions", body)
            time.sleep(35 if router == "vllm-router" else 4)  # it polls the loads every 30 s, and every second
            before = [get(f"{url}/served")["served"] for url in urls]
            for _ in range(REQUESTS):
                get(f"http://127.0.0.1:{front}/v1/completions", body)
            after = [get(f"{url}/served")["served"] for url in urls]
    assert [b - a for a, b in zip(before, after, strict=True)] == [0, REQUESTS]


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
