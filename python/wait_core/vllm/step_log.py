"""What each step computed and how long it took: the setting ``step_log_file``.

`wait_core.hardware.calibration` fits an iteration-time law to it. A step ends when its output comes in
(``update_from_output``). It began when the step before it ended, if the engine went on at once, else when it was
scheduled: so the time between, vLLM's own work, belongs to it as it does in serving, and a pause without requests does
not. Works one step ahead as well (asynchronous scheduling).
"""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from wait_core.logs.step_log import FORMAT, VERSION
from wait_core.vllm import clock
from wait_core.vllm.config import KEY, ConfigError, of_rank

if TYPE_CHECKING:
    from io import TextIOWrapper
    from pathlib import Path

    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.scheduler import Scheduler

logger = init_logger(f"vllm.{__name__}")

PAUSE_NS = 2_000_000
"""An engine that schedules this long after its last output had nothing to do in between."""


class StepLog:
    """One JSON object a step, up to a size; an error ends the log, never the serving."""

    def __init__(self, scheduler: Scheduler, path: Path, max_bytes: int) -> None:
        self.scheduler = scheduler
        self.left = max_bytes
        self.file: TextIOWrapper | None = path.open("w", encoding="utf-8", buffering=1)
        self.pending: deque[tuple[int, dict[str, Any]]] = deque()  # scheduled at ns, what is computed
        self.ended_ns = 0  # the last output was in
        self.handled_ns = 0  # and taken in by the scheduler
        parallel = scheduler.vllm_config.parallel_config
        model = str(scheduler.vllm_config.model_config.model)
        header = {"format": FORMAT, "version": VERSION, "model": model, "rank": parallel.data_parallel_index}
        self._write(header)

    def scheduled(self, output: SchedulerOutput, at_ns: int) -> None:
        """Note what a step computes, from what stood before it."""
        if output.total_num_scheduled_tokens == 0:
            return
        computed = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        decodes, decode_kv, chunks = 0, 0, []
        for name, tokens in output.num_scheduled_tokens.items():
            before = computed[name]
            if tokens == 1 and before >= self.scheduler.requests[name].num_prompt_tokens:
                decodes += 1
                decode_kv += before + 1
            else:
                chunks.append([tokens, before])
        self.pending.append((at_ns, {"decodes": decodes, "decode_kv": decode_kv, "chunks": chunks}))

    def ended(self, output: SchedulerOutput, at_ns: int) -> None:
        """Write the step whose output is in."""
        if output.total_num_scheduled_tokens == 0 or not self.pending:
            return
        scheduled_ns, step = self.pending.popleft()
        went_on = scheduled_ns - self.handled_ns < PAUSE_NS
        begun_ns = self.ended_ns if self.ended_ns and went_on else scheduled_ns
        self.ended_ns = at_ns
        self._write({"ns": max(at_ns - begun_ns, 1), **step})

    def _write(self, line: dict[str, Any]) -> None:
        if self.file is None:
            return
        text = json.dumps(line, separators=(",", ":")) + "\n"
        self.left -= len(text)
        if self.left < 0:
            self.close('{"stop":"size"}\n')
        else:
            self.file.write(text)

    def close(self, last: str = "") -> None:
        """End the log."""
        if self.file is not None:
            file, self.file = self.file, None
            file.write(last)
            file.close()


def install(scheduler: Scheduler, name: str, max_bytes: int) -> StepLog:
    """Log the steps of `scheduler` to the file `name`, one file a data-parallel rank.

    Raises
    ------
    ConfigError
        If the file cannot be written.
    """
    path = of_rank(name, scheduler.vllm_config.parallel_config.data_parallel_index)
    try:
        log = StepLog(scheduler, path, max_bytes)
    except OSError as error:
        raise ConfigError(f"{KEY}.step_log_file = {name!r}: {error}") from error
    schedule, update = scheduler.schedule, scheduler.update_from_output

    def guarded(note: Any, output: SchedulerOutput, at_ns: int) -> None:
        if log.file is None:
            return
        try:
            note(output, at_ns)
        except Exception:
            log.file = None
            logger.exception("wait-core: the step log ends")

    def logged_schedule(*args: Any, **kwargs: Any) -> SchedulerOutput:
        at_ns = clock.now_ns()
        output = schedule(*args, **kwargs)
        guarded(log.scheduled, output, at_ns)
        return output

    def logged_update(scheduler_output: SchedulerOutput, *args: Any, **kwargs: Any) -> Any:
        guarded(log.ended, scheduler_output, clock.now_ns())
        result = update(scheduler_output, *args, **kwargs)
        log.handled_ns = clock.now_ns()
        return result

    scheduler.schedule = logged_schedule
    scheduler.update_from_output = logged_update
    logger.info("wait-core logs its steps to %s; wait-core calibrate fits a law to them", path)
    return log
