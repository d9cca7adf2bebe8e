"""The page of a replayed decision log."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core.report.html.page import Figure, Page, Section, in_force, reproduction
from wait_core.report.html.svg import Axis, Line, bars, chart

if TYPE_CHECKING:
    from wait_core import Plan, Scheduler
    from wait_core.logs import Replay

MOST_CHARACTERS = 10_000


@dataclass(kw_only=True)
class Replayed:
    """What the core held and decided while a log was replayed; give `watch` to `wait_core.logs.replay`."""

    settings: dict[str, Any] = field(default_factory=dict)
    holds: dict[str, int] = field(default_factory=dict)
    at_ns: list[int] = field(default_factory=list)
    used_blocks: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)

    def watch(self, now_ns: int, core: Scheduler, plan: Plan) -> None:
        """Note one plan, made at `now_ns`."""
        self.settings = self.settings or core.settings
        self.holds = core.stats["holds"]
        self.at_ns.append(now_ns)
        self.used_blocks.append(core.used_blocks)
        self.waiting.append(core.num_waiting)
        self.preempted.append(len(plan.preempted))


def page_of_replay(name: str, result: Replay, seen: Replayed, *, command: str) -> Page:
    """Return the page of a replay.

    Parameters
    ----------
    name : str
        The log.
    result : Replay
        Whether the decisions are the same.
    seen : Replayed
        What was noted at each plan, at least one.
    command : str
        The command line that gives it again.

    """
    same = result.line is None
    verdict = "all decisions are the same" if same else f"iteration {result.iterations} (line {result.line}) differs"
    sections = [] if same else [_difference(result)]
    sections += [_over_time(seen), _holds(seen), in_force(seen.settings), reproduction(command)]
    return Page(
        title=f"{name}: {verdict}",
        summary=f"{result.iterations:,} iterations and {result.requests:,} requests, decided again by the core.",
        notes=[f"{note[:1].upper()}{note[1:]}." for note in result.notes],
        sections=sections,
    )


def _difference(result: Replay) -> Section:
    pair = {"logged": result.logged, "decided": result.decided}
    texts = [f"{name}\n{json.dumps(event, indent=1)[:MOST_CHARACTERS]}" for name, event in pair.items()]
    return Section(heading="The first decision that differs", verbatim=texts)


def _over_time(seen: Replayed) -> Section:
    seconds = (np.array(seen.at_ns, np.float64) - seen.at_ns[0]) * 1e-9
    block, blocks = seen.settings["block_size"], seen.settings["kv_blocks"]
    lost = seconds[np.array(seen.preempted) > 0]
    kv = chart(
        [Line(name=seen.settings["policy"], x=seconds, y=np.array(seen.used_blocks, np.float64) * block, steps=True)],
        Axis(label="time since the first plan, s", least=0.0),
        Axis(label="KV tokens in use", least=0.0, most=1.08 * blocks * block),
        title="KV tokens in use over time",
        limit=(f"capacity {blocks * block:,} tokens", float(blocks * block)),
        marks=lost.tolist(),
        area=True,
    )
    waiting = chart(
        [Line(name="waiting", x=seconds, y=np.array(seen.waiting, np.float64), steps=True)],
        Axis(label="time since the first plan, s", least=0.0),
        Axis(label="requests that wait", least=0.0),
        title="Requests that wait outside the KV cache, over time",
    )
    caption = f"{sum(seen.preempted):,} preemptions; ticks above the curve show when they were planned."
    return Section(
        heading="The KV cache over time",
        figures=[Figure(svg=kv, caption=caption), Figure(heading="Waiting", svg=waiting)],
    )


def _holds(seen: Replayed) -> Section:
    held = {reason: {"decisions": float(count)} for reason, count in seen.holds.items() if count}
    if not held:
        return Section(heading="Holds by reason", text="Nothing was held.")
    figure = Figure(svg=bars(held, title="Decisions that held a queue, by reason", unit=""))
    return Section(heading="Holds by reason", figures=[figure])
