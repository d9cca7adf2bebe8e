"""The settings file, looked at while the engine serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from wait_core.vllm import config

if TYPE_CHECKING:
    from wait_core.vllm.config import Settings

logger = init_logger(f"vllm.{__name__}")  # vLLM configures the loggers under its own name only


class SettingsFile:
    """Tells when the file at `path` has changed; `additional` is what the engine was started with."""

    def __init__(self, path: str, additional: object) -> None:
        self.path = path
        self._additional = additional
        self._seen = self._signature()

    def poll(self) -> Settings | None:
        """Return the new settings if the file has changed and the adapter accepts it.

        A file that cannot be read, or holds something wrong, is refused in the log.
        """
        signature = self._signature()
        if signature == self._seen:
            return None
        self._seen = signature
        try:
            return config.read(self._additional, config.read_file(self.path), self.path)
        except config.ConfigError as error:
            self.refuse(error)
            return None

    def refuse(self, error: BaseException) -> None:
        """Say that what the file holds does not come into force."""
        logger.error("wait-core refuses the changed settings, the old ones stay: %s", error)

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            status = Path(self.path).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
