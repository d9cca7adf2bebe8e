"""Variations on the experiments: the horizon, waiting switched off, segments and tl, rates that change over time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from reproduce.figures import lines
from reproduce.runs import Cell, Setting
from reproduce.study import PAPER, TUNED
from reproduce.sweeps import NAMES
from reproduce.workloads import LINEAR, LMSYS, LMSYS_LONGEST, SINGLE, TWO_TYPE, TimeVarying, Workload, equal_ranges

if TYPE_CHECKING:
    from reproduce.study import Study

Lines = dict[str, dict[float, Cell]]


def horizon(study: Study) -> None:
    """Two types at 22 and 23: whether the latency levels off as the run grows longer."""
    sizes = (1_000, 2_000, 4_000) if study.quick else (2_000, 5_000, 10_000, 15_000, 20_000)
    panels: dict[str, Lines] = {}
    for rate in (22.0, 23.0):
        settings = {
            ("sarathi", PAPER): Setting("sarathi", 128, 512),
            ("nested-wait", PAPER): study.tuned("nested-wait", TWO_TYPE, rate, [512]),
            ("sarathi", TUNED): study.tuned("sarathi", TWO_TYPE, rate),
            ("nested-wait", TUNED): study.tuned("nested-wait", TWO_TYPE, rate),
        }
        for (policy, note), setting in settings.items():
            cells = panels.setdefault(f"{rate:g}/s, {note}", {})[policy] = {}
            for n in sizes:
                workload = replace(TWO_TYPE, name=f"horizon, N = {n:,}")
                cells[n] = study.measure(setting, workload, rate, note, n)
            middle, end = cells[sizes[len(sizes) // 2]], cells[sizes[-1]]
            growth = end.mean("latency_s") / middle.mean("latency_s")
            paper = "keeps growing" if policy == "sarathi" else "levels off" if rate == 22.0 else ""
            quantity = f"latency at {rate:g}/s for N = {', '.join(f'{n:,}' for n in sizes)}, {policy} {note} (s)"
            study.state("horizon", quantity, paper, ", ".join(cells[n].latency for n in sizes))
            goal = {"keeps growing": ">= 1.1", "levels off": "<= 1.1"}.get(paper, "")
            what = f"horizon, {rate:g}/s, {policy} {note}: latency at N = {sizes[-1]:,} / {sizes[len(sizes) // 2]:,}"
            study.bench.claim(what, growth, "", goal)
    if study.figures:
        title = f"Two types: latency against the number of requests ({len(study.seeds)} seeds)"
        lines(study.figures / "paper-horizon.png", panels, "requests in the run, N", title)


def no_waiting(study: Study) -> None:
    """Hold requests for the tuned thresholds, or use these as caps only."""
    linear = replace(LMSYS, name="lmsys-linear", law=LINEAR)
    panels: dict[str, Lines] = {}
    # The rate near the boundary of each, fixed in advance.
    for workload, near in ((SINGLE, 23), (TWO_TYPE, 22), (linear, 70)):
        found: Lines = {"waiting": {}, "thresholds as caps": {}}
        for rate in study.few(workload.rates, [near]):
            setting = study.tuned(workload.policy, workload, rate)
            off = replace(setting, waits=False)
            found["waiting"][rate] = study.measure(setting, workload, rate, "waiting on")
            found["thresholds as caps"][rate] = study.measure(off, workload, rate, "waiting off")
        panels[workload.name] = found
        low = min(found["waiting"])
        for rate, paper, goal in ((low, "waiting costs a little", ">= 1"), (near, "waiting helps", "<= 1")):
            held, capped = (cells[rate] for cells in found.values())
            quantity = f"{workload.name}, {rate}/s: latency with waiting, and without (s)"
            study.state("no-waiting", quantity, paper, f"{held.latency}; {capped.latency} ({held.setting})")
            ratio = held.mean("latency_s") / capped.mean("latency_s")
            study.bench.claim(f"no-waiting, {workload.name}, {rate}/s: latency with waiting / without", ratio, "", goal)
    if study.figures:
        title = f"{NAMES['wait']} and {NAMES['nested-wait']} with waiting on and off ({len(study.seeds)} seeds)"
        lines(study.figures / "paper-no-waiting.png", panels, "arrival rate (requests/s)", title)


def ablation(study: Study) -> None:
    """Nested WAIT on lmsys by the number of segments L and the cap tl."""
    panels: dict[str, Lines] = {}
    n = 4_000 if study.quick else 10_000
    counts = (2, 10) if study.quick else (1, 2, 5, 10, 25, 50)
    for rate in (50.0, 70.0):
        found: Lines = defaultdict(dict)
        for count in counts:
            boundaries = equal_ranges(LMSYS_LONGEST, count)
            workload = replace(LMSYS, name=f"ablation, L = {count}", law=LINEAR, boundaries=boundaries)
            for size in study.few(LMSYS.sizes[3:]):
                setting = Setting("nested-wait", size, LMSYS.chunks[0])
                found[f"L = {count}"][size] = study.measure(setting, workload, rate, "ablation", n)
        panels[f"{rate:g} requests/s"] = found
        for name, cells in found.items():
            best = min(cells, key=lambda size: cells[size].mean("latency_s"))
            worst = max(cells, key=lambda size: cells[size].mean("latency_s"))
            text = f"{cells[best].latency} at tl = {best:g}; {cells[worst].latency} at tl = {worst:g}"
            quantity = f"lmsys, paper's law, {rate:g}/s, {name}: best and worst latency over tl (s)"
            study.state("ablation", quantity, "", text)
    if study.figures:
        title = f"Nested WAIT on lmsys, paper's law: segments L and cap tl (N = {n:,}, {len(study.seeds)} seeds)"
        lines(study.figures / "paper-ablation.png", panels, "cap on requests in service, tl", title, log_x=True)


def time_varying(study: Study) -> None:
    """Two types whose rate and mix change every 30 s; Nested WAIT planned for the worst window, or for the mean."""
    windows = ((12.0, 0.2), (21.0, 0.4))
    mean = sum(rate for rate, _ in windows) / len(windows)
    share = sum(rate * long for rate, long in windows) / (mean * len(windows))
    base = TimeVarying(
        name="time-varying", source=TWO_TYPE.source, rates=(mean,), sizes=TWO_TYPE.sizes, chunks=TWO_TYPE.chunks,
        boundaries=TWO_TYPE.boundaries, windows=windows, window_s=30.0, planned_share=windows[1][1],
    )  # fmt: skip
    planned: dict[str, Workload] = {"worst window": base, "mean": replace(base, planned_share=share)}
    for note, workload in planned.items():
        setting = study.tuned("nested-wait", workload, mean)
        found = study.measure(setting, workload, mean, f"planned for {note}")
        _state_varying(study, f"Nested WAIT planned for the {note}", found)
    for policy in ("prefill-first", "sarathi", "vllm"):
        _state_varying(study, NAMES[policy], study.measure(study.tuned(policy, base, mean), base, mean, TUNED))


def _state_varying(study: Study, name: str, found: Cell) -> None:
    quantity = f"12/s with 20 % long, 21/s with 40 % long, in turn every 30 s: latency, {name} (s)"
    study.state("time-varying", quantity, "", f"{found.latency} ({found.setting})")
    study.bench.claim(f"time-varying, {name}: completions / arrivals", found.mean("completion"), "", ">= 0.98")
