"""What the policy has learned of the traffic, kept over a restart: the setting ``learned_file``."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from wait_core import WaitCoreError, __version__
from wait_core.files import read_object, replacing

if TYPE_CHECKING:
    from pathlib import Path

logger = init_logger(f"vllm.{__name__}")  # vLLM configures the loggers under its own name only

FORMAT = "wait-core-learned"
VERSION = 1
BUSY_NS = 10_000_000_000
RESTING_NS = 1_000_000_000
"""Time between two savings while the engine serves, and when it comes to rest: what a server that is killed forgets."""


class LearnedFile:
    """One file, replaced as a whole; where it cannot be read or written, the server begins or goes on without it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._saved_ns: int | None = None
        self._writer = threading.Thread()
        self._fails = False

    def load(self, core: Any) -> None:
        """Let `core`, which has no request yet, take over what the file holds, if its policy has learned that."""
        try:
            kept = read_object(self.path)
            held, wanted = (kept["format"], kept["version"], kept["policy"]), (FORMAT, VERSION, core.settings["policy"])
            if held != wanted:
                logger.warning("wait-core begins without what %s holds: %s, not %s", self.path, held, wanted)
                return
            core.restore(kept["learned"])
        except FileNotFoundError:
            logger.info("wait-core: %s does not exist yet; what is learned will be kept there", self.path)
        except (OSError, ValueError, KeyError, TypeError, WaitCoreError) as error:
            logger.warning("wait-core begins without what %s holds: %s", self.path, error)
        else:
            logger.info("wait-core goes on from what was learned before: %s", self.path)

    def save_now_and_then(self, core: Any, now_ns: int, every_ns: int) -> None:
        """Save if that was not done for so long; at rest the first time already.

        A thread writes, as a disk may be slow and the engine may have work; a saving while it does is left out.
        """
        if self._saved_ns is None:
            self._saved_ns = now_ns - RESTING_NS
        if now_ns - self._saved_ns >= every_ns and not self._writer.is_alive():
            self._saved_ns = now_ns
            if (kept := _kept(core)) is not None:
                self._writer = threading.Thread(target=self._write, args=(kept,), daemon=True)
                self._writer.start()

    def save(self, core: Any) -> None:
        """Write what `core` has learned, and return when it is written."""
        if self._writer.is_alive():
            self._writer.join()
        if (kept := _kept(core)) is not None:
            self._write(kept)

    def _write(self, kept: dict[str, Any]) -> None:
        """Replace the file; an error is logged once, until it goes well again."""
        try:
            with replacing(self.path) as file:
                json.dump(kept, file)
        except OSError as error:
            if not self._fails:
                logger.warning("wait-core cannot keep what it has learned in %s: %s", self.path, error)
            self._fails = True
            return
        self._fails = False


def _kept(core: Any) -> dict[str, Any] | None:
    """Return what is written of `core`; None under a policy that learns nothing: what another has learned stays."""
    learned = core.learned()
    if learned is None:
        return None
    kept = {"format": FORMAT, "version": VERSION, "wait_core": __version__}
    return kept | {"policy": core.settings["policy"], "learned": learned}
