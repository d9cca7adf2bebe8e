"""Readers of the JSON formats, Mooncake, vllm bench custom and ShareGPT, and the writer of Mooncake's."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from wait_core.traces.fields import (
    NS_PER_MS_EXPONENT,
    NS_PER_S_EXPONENT,
    Place,
    TraceError,
    count,
    nanoseconds,
)
from wait_core.traces.trace import Trace, TraceBuilder

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

_SPACE = re.compile(r"[ \t\r\n]*")
_MAX_HASH_ID = 2**64 - 1
_NS_PER_MS = 1_000_000


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


# Numbers with a point become Decimal: a float would round the nanoseconds away.
_DECODER = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_constant)


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
        if not isinstance(text, str):
            raise place.error(column, text, "a text")
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
    place = Place(path)
    builder = TraceBuilder()
    for row in _lines(path, place):
        unit = NS_PER_S_EXPONENT if "chat_id" in row else NS_PER_MS_EXPONENT
        hashes = row.get("hash_ids", [])
        if not isinstance(hashes, list):
            raise place.error("hash_ids", hashes, "a list of integers")
        kind = row.get("type")
        builder.add(
            count(_get(row, "input_length", place), place, "input_length"),
            count(_get(row, "output_length", place), place, "output_length"),
            arrival_ns=nanoseconds(_get(row, "timestamp", place), unit, place, "timestamp"),
            class_name=None if kind is None else str(kind),
            hash_ids=[count(value, place, "hash_ids", _MAX_HASH_ID) for value in hashes],
        )
        if limit is not None and len(builder) >= limit:
            break
    return builder.build(source=str(path), format_name="mooncake")


def read_vllm(path: Path, limit: int | None, lengths: TextLengths) -> Trace:
    """Read the jsonl file of `vllm bench serve --dataset-name custom`."""
    place = Place(path)
    builder = TraceBuilder()
    defaulted = 0
    for row in _lines(path, place):
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
    place = Place(path)
    builder = TraceBuilder()
    for entry in _array(path, place):
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
    ValueError
        If the trace has no arrival times, or counts words.

    """
    if trace.arrival_ns is None:
        raise ValueError(f"trace: {trace.source or 'it'} has no arrival times, which Mooncake's format needs")
    if trace.unit != "tokens":
        raise ValueError(f"trace: {trace.source or 'it'} counts {trace.unit}, and Mooncake's format holds tokens")
    prompts, outputs, arrivals = trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), trace.arrival_ns.tolist()
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
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


def _lines(path: Path, place: Place) -> Iterator[dict[str, Any]]:
    """Yield the object on each line that is not blank."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line, text in enumerate(file, start=1):
            place.line = line
            if not text.strip():
                continue
            try:
                row = _DECODER.decode(text)
            except (ValueError, RecursionError) as error:
                raise TraceError(path, f"not JSON: {error}", line=line, value=text) from None
            if not isinstance(row, dict):
                raise place.error(None, row, "a JSON object")
            yield row


def _array(path: Path, place: Place) -> Iterator[dict[str, Any]]:
    """Yield the objects of one JSON array, one at a time, so that each error knows its line."""
    text = path.read_text(encoding="utf-8-sig")
    position, counted = 0, 0
    place.line = 1

    def skip(after: str) -> str:
        """Move past white space and return the character there, which must be one of `after`."""
        nonlocal position, counted
        position = _SPACE.match(text, position).end()  # type: ignore[union-attr]  # it also matches nothing
        place.line += text.count("\n", counted, position)
        counted = position
        found = text[position : position + 1]
        if found not in after or not found:
            raise place.error(None, found, " or ".join(repr(mark) for mark in after) + " of a JSON array")
        position += 1
        return found

    skip("[")
    position = _SPACE.match(text, position).end()  # type: ignore[union-attr]
    if text[position : position + 1] == "]":
        return
    while True:
        skip("{")
        try:
            entry, position = _DECODER.raw_decode(text, position - 1)
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, error.pos) + 1 if isinstance(error, json.JSONDecodeError) else place.line
            raise TraceError(path, f"not JSON: {error}", line=line) from None
        yield entry
        if skip(",]") == "]":
            return
