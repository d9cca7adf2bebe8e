"""The step log: how long each iteration of an engine took, and what was computed in it.

One JSON object a line, as `wait_core.vllm.step_log` writes it. The first is the header:
``{"format": "wait-core-steps", "version": 1, ...}`` and what is known of the engine. Then one line an iteration:
``{"ns": duration, "decodes": n, "decode_kv": tokens, "chunks": [[tokens, computed before], ...]}``, where `decode_kv`
counts the tokens that the decodes read, the current ones included, as `wait_core` counts them everywhere.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core._core import WaitCoreError
from wait_core.files import FileError, Place, lines, parsed, shown

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    Column = npt.NDArray[np.float64]

FORMAT = "wait-core-steps"
VERSION = 1
MOST_TOKENS = 1 << 30
"""Most tokens in an iteration: what the core takes."""
MOST_NS = 1 << 62
FEWEST = 50
"""Fewest iterations that a law is fitted to, and that support a stair of it."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Measured iterations, one entry each: the arguments of an iteration-time law, and the time in seconds."""

    seconds: Column
    decodes: Column
    decode_kv: Column
    prefill_tokens: Column
    prefill_kv: Column
    prefill_attention: Column  # sum over chunks of tokens x (computed before + tokens / 2)

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def tokens(self) -> Column:
        """Tokens computed."""
        return self.decodes + self.prefill_tokens


def load(paths: Sequence[str | os.PathLike[str]]) -> Steps:
    """Read step logs.

    Raises
    ------
    FileError
        If a file is not a step log; the message names file and line.
    WaitCoreError
        If there are too few iterations.
    OSError
        If it cannot be opened.

    """
    columns = array("d", (value for path in paths for row in _rows(Path(path)) for value in row))
    rows = np.frombuffer(columns).reshape(-1, 6)
    if len(rows) < FEWEST:
        raise WaitCoreError(f"{len(rows)} iterations in {', '.join(map(str, paths))}: at least {FEWEST} are needed")
    seconds, decodes, decode_kv, tokens, kv, attention = rows.T
    return Steps(
        seconds=seconds * 1e-9,
        decodes=decodes,
        decode_kv=decode_kv,
        prefill_tokens=tokens,
        prefill_kv=kv,
        prefill_attention=attention,
    )


def _rows(path: Path) -> Iterator[tuple[float, ...]]:
    place = Place(path)
    for text in lines(place):
        try:
            event = parsed(text, place)
        except FileError:
            if place.line > 1 and not text.endswith("\n"):
                return  # cut off while it was written
            raise
        if not isinstance(event, dict):
            raise place.error(None, event, "a JSON object")
        if place.line == 1:
            found = (event.get("format"), event.get("version"))
            if found != (FORMAT, VERSION):
                raise place.problem(f"not a step log: format {shown(found[0])} version {shown(found[1])}")
        elif "stop" not in event:
            yield _row(event, place)


def _row(event: dict[str, Any], place: Place) -> tuple[float, ...]:
    chunks = event.get("chunks")
    if not isinstance(chunks, list) or not all(isinstance(chunk, list) and len(chunk) == 2 for chunk in chunks):
        raise place.error("chunks", chunks, "a list of [tokens, computed before]")
    parts = [tuple(_count(value, place, "chunks", MOST_TOKENS) for value in chunk) for chunk in chunks]
    row = (
        _count(event.get("ns"), place, "ns", MOST_NS),
        _count(event.get("decodes"), place, "decodes", MOST_TOKENS),
        _count(event.get("decode_kv"), place, "decode_kv", MOST_NS),
        sum(tokens for tokens, _ in parts),
        sum(before + tokens for tokens, before in parts),
        sum(tokens * (before + tokens / 2) for tokens, before in parts),
    )
    if row[0] == 0 or not 0 < row[1] + row[3] <= MOST_TOKENS:
        raise place.problem(f"{shown(event)}: not a duration above 0 of 1 to {MOST_TOKENS:,} tokens")
    return row


def _count(value: object, place: Place, key: str, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise place.error(key, value, f"an integer from 0 to {most}")
    return value
