"""What each step computed and how long it took: the setting ``step_log_file``.

`wait_core.hardware.calibration` fits an iteration-time law to it. A step ends when its output comes in
(``update_from_output``); `wait_core.vllm.step_times` says when it began.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from wait_core.logs.step_log import FORMAT, VERSION
from wait_core.vllm import clock
from wait_core.vllm.config import not_writable, of_rank
from wait_core.vllm.step_times import StepTimes

if TYPE_CHECKING:
    from io import TextIOWrapper
    from pathlib import Path

    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.scheduler import Scheduler

logger = init_logger(f"vllm.{__name__}")


class StepLog:
    """One JSON object a step, up to a size; an error ends the log, never the serving."""

    def __init__(self, scheduler: Scheduler, path: Path, max_bytes: int) -> None:
        self.scheduler = scheduler
        self.left = max_bytes
        self.file: TextIOWrapper | None = path.open("w", encoding="utf-8", buffering=1)
        self.times: StepTimes[dict[str, Any]] = StepTimes()
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
        self.times.scheduled(at_ns, {"decodes": decodes, "decode_kv": decode_kv, "chunks": chunks})

    def ended(self, output: SchedulerOutput, at_ns: int) -> None:
        """Write the step whose output is in."""
        if output.total_num_scheduled_tokens and (ended := self.times.ended(at_ns)) is not None:
            step, ns = ended
            self._write({"ns": ns, **step})

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
        raise not_writable("step_log_file", name, error) from error
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
        log.times.handled(clock.now_ns())
        return result

    scheduler.schedule = logged_schedule
    scheduler.update_from_output = logged_update
    logger.info("wait-core logs its steps to %s; wait-core calibrate fits a law to them", path)
    return log
