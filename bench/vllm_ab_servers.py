"""The arms of bench/vllm_ab.py as live servers: `vllm serve`, one an arm, under `vllm bench serve`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import real_model
from contract import ROOT

from wait_core.hardware import calibration
from wait_core.logs import step_log

sys.path.insert(0, str(ROOT / "tests" / "with_vllm"))
import live

if TYPE_CHECKING:
    from pathlib import Path

WARM_UP = 0
"""The round whose first quarter warms the servers up and is not kept."""
CORES = sorted(os.sched_getaffinity(0))
LABEL = re.compile(r'reason="(\w+)"')


def drawn(lengths: dict[str, float], count: int, draw: np.random.Generator) -> list[int]:
    """Draw lognormal lengths, clipped."""
    sizes = draw.lognormal(lengths["mu"], lengths["sigma"], count)
    return [int(size) for size in np.clip(np.rint(sizes), lengths["least"], lengths["most"])]


class Bed:
    """A block of bench/vllm_ab.json, made ready: a folder with the model and the requests of each round."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self.settings = settings
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

    def server(self, arm: str, options: dict[str, Any], cell: dict[str, Any], *, pinned: bool) -> live.Server:
        """Return the server of an arm, started with `options` where it is not there."""
        return self.servers.get(arm) or self.started(arm, options, cell, pinned=pinned)

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
            told = f"{done.stdout[-2000:]}{done.stderr[-2000:]}\n{server.log.read_text()[-4000:]}"
            sys.exit(f"{answer['completed']} of {count} requests finished:\n{told}")
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


Lengths = dict[tuple[str, int], tuple[list[int], list[int]]]
"""Prompt and output tokens of each request, by cell and round."""


def calibrated(bed: Bed, *, rounds: int = 1, pinned: bool = False, part: int = 1) -> tuple[calibration.Fit, Lengths]:
    """Fit a law to steps of the engine as the cells drive it; `part` of 4 takes a quarter of each cell's requests.

    Returns what was served too.
    """
    log = bed.folder / "steps.jsonl"
    logged = {"policy": "vllm", "step_log_file": str(log)}
    options = {"scheduler-cls": "wait_core.vllm.WaitScheduler", "additional-config": {"wait_core": logged}}
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
