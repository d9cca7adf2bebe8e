"""Several routers side by side: what is lost where each sees of the others' choices only what replicas report.

Requests come to the routers in turn, of conversations also with session affinity: all turns to one router. 16 replicas
report at intervals, and figures are means over three seeds. Several routers are compared with one of the kind on the
same requests, with the 95 % interval over the seeds.
`--markdown` prints the table of docs/fleet.md, `--data` writes it to docs/data/routers.csv.
"""

from __future__ import annotations

import os
import statistics
from concurrent.futures import ThreadPoolExecutor

from contract import interval, start
from fleet import KINDS, PAIRS, Cell, capacity, run

CELLS = {
    Cell("chat", 16, 0.9, 0.1): ("power-of-two", "forecast"),
    Cell("chat", 16, 0.9, 1.0): ("power-of-two", "forecast"),
    Cell("multi-turn", 16, 0.9, 0.1): ("power-of-two", "prefix-affinity", "forecast"),
}
"""Where prefixes repeat, the router that goes by them too."""
NUMBERS = (1, 2, 4)
IN_TURN, BY_SESSION = "in turn", "by session"
SEEDS = (2, 3, 4)


def main() -> None:
    """Run the cells."""
    bench = start("routers", __doc__ or "")
    seeds, share = (SEEDS[:2], 0.25) if bench.options.quick else (SEEDS, 1.0)
    for cell in CELLS:
        capacity(cell)
    jobs = [
        (cell, router, number, dealt, seed)
        for cell, names in CELLS.items()
        for router in names
        for number in NUMBERS
        for dealt in ((IN_TURN, BY_SESSION) if KINDS[cell.kind].caches and number > 1 else (IN_TURN,))
        for seed in seeds
    ]

    def one(job: tuple[Cell, str, int, str, int]) -> dict[str, float]:
        cell, router, number, dealt, seed = job
        return run(cell, router, seed, share, routers=number, session_affinity=dealt == BY_SESSION)

    # The core runs without Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(one, jobs)
        found = dict(zip(jobs, made, strict=True))
    for cell, router, number, dealt in dict.fromkeys(job[:4] for job in jobs):
        row = {"kind": cell.kind, "staleness": cell.staleness, "router": router, "routers": number}
        row["requests come"] = dealt if number > 1 else ""
        several, alone = (
            [found[cell, router, *how, seed] for seed in seeds] for how in ((number, dealt), (1, IN_TURN))
        )
        for key, name in PAIRS.items():
            value, half = interval([a[key] / b[key] for a, b in zip(several, alone, strict=True)])
            row[f"{name}, ms"] = f"{statistics.mean(figures[key] for figures in several):.0f}"
            row[f"{name} / one router"] = f"{value:.3f}+-{half:.3f}" if number > 1 else "1"
            if number > 1:
                bench.claim(f"{cell}: {name}, {number} x {router}, {dealt} / one", value, f"+-{half:.3f}")
        hits = statistics.mean(figures["prefix_hit_rate"] for figures in several)
        row["prefix hit rate"] = f"{hits:.3f}" if KINDS[cell.kind].caches else ""
        bench.rows.append(row)
    bench.finish()


if __name__ == "__main__":
    main()
