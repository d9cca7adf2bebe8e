"""The picture that a command writes beside its text."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from wait_core.files import replacing
from wait_core.report.plot_style import check_picture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def picture(path: Path | None) -> Iterator[str | None]:
    """Yield where to draw the picture that replaces `path` when the block succeeds; None if none is requested.

    Entered before the work starts, so that a picture that cannot be drawn or written is refused early.

    Raises
    ------
    WaitCoreError
        If it cannot be drawn.
    OSError
        If it cannot be written.

    """
    if path is None:
        yield None
        return
    check_picture(path)
    with replacing(path, binary=True) as file:
        yield file.name
