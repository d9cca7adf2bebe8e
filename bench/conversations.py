"""Conversations on an engine with a prefix cache: the panel's cells of that kind, judged as the others are.

Loads are relative to what stock carries in overload, because with a prefix cache there is no rate that no schedule
exceeds. `--markdown` prints the table of docs/panel.md, `--data` writes every cell to docs/data/conversations.csv.
"""

from __future__ import annotations

import os

from contract import start
from panel_cells import FIXED, Cell, Panel, jobs_of, judge

ENGINES = [engine for engine in FIXED.engines.values() if engine.prefix_caching]


def main() -> None:
    """Make the runs, print the table and the claims."""
    bench = start(
        "conversations",
        str(__doc__).splitlines()[0],
        processes={"type": int, "default": os.cpu_count() or 1, "help": "(%(default)s)"},
    )
    choose, compare = FIXED.seeds["choose"][:3], FIXED.seeds["compare"]
    if bench.options.quick:
        choose, compare = choose[:1], compare[:2]
    cells = [
        Cell(engine.name, name, load)
        for engine in ENGINES
        for name in engine.workloads
        for load in (engine.loads or FIXED.loads)
    ]
    made = Panel()
    made.complete(jobs_of(cells, choose, compare), bench.options.processes)
    for cell in cells:
        judge(bench, made, cell, choose, compare)
    bench.finish()


if __name__ == "__main__":
    main()
