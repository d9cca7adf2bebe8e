"""The pages' `vllm serve` commands and options are ones of the vLLM that is installed: nothing is started."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from documents import all_blocks  # noqa: E402

from wait_core.vllm import config  # noqa: E402

OPTIONS = """
import json
from vllm.entrypoints.cli.serve import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = make_arg_parser(FlexibleArgumentParser())
print(json.dumps([option for action in parser._actions for option in action.option_strings]))
"""


@pytest.fixture(scope="module")
def options() -> set[str]:
    done = subprocess.run([sys.executable, "-c", OPTIONS], capture_output=True, text=True, check=True, timeout=240)
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return set(found)


def served() -> list[list[str]]:
    """Return the words of every `vllm serve` command on a page."""
    commands = [command for block in all_blocks() for command in block.commands]
    return [shlex.split(command) for command in commands if command.startswith("vllm serve ")]


def test_options_of_the_pages_exist(options: set[str]) -> None:
    commands = served()
    assert len(commands) >= 3
    for words in commands:
        for word in words:
            assert not word.startswith("--") or word in options, words


def test_options_that_the_page_speaks_of_exist(options: set[str]) -> None:
    text = (ROOT / "docs" / "vllm.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(--[\w-]+)", text))
    assert "--scheduling-policy" in named
    assert named <= options | {"--iteration-time"}


def test_settings_of_the_pages_are_taken() -> None:
    for words in served():
        if "--additional-config" in words:
            additional: dict[str, Any] = json.loads(words[words.index("--additional-config") + 1])
            assert config.load(additional).policy == "adaptive"


def test_the_class_of_the_pages_is_there() -> None:
    for module, _, name in {words[words.index("--scheduler-cls") + 1].rpartition(".") for words in served()}:
        subprocess.run([sys.executable, "-c", f"from {module} import {name}"], check=True, timeout=240)
