"""Like ``engine.py``, with things that happen while the engine serves: the settings file changes, parts of ours fail.

The request is ``{"job": {...}, "actions": [[step, kind, argument], ...]}``; the answer has, besides the engine's, what
/metrics would show of ours at the end.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import engine

SETTINGS_FILE = "WAIT_CORE_CONFIG_FILE"


def fail(where: str) -> None:
    """Make one function of ours raise from now on, as a panic of the core does."""
    from wait_core.logs import DecisionLog
    from wait_core.vllm import settings_file, telemetry, transfer

    owners: dict[str, Any] = {
        "write": DecisionLog,
        "poll": settings_file.SettingsFile,
        "explain": telemetry.Telemetry,
        "collect": telemetry.Telemetry,
        "move": transfer,
        "detach": telemetry,
    }

    def broken(*_: Any, **__: Any) -> Any:
        # The front end runs none of the core's compiled code.
        raise (RuntimeError if where == "detach" else engine.Panic)(f"injected into {where}")

    setattr(owners[where], where, broken)


class ScriptedWatch(engine.Watch):
    """Does what the script says before a step, and takes our figures as a front end would."""

    actions: list[tuple[int, str, str]]
    shown: Any = None

    def __init__(self, scheduler: Any) -> None:
        super().__init__(scheduler)
        self.calls = 0
        watched = scheduler.schedule

        def schedule(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            while self.actions and self.actions[0][0] <= self.calls:
                _, kind, argument = self.actions.pop(0)
                if kind == "write":
                    Path(os.environ[SETTINGS_FILE]).write_text(argument)
                elif kind == "delete":
                    Path(os.environ[SETTINGS_FILE]).unlink()
                else:
                    fail(argument)
            return watched(*args, **kwargs)

        scheduler.schedule = schedule
        if hasattr(scheduler, "wait_core"):
            self._take_figures(scheduler)

    def _take_figures(self, scheduler: Any) -> None:
        from wait_core.vllm.metrics import WaitCoreStatLogger

        config: Any = SimpleNamespace(
            model_config=SimpleNamespace(served_model_name="tiny"),
            scheduler_config=SimpleNamespace(scheduler_cls=engine.Job.scheduler_cls),
        )
        logger = WaitCoreStatLogger(config, [0])
        make_stats = scheduler.make_stats

        def taken(*args: Any, **kwargs: Any) -> Any:
            stats = make_stats(*args, **kwargs)
            logger.record(stats, None)
            left = [name for name in stats.num_kv_fetch_reqs_by_stage if "wait_core" in name]
            assert not left or logger._failed, left
            return stats

        scheduler.make_stats = taken

    def report(self) -> dict[str, Any]:
        """Add what is shown."""
        from prometheus_client import generate_latest

        lines = generate_latest().decode().splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if line.startswith("wait_core_"))
        return super().report() | {"unused": self.actions, "metrics": {name: float(value) for name, value in samples}}


def main() -> None:
    """Read from standard input, write the answer as the last line of standard output."""
    raw = json.load(sys.stdin)
    for name, value in engine.ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from wait_core.vllm import bridge

    bridge.LOOK_NS = 0  # the file is looked at in every step
    ScriptedWatch.actions = [tuple(action) for action in raw["actions"]]
    engine.Watch = ScriptedWatch  # type: ignore[misc]
    print(json.dumps(engine.run(engine.Job(**raw["job"]))))


if __name__ == "__main__":
    main()
