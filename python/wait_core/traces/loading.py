"""`load`: one door for every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from wait_core.traces.csv_formats import CSV_FORMATS, detect_csv, read_csv
from wait_core.traces.fields import MAX_TOKENS, TraceError
from wait_core.traces.json_formats import TextLengths, read_mooncake, read_sharegpt, read_vllm
from wait_core.traces.log_format import read_log

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from wait_core.traces.trace import Trace

_CSV = {form.name: form for form in CSV_FORMATS}
FORMATS = ("mooncake", *_CSV, "vllm", "sharegpt", "wait-core-log")
# What `vllm bench serve` takes for a custom dataset (--custom-output-len).
DEFAULT_OUTPUT = 256


def load(
    path: str | os.PathLike[str],
    format: str = "auto",  # noqa: A002  # the word of every reader in the field
    *,
    limit: int | None = None,
    count_tokens: Callable[[str], int] | None = None,
    default_output: int = DEFAULT_OUTPUT,
) -> Trace:
    """Read a trace.

    Parameters
    ----------
    path : path
        The file.
    format : str
        One of `FORMATS`, or "auto" to detect it by content.
    limit : int, optional
        Stop after this many requests.
    count_tokens : callable, optional
        From a text to its number of tokens, for the formats that hold text (vllm, sharegpt); without it, lengths are
        words and `Trace.unit` says so.
    default_output : int
        Output tokens of rows of the vllm format that state none.

    Returns
    -------
    Trace
        Requests in order of arrival. Rows with a length of 0 are dropped and counted.

    Raises
    ------
    TraceError
        If the file is malformed: the message names file, line, column and value.
    ValueError
        If an argument is out of range.
    OSError
        If the file cannot be opened.

    """
    if format not in ("auto", *FORMATS):
        raise ValueError(f"format: {format!r} is not auto, {', '.join(FORMATS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: {limit} is not at least 1")
    if not 1 <= default_output <= MAX_TOKENS:
        raise ValueError(f"default_output: {default_output} is not from 1 to {MAX_TOKENS}")
    file = Path(path)
    lengths = TextLengths(count_tokens, default_output)
    try:
        name = detect(file) if format == "auto" else format
        if name == "mooncake":
            return read_mooncake(file, limit)
        if name == "vllm":
            return read_vllm(file, limit, lengths)
        if name == "sharegpt":
            return read_sharegpt(file, limit, lengths)
        if name == "wait-core-log":
            return read_log(file, limit)
        return read_csv(file, _CSV[name], limit)
    except UnicodeDecodeError as error:
        raise TraceError(file, f"not UTF-8 text: {error}") from None
    except TraceError:
        raise
    except ValueError as error:
        raise TraceError(file, str(error)) from None


def detect(path: str | os.PathLike[str]) -> str:
    """Return the format of a file, judged by its first line that is not blank."""
    file = Path(path)
    with file.open(encoding="utf-8-sig") as lines:
        while first := lines.readline(1 << 20):
            if first.strip():
                break
    first = first.strip()
    if not first:
        raise TraceError(file, "the file is empty")
    if first.startswith("["):
        return "sharegpt"
    if first.startswith("{"):
        try:
            row = json.loads(first)
            keys = set(row)
        except (ValueError, RecursionError) as error:
            raise TraceError(file, f"not JSON: {error}", line=1, value=first) from None
        if "input_length" in keys:
            return "mooncake"
        if row.get("format") == "wait-core-log":
            return "wait-core-log"
        if "prompt" in keys:
            return "vllm"
        raise TraceError(file, f"keys {sorted(keys)} are of no known format ({', '.join(FORMATS)})", line=1)
    name = detect_csv(first)
    if name is None:
        raise TraceError(file, f"columns {first[:200]!r} are of no known format ({', '.join(FORMATS)})", line=1)
    return name
