"""What the policy has learned of the traffic, kept over a restart: the setting ``learned_file``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from wait_core import WaitCoreError, __version__
from wait_core.files import read_object, replacing

if TYPE_CHECKING:
    from pathlib import Path

logger = init_logger(f"vllm.{__name__}")  # vLLM configures the loggers under its own name only

FORMAT = "wait-core-learned"
VERSION = 1
EVERY_NS = 60_000_000_000
"""Time between two savings: what a server that is killed forgets."""


class LearnedFile:
    """One file, replaced as a whole; where it cannot be read or written, the server begins or goes on without it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._next_ns = 0
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

    def save_now_and_then(self, core: Any, now_ns: int) -> None:
        """Save if that was not done for a minute; the first time is a minute after the first call."""
        if now_ns >= self._next_ns:
            if self._next_ns:
                self.save(core)
            self._next_ns = now_ns + EVERY_NS

    def save(self, core: Any) -> None:
        """Write what `core` has learned; an error is logged once, until it goes well again."""
        learned = core.learned()
        if learned is None:
            return  # this policy learns nothing; what another has learned stays
        kept = {"format": FORMAT, "version": VERSION, "wait_core": __version__}
        kept |= {"policy": core.settings["policy"], "learned": learned}
        try:
            with replacing(self.path) as file:
                json.dump(kept, file)
        except OSError as error:
            if not self._fails:
                logger.warning("wait-core cannot keep what it has learned in %s: %s", self.path, error)
            self._fails = True
            return
        self._fails = False
