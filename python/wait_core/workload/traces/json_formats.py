"""Readers of the JSON formats, Mooncake, vllm bench custom and ShareGPT, and the writer of Mooncake's."""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from wait_core._core import WaitCoreError
from wait_core.files import MAX_LINE, Place, lines, opened, parsed, replacing
from wait_core.workload.traces.fields import (
    NS_PER_MS_EXPONENT,
    NS_PER_S_EXPONENT,
    Digits,
    TraceError,
    count,
    nanoseconds,
)
from wait_core.workload.traces.trace import Trace, TraceBuilder

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from wait_core.files import Source

_SPACE = re.compile(r"[ \t\r\n]*")
_MAX_CHAT_ID = 2**63 - 1
_MAX_HASH_ID = 2**64 - 1
_NS_PER_MS = 1_000_000
_PIECE = 1 << 16
"""Bytes that are read at once."""


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


_DECODER = json.JSONDecoder(parse_float=Digits, parse_constant=_no_constant)


@dataclass(frozen=True)
class TextLengths:
    """How the lengths of formats that hold text are counted.

    Attributes
    ----------
    count_tokens : callable or None
        From a text to its number of tokens; None counts words (runs without white space).
    default_output : int
        Output length of rows that state none.

    """

    count_tokens: Callable[[str], int] | None
    default_output: int

    def length(self, text: object, place: Place, column: str) -> int:
        """Return the length of `text`."""
        if not isinstance(text, str) or isinstance(text, Digits):
            raise place.error(column, text, "a string")
        if self.count_tokens is None:
            return len(text.split())
        return count(self.count_tokens(text), place, column)

    def build(self, builder: TraceBuilder, path: Path, format_name: str, notes: tuple[str, ...]) -> Trace:
        """Return the trace, with its unit."""
        if self.count_tokens is not None:
            return builder.build(source=str(path), format_name=format_name, notes=notes)
        notes = ("lengths are words: no tokenizer was given (count_tokens)", *notes)
        return builder.build(source=str(path), format_name=format_name, unit="words", notes=notes)


def read_mooncake(path: Path, limit: int | None) -> Trace:
    """Read a Mooncake file, times in ms, or a Qwen-Bailian file, which has a `chat_id` and times in seconds."""
    place = Place(path, TraceError)
    builder = TraceBuilder()
    for row in _objects(place):
        unit = NS_PER_S_EXPONENT if "chat_id" in row else NS_PER_MS_EXPONENT
        kind = row.get("type")
        if not isinstance(kind, str | int | None):
            raise place.error("type", kind, "a string")
        builder.add(
            count(_get(row, "input_length", place), place, "input_length"),
            count(_get(row, "output_length", place), place, "output_length"),
            arrival_ns=nanoseconds(_get(row, "timestamp", place), unit, place, "timestamp"),
            class_name=None if kind is None else str(kind),
            hash_ids=_hash_ids(row.get("hash_ids", []), place),
            chat=_chat(row, place),
        )
        if limit is not None and len(builder) >= limit:
            break
    return builder.build(source=str(path), format_name="mooncake")


def read_vllm(path: Path, limit: int | None, lengths: TextLengths) -> Trace:
    """Read the jsonl file of `vllm bench serve --dataset-name custom`."""
    place = Place(path, TraceError)
    builder = TraceBuilder()
    defaulted = 0
    for row in _objects(place):
        output = row.get("output_tokens")
        defaulted += output is None
        builder.add(
            lengths.length(_get(row, "prompt", place), place, "prompt"),
            lengths.default_output if output is None else count(output, place, "output_tokens"),
        )
        if limit is not None and len(builder) >= limit:
            break
    notes = (f"{defaulted} rows state no output_tokens: {lengths.default_output} was taken",) if defaulted else ()
    return lengths.build(builder, path, "vllm", notes)


def read_sharegpt(path: Path, limit: int | None, lengths: TextLengths) -> Trace:
    """Read ShareGPT: the first turn of each conversation is the prompt and the second the output, as vLLM does."""
    place = Place(path, TraceError)
    builder = TraceBuilder()
    for entry in _array(place):
        turns = _get(entry, "conversations", place)
        if not isinstance(turns, list):
            raise place.error("conversations", turns, "a list of turns")
        if len(turns) < 2:
            builder.drop("fewer than two turns")
            continue
        texts = []
        for turn in turns[:2]:
            if not isinstance(turn, dict):
                raise place.error("conversations", turn, 'a turn {"from": …, "value": …}')
            texts.append(lengths.length(_get(turn, "value", place), place, "value"))
        builder.add(texts[0], texts[1])
        if limit is not None and len(builder) >= limit:
            break
    return lengths.build(builder, path, "sharegpt", ())


def write_mooncake(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write `trace` as Mooncake jsonl; reading it again gives the same times, lengths, hash ids and classes.

    Times are milliseconds with as many decimals as they need, up to six; classes go to `type`.

    Raises
    ------
    WaitCoreError
        If the trace has no arrival times, or counts words.

    """
    if trace.arrival_ns is None:
        raise WaitCoreError(f"trace: {trace.source or 'it'} has no arrival times, which Mooncake's format needs")
    if trace.unit != "tokens":
        raise WaitCoreError(f"trace: {trace.source or 'it'} counts {trace.unit}, and Mooncake's format holds tokens")
    prompts, outputs, arrivals = trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), trace.arrival_ns.tolist()
    with replacing(path) as file:
        for i, (prompt, output, arrival) in enumerate(zip(prompts, outputs, arrivals, strict=True)):
            whole, rest = divmod(arrival, _NS_PER_MS)
            time = f"{whole}.{rest:06d}".rstrip("0") if rest else str(whole)
            line = f'{{"timestamp": {time}, "input_length": {prompt}, "output_length": {output}'
            if trace.hash_ids is not None:
                line += f', "hash_ids": {json.dumps(trace.hashes(i).tolist())}'
            if trace.class_index is not None:
                line += f', "type": {json.dumps(trace.class_names[trace.class_index[i]])}'
            file.write(line + "}\n")


def _get(row: dict[str, Any], key: str, place: Place) -> Any:
    if key not in row:
        raise place.missing(key)
    return row[key]


def _hash_ids(hashes: object, place: Place) -> list[int]:
    if not isinstance(hashes, list):
        raise place.error("hash_ids", hashes, "a list of integers")
    if not hashes or (set(map(type, hashes)) == {int} and min(hashes) >= 0 and max(hashes) <= _MAX_HASH_ID):
        return hashes
    return [count(value, place, "hash_ids", _MAX_HASH_ID) for value in hashes]


def _chat(row: dict[str, Any], place: Place) -> tuple[int, int, int] | None:
    """Return the chat of a Qwen-Bailian row, the one it continues or -1, and its turn."""
    if "chat_id" not in row:
        return None
    parent = row.get("parent_chat_id", -1)
    return (
        count(row["chat_id"], place, "chat_id", _MAX_CHAT_ID),
        -1 if parent == -1 else count(parent, place, "parent_chat_id", _MAX_CHAT_ID),
        count(row.get("turn", 1), place, "turn"),
    )


def _objects(place: Place) -> Iterator[dict[str, Any]]:
    """Yield the object on each line that is not blank."""
    for text in lines(place):
        if text.isspace():
            continue
        row = parsed(text, place, _DECODER)
        if not isinstance(row, dict):
            raise place.error(None, row, "a JSON object")
        yield row


class _Text:
    """The text of a file, read as far as needed: `position` advances, and the line of `place` with it."""

    def __init__(self, file: Source, place: Place) -> None:
        self._file = file
        self._place = place
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.ended = False
        self.text = ""
        self.position = 0
        place.line = 1

    def more(self) -> None:
        """Drop what was read, and read on: as much again, so that long text is not scanned too often."""
        self.text, self.position = self.text[self.position :], 0
        raw = self._file.read(max(_PIECE, len(self.text)))
        self.ended = not raw
        try:
            self.text += self._decoder.decode(raw, final=self.ended)
        except UnicodeDecodeError as error:
            self._place.line += self.text.count("\n") + error.object[: error.start].count(b"\n")
            raise self._place.problem(f"not UTF-8 text: byte {error.object[error.start]:#04x}") from None

    def move(self, position: int) -> None:
        """Move on to `position`."""
        self._place.line += self.text.count("\n", self.position, position)
        self.position = position

    def skip(self, after: str) -> str:
        """Move past white space and return the character there, which must be one of `after`."""
        while True:
            self.move(_SPACE.match(self.text, self.position).end())  # type: ignore[union-attr]  # it also matches nothing
            if self.position < len(self.text) or self.ended:
                break
            self.more()
        found = self.text[self.position : self.position + 1]
        if found not in after or not found:
            raise self._place.error(None, found, " or ".join(repr(mark) for mark in after) + " of a JSON array")
        self.move(self.position + 1)
        return found

    def entry(self) -> Any:
        """Return the JSON value that begins just before `position`, and move past it."""
        begin = self.position - 1
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, begin)
            except RecursionError:
                raise self._place.problem("not JSON: nested too deeply") from None
            except ValueError as error:
                if not self.ended and len(self.text) - begin < MAX_LINE:  # it may go on
                    self.position = begin
                    self.more()
                    begin = 0
                    continue
                problem, at = (error.msg, error.pos) if isinstance(error, json.JSONDecodeError) else (str(error), begin)
                self._place.line += self.text.count("\n", begin, at)
                raise self._place.problem(f"not JSON: {problem}") from None
            self.position = begin
            self.move(end)
            return value


def _array(place: Place) -> Iterator[dict[str, Any]]:
    """Yield the objects of one JSON array, one at a time: the file need not fit into memory."""
    with opened(place) as file:
        text = _Text(file, place)
        text.skip("[")
        if text.skip("{]") == "]":
            return
        while True:
            yield text.entry()
            if text.skip(",]") == "]":
                return
            text.skip("{")
