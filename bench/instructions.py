"""Instructions per iteration of the core, counted by callgrind: exact where times are noise.

Counts two runs of `rust/core/examples/step.rs` that differ in their number of iterations only, and subtracts. In each
iteration one request finishes, one is admitted and one arrives, at whatever stages the residents stand. With
--check the counts are compared with bench/instructions.json, and a cell that grew by more than the tolerance is an
error; --update writes that file. --profile shows where the instructions of an iteration go.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from callgrind import Profile, profile
from contract import Claim, markdown, start

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from contract import Bench

ROOT = Path(__file__).resolve().parent.parent
BASELINE = ROOT / "bench" / "instructions.json"
TOLERANCE = 0.05
# `adaptive` updates its curves every 64 iterations: that is counted in proportion.
ITERATIONS = (128, 320)
FULL = ("vllm, memory full", "adaptive, memory full", "adaptive, steps timed")
"""Cases in which memory is full, and others wait."""
CASES = ("vllm", "wait", "nested-wait", "adaptive", *FULL)
MOST_GROWTH = {"waiting": 0.05, "running": 0.2}
"""Largest exponent of the instructions in the number that wait, and in the number that run."""
GROUPS = ("vllm", "adaptive")
"""Policies that are counted with three groups of the KV cache too."""
MOST_OF_GROUPS = 8_192
"""Most that run there: more would need more blocks than a scheduler accepts."""
RUNNING = (16, 256, 1_024, 8_192, 65_536)
WAITING = (0, 1_000, 100_000, 1_000_000)
# Stages over which the example's residents spread, if there are as many.
SPREAD = 1_024
CHECKED = [(256, 1_000), (1_024, 0)]


def build() -> Path:
    """Build the example; returns its path."""
    command = ["cargo", "build", "--release", "-q", "-p", "wait-core", "--example", "step"]
    subprocess.run(command, cwd=ROOT, check=True)
    return ROOT / "target" / "release" / "examples" / "step"


def run(binary: Path, case: str, running: int, waiting: int, iterations: int) -> Profile:
    """Count one whole run."""
    return profile([str(binary), case, str(running), str(waiting), str(iterations)])


def per_iteration(binary: Path, case: str, running: int, waiting: int) -> float:
    """Instructions of one iteration: plan, one finish, one admission, one arrival."""
    few, many = (run(binary, case, running, waiting, iterations).total for iterations in ITERATIONS)
    return (many - few) / (ITERATIONS[1] - ITERATIONS[0])


def where(bench: Bench, binary: Path, case: str, running: int, waiting: int) -> None:
    """Show where the instructions of one iteration go: by function, callees included, and by source file."""
    few, many = (run(binary, case, running, waiting, iterations) for iterations in ITERATIONS)
    spent: Counter[str] = Counter()
    for name, end in many.functions.items():
        spent[name.replace("wait_core::", "")] += end - few.functions[name]
    for path, end in many.files.items():
        spent[source(path)] += end - few.files[path]
    for name, instructions in spent.most_common():
        each = instructions / (ITERATIONS[1] - ITERATIONS[0])
        if each >= 1 and ("::" in name or name.startswith("in ")) and "std::" not in name:
            bench.rows.append({"case": case, "instructions": each, "of": name})


def source(path: str) -> str:
    """Name the part of the program that a source file belongs to."""
    if "hashbrown" in path or "rustc-hash" in path:
        return "in the hash map of ids"
    core = path.partition("rust/core/src/")[2]
    return f"in {core}" if core else "in the standard library: slices, vectors, memcpy"


def exponent(counts: Mapping[int, float]) -> float:
    """Slope of log(instructions) against log(size): 0 is flat, 1 is linear."""
    return float(np.polyfit(np.log(list(counts)), np.log(list(counts.values())), 1)[0])


def growth(rows: Sequence[Mapping[str, Any]], case: str) -> list[Claim]:
    """Return how the instructions of a case grow, in each number that it was counted at several of."""
    cells = [(int(row["running"]), int(row["waiting"]), float(row[case])) for row in rows if row.get(case)]
    running = {size: cost for size, waiting, cost in cells if waiting == 1_000}
    fits = [("waiting", "in waiting", {max(size, 1): cost for running, size, cost in cells if running == 256})]
    # Up to SPREAD as many pass a stage in an iteration whatever runs; beyond, it grows with what runs.
    for most in sorted({min(SPREAD, max(running)), max(running)}):
        counts = {size: cost for size, cost in running.items() if size <= most}
        fits.append(("running", f"in running, {min(counts):,} to {max(counts):,}", counts))
    return [
        Claim(name, exponent(counts), "", f"<= {MOST_GROWTH[number]}")
        for number, name, counts in fits
        if len(counts) > 1
    ]


def exponents(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the table of the fitted exponents, of the cases that were counted at all sizes."""
    cases = [case for case in CASES if case not in FULL]
    lines = []
    for claims in zip(*(growth(rows, case) for case in cases), strict=True):
        cells = [f"{round(claim.value, 4) or 0:.2g}" + ("" if claim.holds else ", missed") for claim in claims]
        lines.append([claims[0].name, *cells, claims[0].goal])
    return markdown(["fitted exponent", *(f"`{case}`" for case in cases), "goal"], lines)


def against_baseline(bench: Bench, binary: Path) -> None:
    """Compare some of the counts with the baseline, or write it."""
    counts = {
        f"{case}: {running} running, {waiting} waiting": round(per_iteration(binary, case, running, waiting))
        for case in CASES
        for running, waiting in CHECKED
        if waiting or case not in FULL
    }
    if bench.options.update:
        BASELINE.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    baseline = json.loads(BASELINE.read_text(encoding="utf-8"))
    for name, instructions in counts.items():
        bound = f"<= {1 + TOLERANCE:g}"
        bench.claim(f"instructions of an iteration, {name}, against baseline", instructions / baseline[name], "", bound)


def every_size(bench: Bench, binary: Path) -> None:
    """Count at all sizes, and fit how the counts grow."""
    running, waiting = (RUNNING[:3], WAITING[:2]) if bench.options.quick else (RUNNING, WAITING)
    rows: dict[tuple[int, int], dict[str, int]] = {}
    for case in CASES:
        # With memory full, the more run the fewer are admitted for one that ends: counted at one size only.
        sizes = (256,) if case in FULL else running
        by_running = [per_iteration(binary, case, size, 1_000) for size in sizes]
        by_waiting = [per_iteration(binary, case, 256, size) for size in waiting]
        cells = [(size, 1_000, cost) for size, cost in zip(sizes, by_running, strict=True)]
        cells += [(256, size, cost) for size, cost in zip(waiting, by_waiting, strict=True)]
        for seats, queue, cost in cells:
            rows.setdefault((seats, queue), {"running": seats, "waiting": queue})[case] = round(cost)
    bench.rows = list(rows.values())
    for case in CASES:
        for claim in growth(bench.rows, case):
            bench.claim(f"exponent {claim.name}, {case}", claim.value, "", claim.goal)
    for policy in GROUPS:
        for size in (size for size in running[1:] if size <= MOST_OF_GROUPS):
            several = per_iteration(binary, f"{policy}, three groups", size, 1_000)
            ratio = several / per_iteration(binary, policy, size, 1_000)
            bench.claim(f"three groups of the KV cache, {policy}, {size:,} running, against one", ratio, "", "<= 1.5")


def main() -> None:
    """Print the table, or check it."""
    bench = start(
        "instructions",
        "Instructions per iteration of the core, by callgrind.",
        check={"action": "store_true", "help": f"fail where a count exceeds the baseline by {100 * TOLERANCE:.0f} %%"},
        update={"action": "store_true", "help": "write the baseline"},
        profile={"action": "store_true", "help": "show where the instructions of an iteration go"},
    )
    options = bench.options
    if options.data and (options.profile or options.check):
        sys.exit("--data: the documentation has the counts at all sizes, without --profile and --check")
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed (Debian: apt-get install valgrind)")
    binary = build()
    if options.profile:
        for case in CASES:
            where(bench, binary, case, *CHECKED[0])
    if options.check or options.update:
        against_baseline(bench, binary)
    if options.data or not (options.profile or options.check or options.update):
        every_size(bench, binary)
    bench.finish()
    if options.check and not all(claim.holds for claim in bench.claims):
        sys.exit("a count exceeds its baseline: fix it, or run bench/instructions.py --update and explain why")


if __name__ == "__main__":
    main()
