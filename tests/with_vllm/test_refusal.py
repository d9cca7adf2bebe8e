"""A refused engine: the last line that `vllm serve` prints says why, and what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from engine import LLAMA, write_model
from live import Server, installed_entry_points, write_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


REASON = (
    'WaitScheduler did not start: wait_core: max_wait_s and late = "refuse" end requests without an answer, for which '
    "vLLM's front end has no form where the model pools: leave them out"
)


def test_the_last_line_says_why_and_what_to_do(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    write_tokenizer(model, LLAMA["vocab_size"])
    installed_entry_points(tmp_path)
    options = {"dtype": "float32", "enforce-eager": True, "max-model-len": 256, "block-size": 32}
    options |= {"num-gpu-blocks-override": 40, "scheduler-cls": "wait_core.vllm.WaitScheduler", "runner": "pooling"}
    options |= {"additional-config": '{"wait_core": {"max_wait_s": 1.0}}'}
    server = Server(model, tmp_path, options, tmp_path / "server.log", TMPDIR=str(tmp_path))
    assert server.process.wait(280) == 1
    lines = server.log.read_text().split("\n")
    assert lines[-2:] == [REASON, ""], "\n".join(lines[-20:])
    assert not left(tmp_path), "the file that carried it is gone"


def left(folder: Path) -> list[Path]:
    return list(folder.glob("wait-core-refusal-*"))


PROCESS = """
import multiprocessing, os, sys
from wait_core.vllm import refusal
from wait_core.vllm.config import ConfigError

def engine():
    sys.stderr = open(os.devnull, "w")
    with refusal.left_behind():
        raise ConfigError("because\\nof this")

if __name__ == "__main__":
    refusal.register()
    child = multiprocessing.get_context("spawn").Process(target=engine)
    child.start()
    child.join()
    {then}
"""


@pytest.mark.parametrize(
    ("then", "printed"),
    [
        ("raise RuntimeError('Engine core initialization failed.')", ["WaitScheduler did not start: because of this"]),
        ("print('served all the same', file=sys.stderr)", ["served all the same"]),
    ],
)
def test_only_an_error_that_nothing_handles_ends_with_the_reason(then: str, printed: list[str], tmp_path: Path) -> None:
    program = tmp_path / "front_end.py"
    program.write_text(PROCESS.replace("{then}", then))
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert done.stderr.splitlines()[-1:] == printed
