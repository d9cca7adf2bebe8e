"""Instructions per iteration of the core, counted by callgrind: exact where times are noise.

Counts two runs of `rust/core/examples/step.rs` that differ in their number of iterations only, and subtracts. With
--check the counts are compared with bench/instructions.json, and a cell that grew by more than the tolerance is an
error; --update writes that file.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from contract import start

ROOT = Path(__file__).resolve().parent.parent
BASELINE = ROOT / "bench" / "instructions.json"
TOLERANCE = 0.05
ITERATIONS = (100, 300)
POLICIES = ("vllm", "wait")
RUNNING = (16, 256, 1_024, 8_192, 65_536)
WAITING = (0, 1_000, 100_000, 1_000_000)
CHECKED = [(256, 1_000), (1_024, 0)]


def build() -> Path:
    """Build the example; returns its path."""
    command = ["cargo", "build", "--release", "-q", "-p", "wait-core", "--example", "step"]
    subprocess.run(command, cwd=ROOT, check=True)
    return ROOT / "target" / "release" / "examples" / "step"


def count(binary: Path, policy: str, running: int, waiting: int, iterations: int) -> int:
    """Instructions of one whole run."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        command += [str(binary), policy, str(running), str(waiting), str(iterations)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Collected : (\d+)", result.stderr)
    if result.returncode != 0 or found is None:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    return int(found.group(1))


def per_iteration(binary: Path, policy: str, running: int, waiting: int) -> float:
    """Instructions of one iteration: plan, one finish, one admission, one arrival."""
    few, many = (count(binary, policy, running, waiting, iterations) for iterations in ITERATIONS)
    return (many - few) / (ITERATIONS[1] - ITERATIONS[0])


def exponent(sizes: list[int], instructions: list[float]) -> float:
    """Slope of log(instructions) against log(size): 0 is flat, 1 is linear."""
    return float(np.polyfit(np.log(sizes), np.log(instructions), 1)[0])


def main() -> None:
    """Print the table, or check it."""
    bench = start(
        "instructions",
        "Instructions per iteration of the core, by callgrind.",
        check={"action": "store_true", "help": f"fail where a count exceeds the baseline by {TOLERANCE:.0%}"},
        update={"action": "store_true", "help": "write the baseline"},
    )
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed (Debian: apt-get install valgrind)")
    binary = build()
    if bench.options.check or bench.options.update:
        counts = {
            f"{policy} {running} running {waiting} waiting": round(per_iteration(binary, policy, running, waiting))
            for policy in POLICIES
            for running, waiting in CHECKED
        }
        if bench.options.update:
            BASELINE.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
        baseline = json.loads(BASELINE.read_text(encoding="utf-8"))
        for name, instructions in counts.items():
            bound = f"<= {1 + TOLERANCE:g}"
            bench.claim(
                f"instructions of an iteration, {name}, against baseline", instructions / baseline[name], "", bound
            )
        bench.finish()
        if not all(claim.holds for claim in bench.claims):
            sys.exit("a count exceeds its baseline: mend it, or run bench/instructions.py --update and say why")
        return
    running, waiting = (RUNNING[:3], WAITING[:2]) if bench.options.quick else (RUNNING, WAITING)
    for policy in POLICIES:
        by_running = [per_iteration(binary, policy, size, 1_000) for size in running]
        by_waiting = [per_iteration(binary, policy, 256, size) for size in waiting]
        cells = [(size, 1_000, cost) for size, cost in zip(running, by_running, strict=True)]
        cells += [(256, size, cost) for size, cost in zip(waiting, by_waiting, strict=True)]
        for seats, line, cost in cells:
            bench.rows.append({"policy": policy, "running": seats, "waiting": line, "instructions": cost})
        bench.claim(f"exponent in running, {policy}", exponent(list(running), by_running), "", "<= 0.1")
        growth = exponent([max(size, 1) for size in waiting], by_waiting)
        bench.claim(f"exponent in waiting, {policy}", growth, "", "<= 0.05")
    bench.finish()


if __name__ == "__main__":
    main()
