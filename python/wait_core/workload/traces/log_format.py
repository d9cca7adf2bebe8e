"""Reader of decision logs: a production run as a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wait_core.files import Place, lines, parsed
from wait_core.workload.traces.fields import MAX_NS, TraceError, count
from wait_core.workload.traces.trace import Trace, TraceBuilder

if TYPE_CHECKING:
    from pathlib import Path

_MAX = 2**64 - 1
"""Largest id and time of a core."""


def read_log(path: Path, limit: int | None) -> Trace:
    """Read a decision log: the arrivals, with the output lengths that the requests had in the end.

    Requests that the core refused are dropped, those that the log does not see leave, and those that left before their
    first token.
    """
    place = Place(path, TraceError)
    builder = TraceBuilder()
    arrivals: list[tuple[int, int]] = []
    outputs: dict[int, int] = {}  # by arrival
    present: dict[int, int] = {}  # the arrival of each id
    for text in lines(place):
        try:
            event = parsed(text, place)
        except TraceError:
            if not text.endswith("\n"):
                break  # cut off while it was written
            raise
        if not isinstance(event, dict):
            raise place.error(None, event, "a JSON object")
        if "add" in event:
            if event.get("refused"):
                builder.drop("refused by the core")
                continue
            number = count(event["add"], place, "add", _MAX)
            # now_ns and the priority have defaults, and are absent where they were not given.
            at_ns = count(event.get("now_ns", 0), place, "now_ns", _MAX)
            prompt = count(event.get("prompt_tokens"), place, "prompt_tokens")
            # When a core takes over from another, those present are added again, under the same id.
            if number not in present:
                present[number] = len(arrivals)
                arrivals.append((at_ns, prompt))
        elif "end" in event:
            arrival = present.pop(count(event["end"], place, "end", _MAX), None)
            tokens = count(event.get("tokens"), place, "tokens")
            if arrival is not None:
                outputs[arrival] = tokens
    first_ns = min((at_ns for at_ns, _ in arrivals), default=0)
    for arrival, (at_ns, prompt) in enumerate(arrivals):
        if arrival not in outputs:
            builder.drop("not finished within the log")
            continue
        since_ns = at_ns - first_ns
        if since_ns > MAX_NS:
            raise TraceError(path, f"arrivals are {since_ns} ns apart: more than 292 years")
        builder.add(prompt, outputs[arrival], arrival_ns=since_ns, zero_output="left before its first token")
        if limit is not None and len(builder) >= limit:
            break
    return builder.build(source=str(path), format_name="wait-core-log")
