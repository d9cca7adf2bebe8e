"""Reader of decision logs: a production run as a trace."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from wait_core.traces.fields import MAX_NS, Place, TraceError, count
from wait_core.traces.trace import Trace, TraceBuilder

if TYPE_CHECKING:
    from pathlib import Path


def read_log(path: Path, limit: int | None) -> Trace:
    """Read a decision log: the arrivals, with the output lengths that the requests had in the end.

    Requests that the log does not see leave are dropped, and so are those that left before their first token.
    """
    place = Place(path)
    arrivals: dict[int, tuple[int, int]] = {}
    outputs: dict[int, int] = {}
    with path.open(encoding="utf-8-sig") as lines:
        for place.line, text in enumerate(lines, start=1):
            try:
                event = json.loads(text)
            except (ValueError, RecursionError) as error:
                if not text.endswith("\n"):
                    break  # cut off while it was written
                raise TraceError(path, f"not JSON: {error}", line=place.line, value=text) from None
            if not isinstance(event, dict):
                raise TraceError(path, "not a JSON object", line=place.line, value=text)
            if "add" in event:
                # When a core takes over from another, those present are added again, under the same number.
                number = count(event["add"], place, "add", MAX_NS)
                arrival = (
                    count(event.get("now_ns"), place, "now_ns", MAX_NS),
                    count(event.get("prompt_tokens"), place, "prompt_tokens"),
                )
                arrivals.setdefault(number, arrival)
            elif "end" in event:
                outputs[count(event["end"], place, "end", MAX_NS)] = count(event.get("tokens"), place, "tokens")
    builder = TraceBuilder()
    for number, (arrival_ns, prompt) in arrivals.items():
        if number not in outputs:
            builder.drop("not finished within the log")
            continue
        builder.add(prompt, outputs[number], arrival_ns=arrival_ns, zero_output="left before its first token")
        if limit is not None and len(builder) >= limit:
            break
    return builder.build(source=str(path), format_name="wait-core-log")
