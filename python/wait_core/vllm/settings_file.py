"""The settings file, looked at while the engine serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from wait_core.vllm import config

if TYPE_CHECKING:
    from wait_core.vllm.config import Settings

logger = init_logger(f"vllm.{__name__}")  # vLLM configures the loggers under its own name only

EVERY_NS = 1_000_000_000
"""Time between two looks at the file."""


class SettingsFile:
    """Tells when the file at `path` has changed; `additional` is what the engine was started with."""

    def __init__(self, path: str, additional: object) -> None:
        self.path = path
        self._additional = additional
        self._seen = self._signature()
        self._next_ns = 0

    def poll(self, now_ns: int) -> Settings | None:
        """Return the new settings if the file has changed and the adapter accepts it; looks at most once a second.

        A file that cannot be read, or holds something wrong, is refused in the log.
        """
        if now_ns < self._next_ns:
            return None
        self._next_ns = now_ns + EVERY_NS
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
