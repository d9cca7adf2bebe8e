"""first-server.md and vllm.md: servers started by their commands answer their other commands as the pages say."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from engine import LLAMA, write_model
from live import Server, get, installed_entry_points, write_tokenizer

from wait_core.cli import main

DOCS = Path(__file__).parents[2] / "docs"
HERE = "http://localhost:8000"


@pytest.mark.timeout(400)
def test_the_first_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, serve, ask, doctor, watch = commands("tutorial/first-server.md")
    server = started(serve, tmp_path)
    try:
        server.wait()
        answer = json.loads(shell(ask.replace(HERE, server.url)))
        assert answer["usage"]["completion_tokens"] > 0
        assert schedules(doctor, server, capsys)
        assert shell(watch.replace(HERE, server.url)).split()[-1] == "1.0"
    finally:
        server.stop()


@pytest.mark.timeout(400)
def test_a_server_with_a_promise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What vllm.md adds to the first server: a target, the middleware, a settings file, a file of what is learned."""
    monkeypatch.chdir(tmp_path)
    _, plain, promise, check, *_ = commands("vllm.md")
    settings, serve = promise.replace("\\\n", " ").splitlines()
    shell(settings)
    assert serve.split(" ", 1)[1].startswith(plain.strip()), "what the promise is added to"
    server = started(serve, tmp_path)
    doctor, watch = check.splitlines()
    try:
        server.wait()
        assert schedules(doctor, server, capsys)
        assert shell(watch.replace(HERE, server.url)).split()[-1] == "1.0"
        assert json.loads(get(f"{server.url}/get_load")) == {"load": 0}, "the middleware answers"
        log = server.log.read_text()
        assert "ttft_target" in log
        assert "settings.json" in log
    finally:
        server.stop()


def commands(page: str) -> list[str]:
    """Return the blocks of commands of a page."""
    return re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def started(command: str, folder: Path) -> Server:
    """Start a page's server: a model of random weights under the name of the page's, a free port, a small machine."""
    words = shlex.split(command)
    at = words.index("vllm")
    variables = dict(word.split("=", 1) for word in words[:at])
    model, *options = words[at + 2 :]
    asked = {flag.removeprefix("--"): value for flag, value in zip(options[::2], options[1::2], strict=True)}
    small = {"dtype": "float32", "enforce-eager": True, "block-size": 32, "num-gpu-blocks-override": 40}
    small |= {"max-model-len": "256", "served-model-name": model}
    weights = write_model(folder / "model")
    write_tokenizer(weights, LLAMA["vocab_size"])
    installed_entry_points(folder)
    return Server(weights, folder, small | asked, folder / "server.log", **variables)


def schedules(doctor: str, server: Server, capsys: pytest.CaptureFixture[str]) -> bool:
    """Whether the page's call of the doctor says that wait-core schedules."""
    main(["doctor", *shlex.split(doctor.replace(HERE, server.url))[2:]])
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    return ["its", "scheduler,", "engine", "0", "ok", "wait-core", "schedules"] in rows


def shell(command: str) -> str:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=120).stdout
