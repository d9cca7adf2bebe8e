"""Latency and completion rate against the arrival rate: single type, two types, long outputs, lmsys, decode only."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from reproduce import published
from reproduce.figures import rate_sweep
from reproduce.runs import Setting, plus_minus
from reproduce.study import PAPER, TUNED
from reproduce.workloads import DECODE_ONLY, LINEAR, LMSYS, LONG, SINGLE, TWO_TYPE, Workload, word_counts
from wait_core import _core
from wait_core.hardware import iteration_time

if TYPE_CHECKING:
    from reproduce.runs import Cell
    from reproduce.study import Study

Sweep = dict[str, dict[str, dict[float, "Cell"]]]
"""By set of settings, policy, rate."""

NAMES = {
    "prefill-first": "vLLM of Vidur",
    "sarathi": "Sarathi",
    "vllm": "vLLM V1",
    "wait": "WAIT",
    "nested-wait": "Nested WAIT",
}


def as_published(study: Study, workload: Workload, rate: float) -> list[Setting]:
    """Return the settings of the paper's baselines, and WAIT with tl chosen at the chunk of its Sarathi."""
    whole = workload.chunks[0] if len(workload.chunks) == 1 else 0
    chunk = whole or (512 if 512 in workload.chunks else workload.chunks[0])
    return [
        Setting("prefill-first", 128, whole or 4096),
        Setting("sarathi", 128, whole or 512),
        study.tuned(workload.policy, workload, rate, [chunk]),
    ]


def sweep(study: Study, workload: Workload, title: str) -> Sweep:
    """Measure all policies at all rates, as published and tuned, and draw it."""
    highlights = [rate for name, rate in published.LATENCY if name == workload.name]
    rates = study.few(workload.rates, highlights)
    found: Sweep = {PAPER: defaultdict(dict), TUNED: defaultdict(dict)}
    for rate in rates:
        for setting in as_published(study, workload, rate):
            found[PAPER][setting.policy][rate] = study.measure(setting, workload, rate, PAPER)
        for policy in ("prefill-first", "sarathi", "vllm", workload.policy):
            setting = study.tuned(policy, workload, rate)
            found[TUNED][policy][rate] = study.measure(setting, workload, rate, TUNED)
    n, seeds = study.size(workload), len(study.seeds)
    grid = f"grid: cap or tl {workload.sizes} x chunk {workload.chunks}"
    print(f"{workload.name}: law {workload.law}, N = {n:,}, {seeds} seeds, {grid}")
    if study.figures:
        path = study.figures / f"paper-{workload.name}.png"
        rate_sweep(path, found, title=f"{title} (N = {n:,}, {seeds} seeds)")
    return found


def stable_up_to(cells: dict[float, Cell]) -> float:
    """Return the largest rate of the sweep up to which every rate is stable; 0 if the first is not."""
    last = 0.0
    for rate in sorted(cells):
        if not cells[rate].stable:
            break
        last = rate
    return last


def _limit(cells: dict[float, Cell]) -> str:
    last = stable_up_to(cells)
    more = " or more" if last == max(cells) else ""
    return f"{last:g}{more}" if last else f"below {min(cells):g}"


def compare(study: Study, workload: Workload, found: Sweep) -> None:
    """State latencies and stable rates beside the paper's, and claim its relations."""
    name = workload.name
    for (experiment, rate), figures in published.LATENCY.items():
        if experiment != name:
            continue
        for policy, (mean, spread) in figures.items():
            ours = found[PAPER][policy][rate]
            best = found[TUNED][policy][rate]
            text = f"{ours.latency}; tuned {best.latency} ({best.setting})"
            study.state(name, f"latency at {rate}/s, {NAMES[policy]} (s)", plus_minus(mean, spread), text)
        best = found[TUNED]["vllm"][rate]
        study.state(name, f"latency at {rate}/s, {NAMES['vllm']} (s)", "", f"tuned {best.latency} ({best.setting})")
        for settings in (PAPER, TUNED):
            # TTFT beside the rest of the latency: where a policy that waits loses its time.
            parts = (
                f"{NAMES[policy]} {by_rate[rate].mean('ttft_s'):.2f}"
                f" + {by_rate[rate].mean('latency_s') - by_rate[rate].mean('ttft_s'):.2f}"
                for policy, by_rate in found[settings].items()
            )
            study.state(name, f"TTFT + decoding at {rate}/s, {settings} (s)", "", ", ".join(parts))
        for settings in (PAPER, TUNED):
            for slow, fast in itertools.pairwise(figures):
                slower, faster = (found[settings][policy][rate].mean("latency_s") for policy in (slow, fast))
                what = f"{name}, {rate}/s, {settings}: latency of {fast} / {slow}"
                study.bench.claim(what, faster / slower, "", "<= 1")
    for policy, rate in published.STABLE.get(name, {}).items():
        limits = "; tuned ".join(_limit(found[settings][policy]) for settings in (PAPER, TUNED))
        study.state(name, f"stable up to, {NAMES[policy]} (1/s)", f"≈ {rate}", limits)
    if name in published.STABLE:
        study.state(name, f"stable up to, {NAMES['vllm']} (1/s)", "", f"tuned {_limit(found[TUNED]['vllm'])}")
    throughput(study, workload, found)
    for slow, fast in itertools.pairwise(published.STABLE.get(name, {})):
        for settings in (PAPER, TUNED):
            gain = stable_up_to(found[settings][fast]) - stable_up_to(found[settings][slow])
            study.bench.claim(f"{name}, {settings}: stable rate of {fast} - {slow}", gain, "1/s", ">= 0")


def throughput(study: Study, workload: Workload, found: Sweep) -> None:
    """State what is completed as the rate grows: the window's completions a second, and the most of any rate."""
    for settings, by_policy in found.items():
        for policy, cells in by_policy.items():
            completed = {rate: rate * cells[rate].mean("completion") for rate in sorted(cells)}
            values = ", ".join(f"{done:.4g} at {rate:g}" for rate, done in completed.items())
            quantity = f"completions per second as the rate grows, {settings}, {NAMES[policy]} (1/s)"
            study.state(workload.name, quantity, "", values)


def single(study: Study) -> None:
    """One type, p512d20, and how sensitive the figures are to the iteration time."""
    found = sweep(study, SINGLE, "One type, p512d20, A100 law")
    compare(study, SINGLE, found)
    sensitivity(study)


def sensitivity(study: Study) -> None:
    """Rerun λ = 22 as published with every iteration made longer: what a few percent of iteration time do."""
    law, decodes = iteration_time(SINGLE.law), 20
    whole = _core.iteration_seconds(
        law, decodes=decodes, decode_kv=decodes * (512 + 10), chunks=[(512 - decodes, 0)]
    )  # fmt: skip
    quantity = f"a full iteration of Sarathi: {512 - decodes} prompt tokens and {decodes} decodes (ms)"
    study.state("single", quantity, "", f"{whole * 1e3:.1f}")
    for overhead_ms in (0, 1, 2, 3, 4, 5):
        slower = replace(SINGLE, overhead_s=overhead_ms * 1e-3, name=f"single +{overhead_ms} ms")
        cells = [study.measure(setting, slower, 22, PAPER) for setting in as_published(study, slower, 22)]
        quantity = f"latency at 22/s, {overhead_ms} ms added to each iteration: vLLM of Vidur / Sarathi / WAIT (s)"
        study.state("single", quantity, "", " / ".join(found.latency for found in cells))


def two_type(study: Study) -> None:
    """Two types whose lengths are hidden."""
    compare(study, TWO_TYPE, sweep(study, TWO_TYPE, "0.7 p512d20 + 0.3 p512d50, lengths hidden, A100 law"))


def long(study: Study) -> None:
    """One type with outputs of 1,000 tokens: memory binds, and C holds less than one request at every stage."""
    found = sweep(study, LONG, "One type, p512d1000, A100 law")
    compare(study, LONG, found)
    for (_, rate), shares in published.PREEMPTED.items():
        for policy, share in shares.items():
            ours, best = (found[settings][policy][rate].mean("preempted") for settings in (PAPER, TUNED))
            text = f"{ours:.2%}; tuned {best:.2%}"
            study.state("long", f"requests preempted at {rate}/s, {NAMES[policy]}", f"{share:.2%}", text)
        for settings in (PAPER, TUNED):
            evicted = found[settings]["wait"][rate].mean("preempted")
            study.bench.claim(f"long, {rate}/s, {settings}: share of requests that WAIT preempts", evicted, "", "<= 0")
    # Paced, WAIT fills the memory in a thousand iterations; a run of ten times the length shows what it settles at.
    longer = replace(LONG, name="long, N x 10", num_requests=10 * LONG.num_requests)
    rates, latencies = [], []
    for policy in ("prefill-first", "sarathi", "vllm", "wait"):
        settled = study.measure(study.tuned(policy, longer, 4.0), longer, 4.0, TUNED)
        rates.append(f"{NAMES[policy]} {4.0 * settled.mean('completion'):.3f} ({settled.setting})")
        latencies.append(f"{NAMES[policy]} {settled.latency}")
    at = f"at 4.0/s, N = {study.size(longer):,}, tuned"
    study.state("long", f"completions per second {at}", "", ", ".join(rates))
    study.state("long", f"latency {at} (s)", "", ", ".join(latencies))


def lmsys(study: Study) -> None:
    """Measured lengths, hidden: under the A100 law and the paper's, and on the word counts where they are."""
    linear = replace(LMSYS, name="lmsys-linear", law=LINEAR)
    cases = [(LMSYS, "lmsys population, A100 law"), (linear, "lmsys population, paper's law")]
    if (words := word_counts(least=1)) is not None:
        rates = (50, 60, 70, 75, 80, 90)
        cases.append((replace(linear, name="lmsys-words", source=words, rates=rates), "lmsys word counts, paper's law"))
    for workload, title in cases:
        found = sweep(study, workload, title)
        for settings in (PAPER, TUNED):
            cells = found[settings]
            nested = cells["nested-wait"]
            limit = stable_up_to(nested)
            baselines = [policy for policy in cells if policy != "nested-wait"]
            stable = ", ".join(f"{NAMES[policy]} {_limit(by_rate)}" for policy, by_rate in cells.items())
            study.state(workload.name, f"stable up to, {settings} (1/s)", "", stable)
            for rate in [rate for rate in (70, 75, 80, 90) if rate in nested]:
                lowest = min(cells[policy][rate].mean("latency_s") for policy in baselines)
                ours = nested[rate].mean("latency_s")
                values = ", ".join(f"{NAMES[policy]} {by_rate[rate].latency}" for policy, by_rate in cells.items())
                study.state(workload.name, f"latency at {rate}/s, {settings} (s)", "Nested WAIT lowest", values)
                goal = "<= 1" if rate >= limit else ""
                what = f"{workload.name}, {rate}/s, {settings}: latency of nested-wait / best baseline"
                study.bench.claim(what, ours / lowest, "", goal)
        throughput(study, workload, found)


def decode_only(study: Study) -> None:
    """Prefill elsewhere: a request's first iteration reads its KV as a decode does, and costs no more (linear law)."""
    found = sweep(study, DECODE_ONLY, "Decode only, p630d20, paper's law")
    low, high = published.DECODE_ONLY_GAIN
    for settings in (PAPER, TUNED):
        cells = found[settings]
        for rate in cells["wait"]:
            latency = {policy: cells[policy][rate].mean("latency_s") for policy in cells}
            gain = 1 - latency["wait"] / latency["prefill-first"]
            values = ", ".join(f"{NAMES[policy]} {by_rate[rate].latency}" for policy, by_rate in cells.items())
            # The paper gives the two ends of its range of rates.
            paper = {100: f"WAIT {low:.0%} below vLLM", 500: f"WAIT {high:.0%} below vLLM"}.get(int(rate), "")
            quantity = f"latency at {rate}/s, {settings} (s)"
            study.state("decode-only", quantity, paper, f"WAIT {gain:.0%} below vLLM of Vidur; {values}")
            what = f"decode-only, {rate}/s, {settings}: WAIT below vLLM of Vidur by"
            study.bench.claim(what, gain, "", f">= {low}" if settings == PAPER and rate % 50 == 0 else "")
