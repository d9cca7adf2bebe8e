"""Damaged files: every reader returns a value or raises a documented error, in bounded memory and time."""

from __future__ import annotations

import gzip
import json
import random
import re
import resource
import time
from typing import TYPE_CHECKING

import pytest
from test_decision_log import serve
from test_traces import FILES
from zstd import zstd

from wait_core import Scheduler, WaitCoreError
from wait_core._core import iteration_seconds
from wait_core.cli import main
from wait_core.files import FileError, read_object
from wait_core.hardware import iteration_time
from wait_core.logs import replay
from wait_core.logs.step_log import FORMAT, VERSION
from wait_core.logs.step_log import load as load_steps
from wait_core.vllm import config
from wait_core.workload import traces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MOST_SECONDS = 5.0
"""Processor time of one file of a few kilobytes; what has no bound takes minutes or forever."""
MOST_MEMORY = 1 << 30
"""Bytes of address space that a reader may take beyond what the tests already take."""

SPLICES = [
    b"", b"0", b"-1", b"1e999", b"-1e-999", b"1e99999999999999999999", b"NaN", b"Infinity", b"null", b"true", b'"',
    b"'", b",", b"\n", b"\n\n", b"\r", b"\r\n", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800",
    b'"\\ud800"', b"\xd9\xa3", b"[", b"]", b"{", b"}", b"[]", b"{}", b'{"a":', b"4294967295", b"4294967296",
    b"9223372036854775808", b"18446744073709551615", b"18446744073709551616", b"100000000000", b"1073741824",
    b"[" * 20_000, b'{"a":' * 20_000, b"9" * 5_000, b"0." + b"0" * 5_000 + b"1", b'"' + b"x" * 200_000, b"," * 2_000,
    *(b"[" * depth + b"]" * depth for depth in (20, 300, 900, 980)),
    *(b'{"a":' * depth + b"1" + b"}" * depth for depth in (20, 300, 450, 490)),
    b'{"stop":"size"}\n', b'{"drain":true}\n', b'{"set_capacity":1}\n', b'{"abort":1}\n', b"1_000", b"2024-02-30",
]  # fmt: skip


WORDS = re.compile(rb"[\w.+-]+")


def law() -> bytes:
    steps = [{"up_to": 64, "base_ns": 9e6, "per_token_ns": 12e3}, {"up_to": 2048, "base_ns": 1e6, "per_token_ns": 66e3}]
    return json.dumps(
        {"law": "measured", "round_to": 1, "steps": steps, "attention": {"per_decode_kv_ns": 270.0}}
    ).encode()


def step_log() -> bytes:
    header = {"format": FORMAT, "version": VERSION}
    rows = [{"ns": 5_000_000 + i, "decodes": i, "decode_kv": 90 * i, "chunks": [[i + 1, 0]]} for i in range(60)]
    return "".join(json.dumps(row) + "\n" for row in [header, *rows]).encode()


def learned() -> bytes:
    core = Scheduler("adaptive", kv_blocks=60)
    for number in range(8):
        core.add(number, 10, 40)
        while number in core:
            core.plan()
            core.complete(finished=[number] if (core.stage(number) or 0) >= 3 + number else [])
    return json.dumps({"format": "wait-core-learned", "learned": core.learned()}).encode()


SETTINGS = b"""{"policy": "wait", "types": [{"prompt": 40, "output": 12, "rate": 1.0}], "thresholds": [2.5],
 "kv_blocks": 60, "watermark": 0.01, "iteration_time": {"law": "linear", "d0": 0.01, "d1": 1e-6}}"""
FILE = b'{"policy": "adaptive", "watchdog_s": 2.5, "overflow_probability": 0.05, "order": "srpt", "shadow": false}'
ENGINE = {"kv_blocks": 60, "block_size": 16, "max_num_seqs": 8, "token_budget": 128, "max_model_len": 900}


def as_trace(name: str) -> Callable[[Path], object]:
    def reader(path: Path) -> None:
        for given in ("auto", name):
            try:
                traces.load(path, given).summary()
            except WaitCoreError as error:
                assert isinstance(error, traces.TraceError)  # noqa: PT017  and no other of ours
                if given == name:
                    raise

    return reader


def as_learned(path: Path) -> None:
    Scheduler("adaptive", kv_blocks=60).restore(read_object(path).get("learned", {}))


def as_settings_file(path: Path) -> None:
    config.make_core(config.load({"config_file": str(path)}), ENGINE)


def replay_command(path: Path) -> None:
    if main(["replay", str(path)]) == 2:
        raise WaitCoreError("refused, on standard error")


READERS: dict[str, Callable[[Path], object]] = {
    **{name: as_trace(name) for name in FILES},
    "azure.gz": as_trace("azure"),
    "mooncake.zst": as_trace("mooncake"),
    "decision log": replay,
    "replay command": replay_command,
    "decision log as a trace": as_trace("wait-core-log"),
    "step log": lambda path: load_steps([path]),
    "law": lambda path: iteration_seconds(iteration_time(str(path)), decodes=3, decode_kv=900, chunks=[(100, 0)]),
    "settings": lambda path: Scheduler(**read_object(path)),
    "settings file": as_settings_file,
    "learned file": as_learned,
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    log = tmp_path_factory.mktemp("log") / "log.jsonl"
    serve(log, requests=6)
    return {
        **{name: text.encode() for name, text in FILES.items()},
        "azure.gz": gzip.compress(FILES["azure"].encode(), mtime=0),
        "mooncake.zst": zstd.compress(FILES["mooncake"].encode()),
        "decision log": log.read_bytes(),
        "replay command": log.read_bytes(),
        "decision log as a trace": log.read_bytes(),
        "step log": step_log(),
        "law": law(),
        "settings": SETTINGS,
        "settings file": FILE,
        "learned file": learned(),
    }


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        taken = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def check_message(error: ValueError, path: Path) -> None:
    """Check that an error says where."""
    if isinstance(error, FileError):
        assert str(error).startswith(f"{path}:"), error
    assert len(str(error)) < 2_000, "too long to read"


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Damage a file in one to three places."""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        begin = draw.randrange(len(content) + 1)
        end = min(len(content), begin + draw.choice([0, 1, 1, 2, 5, 20, 200]))
        kind = draw.randrange(6)
        if kind == 0 and content:  # a bit
            i = draw.randrange(len(content))
            content = content[:i] + bytes([content[i] ^ 1 << draw.randrange(8)]) + content[i + 1 :]
        elif kind == 1:  # cut off
            content = content[:begin]
        elif kind == 2:  # said twice, or elsewhere
            where = draw.randrange(len(content) + 1)
            content = content[:where] + content[begin:end] + content[where:]
        elif kind == 3:  # left out
            content = content[:begin] + content[end:]
        elif kind == 4:  # a number or a name exchanged for something else
            words = list(WORDS.finditer(content))
            if words:
                word = draw.choice(words)
                content = content[: word.start()] + draw.choice(SPLICES) + content[word.end() :]
        else:
            content = content[:begin] + draw.choice(SPLICES) + content[end:]
    return content


def survive(name: str, original: bytes, path: Path, mutations: int) -> tuple[int, int]:
    """Read this many damaged files; return how many were still read, and how many were refused."""
    reader = READERS[name]
    path.write_bytes(original)
    reader(path)
    draw = random.Random(name)
    read = 0
    for i in range(mutations):
        content = mutated(original, draw)
        path.write_bytes(content)
        start = time.process_time()
        try:
            reader(path)
            read += 1
        except WaitCoreError as error:
            check_message(error, path)
        except BaseException as error:
            raise AssertionError(f"{name}, mutation {i}: {error!r} from {content[:300]!r} …") from error
        assert time.process_time() - start < MOST_SECONDS, f"{name}, mutation {i}: {content[:300]!r} …"
    return read, mutations - read


@pytest.mark.parametrize("name", READERS)
def test_a_few_mutations_of_every_file(name: str, originals: dict[str, bytes], tmp_path: Path) -> None:
    survive(name, originals[name], tmp_path / "file", 25)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", READERS)
def test_thousands_of_mutations_of_every_file(name: str, originals: dict[str, bytes], tmp_path: Path) -> None:
    assert min(survive(name, originals[name], tmp_path / "file", 2_000)) > 20
