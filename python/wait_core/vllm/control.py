"""Which core is in charge: made from the settings at the start, and made anew when their file changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger
from vllm.version import __version__ as vllm_version

from wait_core.logs.decision_log import DecisionLog, KeptLog, LoggedCore
from wait_core.vllm import config, learned_file, support, transfer
from wait_core.vllm.learned_file import LearnedFile
from wait_core.vllm.settings_file import SettingsFile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request

    from wait_core import WaitCoreError

logger = init_logger(f"vllm.{__name__}")  # vLLM configures the loggers under its own name only

TESTED = "0.32."
"""The vLLM that this adapter was run and tested with."""


class Control:
    """The settings in force and the core that follows them.

    Attributes
    ----------
    in_force
        Every setting of the core, defaults included; kept, because the core builds this dictionary on each access.

    Raises
    ------
    ConfigError
        At the start, where a setting is wrong or the engine is one that the core cannot account for.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        additional = scheduler.vllm_config.additional_config.get(config.KEY, {})
        self.engine = support.engine(scheduler)
        if not vllm_version.startswith(TESTED):
            logger.warning(
                "wait-core was tested with vLLM %s, this is %s: see docs/vllm.md, Upgrades", TESTED, vllm_version
            )
        if support.has_rust_frontend():
            logger.warning(support.RUST_FRONTEND)
        self.settings = support.with_priorities(scheduler, config.load(additional))
        core = config.make_core(self.settings, self.engine)
        self.log = _open_log(scheduler, self.settings)
        self.core: Any = core if self.log is None else LoggedCore(core, self.log, vllm=vllm_version)
        self.in_force = core.settings
        path = self.settings.config_file
        self._file = None if path is None else SettingsFile(path, additional)
        logger.info("%s", config.describe(self.settings, core, self.engine))
        self._learned: LearnedFile | None = None
        if (name := self.settings.learned_file) is not None:
            self._learned = LearnedFile(config.of_rank(name, scheduler.vllm_config.parallel_config.data_parallel_index))
            self._learned.load(self.core)

    def poll(
        self, now_ns: int, scheduler: Scheduler, requests: Mapping[int, Request], arrivals: Mapping[int, int]
    ) -> dict[int, WaitCoreError] | None:
        """Let a core with other settings take over if the file has changed; return the requests that it refuses.

        None if nothing changes: also where the new settings, or the way of the requests to the new core, fail. What the
        old core has learned goes over to one of the same policy. From time to time it is kept in its file.
        """
        if self._learned is not None:
            self._learned.save_now_and_then(self.core, now_ns, learned_file.BUSY_NS)
        if self._file is None or (settings := self._file.poll()) is None:
            return None
        try:
            settings = support.with_priorities(scheduler, settings)
            core = config.make_core(settings, self.engine)
            description = config.describe(settings, core, self.engine)
            # Logged apart until it is sure that this core takes over.
            kept = KeptLog()
            logged: Any = core if self.log is None else LoggedCore(core, kept, vllm=vllm_version)
            if settings.policy == self.settings.policy and (learned := self.core.learned()) is not None:
                logged.restore(learned)
            refused = transfer.move(logged, scheduler, requests, arrivals, settings)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001  a panic of the new core must not end the old one's service
            self._file.refuse(error)
            return None
        if self.log is not None:
            for event in kept.events:
                self.log.write(event)
            logged.log_to(self.log)
        self.core, self.settings, self.in_force = logged, settings, core.settings
        logger.info("settings changed: %s", description)
        return refused

    def keep(self, now_ns: int, *, ends: bool) -> None:
        """Write what is not in its file yet, for the engine rests, or ends: vLLM kills it without a word by default."""
        if self.log is not None:
            self.log.flush()
        if self._learned is not None:
            if ends:
                self._learned.save(self.core)
            else:
                self._learned.save_now_and_then(self.core, now_ns, learned_file.RESTING_NS)


def _open_log(scheduler: Scheduler, settings: config.Settings) -> DecisionLog | None:
    if settings.log_file is None:
        return None
    path = config.of_rank(settings.log_file, scheduler.vllm_config.parallel_config.data_parallel_index)
    try:
        log = DecisionLog(path, max_bytes=int(settings.log_max_mb * 1e6))
    except OSError as error:
        raise config.not_writable("log_file", settings.log_file, error) from error
    logger.info("wait-core logs its decisions to %s, up to %g MB", log.path, settings.log_max_mb)
    return log
