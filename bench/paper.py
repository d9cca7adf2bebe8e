"""The experiments of arXiv 2504.11320: what the paper prints, and what this simulator and core give.

python bench/paper.py [NAME ...] runs the experiments named, or all. Settings are chosen on seeds of their own from one
grid for all policies, then measured on ten other seeds; N and the window are fixed in reproduce/workloads.py and
reproduce/runs.py.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from contract import start
from reproduce import authors, extensions, sweeps, theorems, variations
from reproduce.disaggregated import prefill_side
from reproduce.document import write
from reproduce.fluid import fluid
from reproduce.gpu import gpu
from reproduce.runs import COMPLETES, GROWS, TUNING_SEEDS, WATERMARK, WINDOW
from reproduce.study import Study
from reproduce.workloads import BLOCK, DECODE_ONLY, KV_BLOCKS, LINEAR, LMSYS, LONG, SINGLE, TWO_TYPE

from wait_core.report import table

if TYPE_CHECKING:
    from collections.abc import Callable

DOCS = Path(__file__).resolve().parent.parent / "docs"

EXPERIMENTS: dict[str, Callable[[Study], None]] = {
    "fluid": fluid,
    "single": sweeps.single,
    "two-type": sweeps.two_type,
    "long": sweeps.long,
    "lmsys": sweeps.lmsys,
    "decode-only": sweeps.decode_only,
    "prefill-side": prefill_side,
    "authors": authors.authors,
    "gpu": gpu,
    "horizon": variations.horizon,
    "no-waiting": variations.no_waiting,
    "ablation": variations.ablation,
    "time-varying": variations.time_varying,
    "theorem1": theorems.theorem1,
    "hidden": theorems.hidden,
    "overflow": theorems.overflow,
    "literal": extensions.literal,
    "theorem3": extensions.theorem3,
    "segments": extensions.segments,
}


def protocol(study: Study) -> str:
    """Return what was fixed in advance, in words."""
    sizes = ", ".join(f"{each.name} {study.size(each):,}" for each in (SINGLE, TWO_TYPE, LONG, LMSYS, DECODE_ONLY))
    return (
        f"{len(study.seeds)} replications (seeds {study.seeds[0]} to {study.seeds[-1]}); settings chosen on seeds "
        f"{', '.join(map(str, TUNING_SEEDS))}. Latency: mean from arrival to completion of the requests "
        f"{WINDOW[0]:.0%} to {WINDOW[1]:.0%} in the order of arrival, ± standard deviation over the replications. "
        f"Stable: in that window completions are at least {COMPLETES} of the arrivals, and the mean latency of its "
        f"second half is at most {GROWS} times that of its first. C = {KV_BLOCKS * BLOCK:,} tokens "
        f"({KV_BLOCKS:,} blocks of {BLOCK}); watermark {WATERMARK:.0%} for Sarathi and Vidur's vLLM, none for vLLM V1. "
        f"Requests in a run, N, where the row says nothing else: {sizes}. Law: {SINGLE.law} for single, two-type, long "
        f"and lmsys; {LINEAR} (s, s per KV token) for lmsys-linear, lmsys-words and decode-only."
    )


def main() -> None:
    """Run the experiments, print, and write what was asked for."""
    bench = start(
        "paper",
        str(__doc__),
        figures={"type": Path, "help": "folder in which to draw the figures"},
        docs={"action": "store_true", "help": "write docs/data/paper-results.csv and docs/figures"},
        positional={"nargs": "*", "metavar": "NAME", "help": f"all, or any of: {', '.join(EXPERIMENTS)}"},
    )
    options = bench.options
    names = [name for name in options.positional if name != "all"] or list(EXPERIMENTS)
    if unknown := [name for name in names if name not in EXPERIMENTS]:
        raise SystemExit(f"paper: no experiment {unknown[0]!r}; there are {', '.join(EXPERIMENTS)}")
    if options.docs and options.quick:
        raise SystemExit("paper: --docs wants the full size, without --quick")
    figures = DOCS / "figures" if options.docs else options.figures
    if figures:
        figures.mkdir(parents=True, exist_ok=True)
    study = Study(bench, figures)
    print(protocol(study))
    for name in names:
        begin = time.perf_counter()
        EXPERIMENTS[name](study)
        print(f"{name}: {time.perf_counter() - begin:.1f} s", flush=True)
    print()
    if study.summary:
        print(table(list(study.summary[0]), [list(row.values()) for row in study.summary]))
        print()
    if options.docs:
        write(DOCS / "data" / "paper-results.csv", study.summary)
    bench.finish()


if __name__ == "__main__":
    main()
