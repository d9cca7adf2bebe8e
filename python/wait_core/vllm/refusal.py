"""Why an engine was refused, as the last line of what vLLM prints.

The scheduler is made in the engine's process, which ends with the reason. vLLM's front end sees that process end, and
ends with a traceback of its own, which says no more than that. So the engine leaves the reason where the front end, in
which vLLM loads `register` as a plugin (entry point ``vllm.general_plugins``), finds it and repeats it.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import parent_process, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING

from wait_core.vllm.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    Hook = Callable[[type[BaseException], BaseException, TracebackType | None], object]

VARIABLE = "WAIT_CORE_REFUSAL_FILE"
"""Environment variable by which the front end tells its engines where to leave a reason."""


def register() -> None:
    """Let this process, where it is vLLM's first, end an error that nothing handles with the reason of its engine.

    vLLM calls it in each of its processes. Nothing is written unless an engine is refused.
    """
    if parent_process() is not None:
        return
    # Only its name, which no other process can guess.
    os.environ[VARIABLE] = str(Path(tempfile.gettempdir()) / f"wait-core-refusal-{secrets.token_hex(16)}")
    sys.excepthook = partial(_end, sys.excepthook)


@contextmanager
def left_behind() -> Iterator[None]:
    """Leave the reason of a refusal where the front end looks for it, if there is one beside this process."""
    try:
        yield
    except ConfigError as error:
        path = os.environ.get(VARIABLE)
        if path is not None and parent_process() is not None:
            # Of several engines the first one's is enough; without it the reason stands further up, in the log.
            with suppress(OSError), open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:  # noqa: PTH123
                file.write(" ".join(str(error).split()))
        raise


def _end(hook: Hook, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    path = Path(os.environ.get(VARIABLE, ""))
    with suppress(OSError):
        reason = path.read_text(encoding="utf-8")
        path.unlink()
        error.add_note(f"WaitScheduler did not start: {reason}")
        # Its process would complain, after the last line, of the shared memory that vLLM leaves when it ends like this.
        getattr(resource_tracker._resource_tracker, "_stop", bool)()  # noqa: SLF001  there is no public way
    hook(kind, error, traceback)
