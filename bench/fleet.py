"""Routers on simulated fleets: every router on the same requests, and the claims about `forecast`.

A cell is a workload, a number of replicas, a load relative to the bound that no schedule exceeds on those engines
(with a prefix cache, which has no such bound, to what one engine carries in overload), and the largest age of the
router's view of a replica. All engines run `adaptive`. `forecast` is compared with the best other router of each
cell and figure, chosen in hindsight, by paired ratios over the seeds with their 95 % interval. Goodput is the share of
the requests offered whose first token comes within 2 s and whose tokens follow at 0.1 s on average; with "target at
the door" the router knows those 2 s (`ttft_target`), and with "SLO stated" the engines do. The first claims are of the
speed: 64 engines, a million requests. `forecast` was tuned on seed 1, which is not among those compared. `--markdown`
prints the tables of docs/fleet.md, `--data` writes every cell to docs/data/fleet.csv.
"""

from __future__ import annotations

import math
import os
import resource
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from contract import Bench, Claim, interval, markdown, start
from panel_cells import FIXED, OVERLOAD, carried

from wait_core import _core, simulate
from wait_core.fleet import ROUTERS
from wait_core.hardware import iteration_time
from wait_core.hardware.iteration_time import kv_cache_of
from wait_core.workload import Dataset, Requests, sampled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SLO = {"slo_ttft_ms": 1e3 * FIXED.slo["ttft_s"], "slo_tpot_ms": 1e3 * FIXED.slo["tpot_s"]}
OURS, STOCK = "forecast", "power-of-two"
STATED = {f"{name}, SLO stated": name for name in (OURS, STOCK)}
AT_DOOR = f"{OURS}, target at the door"
TOLD = {AT_DOOR: OURS} | STATED
OF_GOODPUT = ((AT_DOOR, STOCK), (OURS, STOCK), tuple(STATED), (next(iter(STATED)), STOCK))
KEPT = ("p99_ttft_ms", "mean_e2el_ms", "goodput", "prefix_hit_rate", "mean_ttft_ms", "mean_tpot_ms")
GOALS = {"best other": "<= 1", "goodput": ">= 1.1", "prefix hit rate": ">= 0.95"}
"""Of `forecast` against the best other router, of its goodput and of its share of cached prompts."""
PAIRS = {"p99_ttft_ms": "p99 TTFT", "mean_e2el_ms": "mean E2E"}
SPEED_UP = {"round-robin": ">= 1.8", STOCK: ">= 1.4", OURS: ">= 1.4"}
"""How many times as fast two threads are to be on two cores: where each engine goes on by itself, and where the router
sees at once which requests have ended."""
STALENESS = (0.1, 0.5, 2.0)
"""Ages of the router's knowledge with which its target at the door is tried, s."""
A100: dict[str, Any] = {"iteration_time": "a100", "kv_blocks": FIXED.kv_blocks, "max_num_seqs": FIXED.max_num_seqs}
H100: dict[str, Any] = {"iteration_time": "llama-3.1-8b-h100-sxm"}
OLD: dict[str, Any] = {"iteration_time": "llama-3.1-8b-a100-sxm"}


class Kind(NamedTuple):
    """A kind of traffic: its dataset, the engines as they repeat, and requests for each of them."""

    dataset: str
    engines: tuple[dict[str, Any], ...]
    each: int
    caches: bool = False


class Cell(NamedTuple):
    """One kind of traffic on one fleet."""

    kind: str
    replicas: int
    load: float
    staleness: float

    def __str__(self) -> str:
        """Return its name in the tables."""
        return f"{self.kind}, {self.replicas} replicas, load {self.load:g}, {self.staleness:g} s"


def slower(law: str, factor: float) -> dict[str, Any]:
    """Return a law by which every iteration takes `factor` times as long."""
    fields = iteration_time(law)
    attention = {name: factor * value for name, value in fields["attention"].items()}
    steps = [
        step | {"base_ns": factor * step["base_ns"], "per_token_ns": factor * step["per_token_ns"]}
        for step in fields["steps"]
    ]
    return fields | {"steps": steps, "attention": attention}


SLOW = {"iteration_time": slower("llama-3.1-8b-h100-sxm", 3.0), "kv_blocks": 20_000}
KINDS = {
    "chat": Kind("chat", (A100,), 300),
    "reasoning": Kind("reasoning-2700", (A100,), 100),
    "multi-turn": Kind("multi-turn", (A100,), 300, caches=True),
    "bursts": Kind("bursts", (A100,), 300),
    "two tenants": Kind("tenants", (A100,), 200),
    "unequal GPUs": Kind("chat", (H100, OLD), 600),
    "one slow replica": Kind("chat", (H100,), 600),
}
CELLS = [Cell("chat", n, load, 0.1) for n in (4, 16, 64) for load in (0.6, 0.9, 1.2)]
CELLS += [Cell("chat", 16, 0.9, age) for age in (0.0, 2.0)]
CELLS += [Cell("chat", 16, load, 0.1) for load in (1.0, 1.1)]
CELLS += [Cell(kind, 16, load, 0.1) for kind in list(KINDS)[1:] for load in (0.9, 1.2)]
CELLS += [Cell(kind, 16, 0.9, 2.0) for kind in list(KINDS)[1:]]
QUICK = [Cell("chat", 4, 0.9, 0.1), Cell("chat", 4, 1.2, 0.1), Cell("multi-turn", 4, 0.9, 0.1)]


def fleet_of(cell: Cell) -> list[dict[str, Any]]:
    """Return the settings of each replica."""
    engines = KINDS[cell.kind].engines
    fleet = [engines[i % len(engines)] for i in range(cell.replicas)]
    return [SLOW, *fleet[1:]] if cell.kind == "one slow replica" else fleet


def offered(name: str, rate: float, count: int, seed: int) -> Requests:
    """Make the requests of a stream."""
    made = FIXED.workloads[name]
    assert isinstance(made, Dataset)  # noqa: S101  none is a trace
    return sampled(made, request_rate=rate, num_prompts=count, seed=seed)


@cache
def carries(name: str, law: str, kv_blocks: int, seats: int, *, caches: bool) -> float:
    """Requests/s of a stream that no schedule exceeds on an engine; with a prefix cache, those that it carries."""
    planner = _core.Planner(
        offered(name, 1.0, 2000, 1).types(2000)[0],
        eval(law),  # noqa: S307  our own repr, as a key
        capacity=kv_blocks * 16,
        max_running=seats,
        token_budget=2048,
    )
    bound = float(planner.capacity_bound()["requests"])
    if not caches:
        return bound
    settings: dict[str, Any] = {"iteration_time": eval(law), "kv_blocks": kv_blocks, "max_num_seqs": seats}  # noqa: S307
    requests = offered(name, OVERLOAD * bound, 2000, 1)
    return carried(simulate("adaptive", requests=requests, prefix_caching=True, **settings).run.finished_ns)


def capacity(cell: Cell) -> float:
    """Requests/s that the fleet of a cell carries."""
    kind, total = KINDS[cell.kind], 0.0
    for engine in fleet_of(cell):
        law = iteration_time(engine["iteration_time"])
        blocks = ({"block_size": 16} | engine | kv_cache_of(law, {"block_size": 16} | engine))["kv_blocks"]
        seats = engine.get("max_num_seqs", 256)
        total += carries(kind.dataset, repr(law), blocks, seats, caches=kind.caches)
    return total


def run(
    cell: Cell,
    router: str,
    seed: int,
    share: float,
    *,
    routers: int = 1,
    session_affinity: bool = False,
    policy: str = "adaptive",
    **settings: Any,
) -> dict[str, float]:
    """Simulate one router on one cell, or several side by side."""
    kind = KINDS[cell.kind]
    # An overload takes its time to build up.
    count = max(200, int((2.0 if cell.load > 1.0 else 1.0) * share * kind.each * cell.replicas))
    requests = offered(kind.dataset, cell.load * capacity(cell), count, seed)
    target = {"ttft_target": FIXED.slo["ttft_s"]}
    knows: dict[str, Any] = target if router in STATED else {}
    report = simulate(
        policy,
        requests=requests,
        seed=seed,
        replicas=fleet_of(cell),
        router={"router": TOLD.get(router, router)} | (target if router == AT_DOOR else {}),
        routers=routers,
        session_affinity=session_affinity,
        staleness_s=cell.staleness,
        prefix_caching=kind.caches,
        threads=1,  # the others have simulations of their own
        **settings | knows,
    )
    summary = report.summary(**SLO)
    if summary["completed"] != len(requests):
        raise RuntimeError(f"{cell}, {router}: {summary['completed']} of {len(requests)} requests finished")
    return {key: float(summary[key]) for key in KEPT}


def routers(cell: Cell) -> list[str]:
    """Return the routers of a cell: affinity needs prefixes, a known target matters in overload, and none is random."""
    left_out = {"random"} if KINDS[cell.kind].caches else {"random", "prefix-affinity"}
    names = [name for name in ROUTERS if name not in left_out]
    return names + (list(TOLD) if cell.load >= 1.0 else [])


def judge(bench: Bench, cell: Cell, made: dict[str, list[dict[str, float]]]) -> None:
    """Compare `forecast` with the best other router of a cell."""

    def mean(router: str, key: str) -> float:
        return statistics.mean(figures[key] for figures in made[router])

    def ratio(mine: str, other: str, key: str) -> tuple[float, float]:
        return interval([a[key] / max(b[key], 1e-9) for a, b in zip(made[mine], made[other], strict=True)])

    row: dict[str, Any] = cell._asdict()
    others = [name for name in made if name != OURS and name not in TOLD]
    for key, name in PAIRS.items():
        best = min(others, key={other: mean(other, key) for other in others}.__getitem__)
        value, half = ratio(OURS, best, key)
        # A ratio within its interval is not distinguished from 1.
        shown = f"{value:.3f}+-{half:.3f}"
        bench.claim(f"{cell}: {name} / {best}", value - min(half, value), shown, GOALS["best other"])
        row |= {f"best other, {name}": best, f"{name} / best other": shown}
    if cell.load >= 1.0:
        for mine, other in OF_GOODPUT:
            value, half = ratio(mine, other, "goodput")
            # Only where the engines of both know the target, or of neither, is it the router's doing.
            goal = GOALS["goodput"] if (mine in STATED) == (other in STATED) else ""
            bench.claim(f"{cell}: goodput, {mine} / {other}", value, f"+-{half:.3f}", goal)
            row[f"goodput, {mine} / {other}"] = f"{value:.3f}+-{half:.3f}"
        for key, name in PAIRS.items():
            value, half = ratio(AT_DOOR, STOCK, key)
            bench.claim(f"{cell}: {name}, {AT_DOOR} / {STOCK}", value, f"+-{half:.3f}")
            row[f"{name}, {AT_DOOR} / {STOCK}"] = f"{value:.3f}+-{half:.3f}"
    if KINDS[cell.kind].caches:
        value, half = ratio(OURS, "prefix-affinity", "prefix_hit_rate")
        bench.claim(f"{cell}: prefix hit rate / prefix-affinity", value, f"+-{half:.3f}", GOALS["prefix hit rate"])
        row["prefix hit rate / prefix-affinity"] = f"{value:.3f}+-{half:.3f}"
    for router in made:
        row |= {f"{name}, {router}": f"{mean(router, key):.0f}" for key, name in PAIRS.items()}
        row[f"goodput, {router}"] = f"{mean(router, 'goodput'):.3f}"
    bench.rows.append(row)


def speed(bench: Bench, count: int) -> None:
    """Time 64 engines behind `forecast`, and how much faster two threads are."""
    cell = Cell("chat", 64, 0.9, 0.1)
    requests = offered("chat", cell.load * capacity(cell), count, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, processor = time.perf_counter(), time.process_time()
    common: dict[str, Any] = {"replicas": fleet_of(cell), "staleness_s": 0.1}
    report = simulate("adaptive", requests=requests, router=OURS, threads=1, **common)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / count
    bench.claim(f"64 engines, {count:,} requests: processor time", processor, "s", "<= 60")
    bench.claim(f"64 engines, {count:,} requests: wall clock", wall, "s")
    bench.claim(f"64 engines, {count:,} requests: memory grown, a request", grown, "bytes")
    bench.claim(f"64 engines, {count:,} requests: completed", report.summary()["completed"] / count, "share", ">= 1")
    some = offered("chat", cell.load * capacity(cell), count // 5, 1)
    for router, goal in SPEED_UP.items():
        took = dict.fromkeys((1, 2), math.inf)
        for threads in (1, 2) * 3:
            begin = time.perf_counter()
            simulate("adaptive", requests=some, router=router, threads=threads, **common)
            took[threads] = min(took[threads], time.perf_counter() - begin)
        bench.claim(
            f"64 engines, {count // 5:,} requests: {router}, two threads", took[1] / took[2], "times as fast", goal
        )


def freshness(bench: Bench, seeds: tuple[int, ...], share: float) -> None:
    """Measure what the router's target is worth with knowledge of several ages."""
    for staleness in STALENESS:
        cell = Cell("chat", 16, 1.2, staleness)
        goodput = statistics.mean(run(cell, AT_DOOR, seed, share)["goodput"] for seed in seeds)
        bench.claim(f"{cell}: goodput, {AT_DOOR}", goodput, "share")


def goals(rows: Sequence[Mapping[str, str]]) -> str:
    """Return how many cells hold each goal."""
    lines: list[list[str]] = []

    def count(name: str, goal: str, ratios: list[str], *, within: bool = False) -> None:
        found = [[float(part) for part in ratio.split("+-")] for ratio in ratios if ratio]
        claims = [Claim(name, value - min(half, value) * within, "", goal) for value, half in found]
        lines.append([name, goal, f"{sum(claim.holds is True for claim in claims)} of {len(claims)}"])

    for figure in (f"{name} / best other" for name in PAIRS.values()):
        ratios = [row[figure] for row in rows]
        count(f"{figure}, within its interval", GOALS["best other"], ratios, within=True)
        count(f"{figure}, the mean itself", GOALS["best other"], ratios)
    for mine, other in OF_GOODPUT:
        if (mine in STATED) == (other in STATED):
            figure = f"goodput, {mine} / {other}"
            count(figure, GOALS["goodput"], [row[figure] for row in rows])
    figure, stock = f"goodput, {AT_DOOR} / {STOCK}", f"goodput, {STOCK}"
    # More than all requests cannot be in time.
    possible = [row[figure] for row in rows if 1.1 * float(row[stock]) <= 1.0]
    count(f"{figure}, where that of {STOCK} is at most 1 / 1.1", GOALS["goodput"], possible)
    figure = "prefix hit rate / prefix-affinity"
    count(figure, GOALS["prefix hit rate"], [row[figure] for row in rows])
    return markdown(["figure", "goal", "holds"], lines)


def main() -> None:
    """Run the cells."""
    bench = start("fleet", __doc__ or "")
    quick = bench.options.quick
    cells, seeds, share = (QUICK, (2, 3), 0.25) if quick else (CELLS, (2, 3, 4), 1.0)
    jobs = [(cell, router, seed) for cell in cells for router in routers(cell) for seed in seeds]
    # First, while the process is small: its memory is measured by the peak.
    speed(bench, 20_000 if quick else 1_000_000)
    for cell in cells:
        capacity(cell)
    # The core runs without Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(jobs, pool.map(lambda job: run(job[0], job[1], job[2], share), jobs), strict=True))
    for cell in cells:
        judge(bench, cell, {router: [found[cell, router, seed] for seed in seeds] for router in routers(cell)})
    freshness(bench, seeds, share)
    bench.finish()


if __name__ == "__main__":
    main()
