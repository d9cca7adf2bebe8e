"""`load`: reads every format."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from wait_core._core import WaitCoreError
from wait_core.checked import checked
from wait_core.files import MAX_LINE, Place, decoded, opened, parsed, shown
from wait_core.workload.traces.csv_formats import CSV_FORMATS, detect_csv, read_csv
from wait_core.workload.traces.fields import MAX_TOKENS, TraceError
from wait_core.workload.traces.json_formats import TextLengths, read_mooncake, read_sharegpt, read_vllm
from wait_core.workload.traces.log_format import read_log

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from wait_core.workload.traces.trace import Trace

_CSV = {form.name: form for form in CSV_FORMATS}
FORMATS = ("mooncake", *_CSV, "vllm", "sharegpt", "wait-core-log")
# What `vllm bench serve` takes for a custom dataset (--custom-output-len).
DEFAULT_OUTPUT = 256
_BEGIN = 1 << 16
"""Bytes of the first line in which a format shows."""


@checked
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
    WaitCoreError
        If an argument is out of range.
    OSError
        If the file cannot be opened.

    """
    if format not in ("auto", *FORMATS):
        raise WaitCoreError(f"format: {format!r} is not auto, {', '.join(FORMATS)}")
    if limit is not None and limit < 1:
        raise WaitCoreError(f"limit: {limit} is not at least 1")
    if not 1 <= default_output <= MAX_TOKENS:
        raise WaitCoreError(f"default_output: {default_output} is not from 1 to {MAX_TOKENS}")
    file = Path(path)
    lengths = TextLengths(count_tokens, default_output)
    name = detect(file) if format == "auto" else format
    try:
        if name == "mooncake":
            return read_mooncake(file, limit)
        if name == "vllm":
            return read_vllm(file, limit, lengths)
        if name == "sharegpt":
            return read_sharegpt(file, limit, lengths)
        if name == "wait-core-log":
            return read_log(file, limit)
        return read_csv(file, _CSV[name], limit)
    except TraceError:
        raise
    except WaitCoreError as error:  # no request is left
        raise TraceError(file, str(error)) from None


@checked
def detect(path: str | os.PathLike[str]) -> str:
    """Return the format of a file, judged by its first line that is not blank.

    Raises
    ------
    TraceError
        If it is of no known format.
    OSError
        If it cannot be opened.

    """
    place = Place(Path(path), TraceError)
    known = f"of no known format ({', '.join(FORMATS)})"
    with opened(place) as file:
        for raw in iter(partial(file.readline, _BEGIN), b""):
            place.line += 1
            if raw.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
                return "sharegpt"  # which may be one long line
            whole = raw if raw.endswith(b"\n") else raw + file.readline(MAX_LINE + 1)
            first = decoded(whole, place).strip()
            if first:
                break
        else:
            raise TraceError(place.path, "the file is empty")
    if first.startswith("{"):
        row = parsed(first, place)
        if "input_length" in row:
            return "mooncake"
        if row.get("format") == "wait-core-log":
            return "wait-core-log"
        if "prompt" in row:
            return "vllm"
        raise place.problem(f"keys {shown(sorted(row))} are {known}", row)
    name = detect_csv(first)
    if name is None:
        raise place.problem(f"columns {shown(first)} are {known}", first)
    return name
