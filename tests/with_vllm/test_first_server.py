"""docs/tutorial/first-server.md: a server started by its command answers its other commands as the page says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from engine import LLAMA, write_model
from live import Server, installed_entry_points, write_tokenizer

from wait_core.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "tutorial" / "first-server.md"
HERE = "http://localhost:8000"


@pytest.mark.timeout(400)
def test_the_first_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    _, serve, ask, doctor, watch = blocks
    program, _, model, *words = shlex.split(serve)
    assert program == "vllm"
    # The page's command on a model of random weights, under the name of the page's, on a free port and a small machine.
    asked = {flag.removeprefix("--"): value for flag, value in zip(words[::2], words[1::2], strict=True)}
    small = {"dtype": "float32", "enforce-eager": True, "block-size": 32, "num-gpu-blocks-override": 40}
    weights = write_model(tmp_path / "model")
    write_tokenizer(weights, LLAMA["vocab_size"])
    installed_entry_points(tmp_path)
    server = Server(weights, tmp_path, {**asked, **small, "served-model-name": model}, tmp_path / "server.log")
    try:
        server.wait()
        answer = json.loads(shell(ask.replace(HERE, server.url)))
        assert answer["usage"]["completion_tokens"] > 0
        main(["doctor", *shlex.split(doctor.replace(HERE, server.url))[2:]])
        rows = [row.split() for row in capsys.readouterr().out.splitlines()]
        assert ["its", "scheduler,", "engine", "0", "ok", "wait-core", "schedules"] in rows
        assert shell(watch.replace(HERE, server.url)).split()[-1] == "1.0"
    finally:
        server.stop()


def shell(command: str) -> str:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=120).stdout
