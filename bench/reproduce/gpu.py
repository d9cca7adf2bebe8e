"""The authors' measurements on a GPU (their appendix): what their setting is, and what of it can be simulated."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from reproduce import published
from reproduce.authors import OUTPUT, TL, concurrency, latencies
from reproduce.runs import Setting
from reproduce.workloads import BLOCK, D0, KV_BLOCKS, LMSYS, SINGLE
from wait_core import _core
from wait_core.hardware import A100, iteration_time

if TYPE_CHECKING:
    from reproduce.study import Study


def gpu(study: Study) -> None:
    """Figure A's fit beside the M* table's, and both tables of runs on SGLang, simulated on the A100 law."""
    figure_a(study)
    single(study)
    lmsys(study)


def figure_a(study: Study) -> None:
    """Time of whole batches under the A100 law, fitted as figure A is."""
    law, prompt, output = iteration_time(A100), 256, 20
    sizes = [1, 2, 4, 8, 16, 32, 64, 128]
    kv = np.array(sizes) * float(prompt + output)

    def decoding(size: int) -> float:
        steps = range(1, output + 1)
        return sum(_core.iteration_seconds(law, decodes=size, decode_kv=size * (prompt + s), chunks=[]) for s in steps)

    def prefill(size: int) -> float:
        return _core.iteration_seconds(law, decodes=0, decode_kv=0, chunks=[(prompt, 0)] * size)

    d0, d1 = published.FIGURE_A
    of = (
        f"prompt {prompt}, output {output}, up to {sizes[-1]} requests: d0 (ms), d1 (ms per token of prompt and output)"
    )
    for what, times in (
        ("decodes alone", [decoding(size) for size in sizes]),
        ("with the prefill", [prefill(size) + decoding(size) for size in sizes]),
    ):
        slope, base = np.polyfit(kv, times, 1)
        text = f"{1e3 * base:.0f}, {1e3 * slope:.4f}"
        study.state("gpu", f"time of a batch, {what}, {of}", f"{1e3 * d0:.0f}, {1e3 * d1:.4f}", text)
        study.bench.claim(f"figure A, {what}: d0 of ours / printed", float(base) / d0, "")
    quantity = f"d0 of an iteration (ms): figure A's over the {output} decodes of a batch, and the table of M*"
    text = f"{1e3 * decoding(1) / output:.1f}, a decode of one request"
    study.state("gpu", quantity, f"{1e3 * d0 / output:.1f}, {1e3 * D0:.1f}", text)
    most = 1 / (d1 * published.TOKEN_ITERATIONS)
    quantity = "lmsys: rate at which x = 1 if figure A's fit were an iteration's (1/s)"
    study.state("gpu", quantity, "table of M* printed to 80", f"{most:.2f}")


def single(study: Study) -> None:
    """p512d20 at 1 to 15/s, 500 requests: time is added to each iteration until the baseline at 1/s takes theirs.

    SGLang's baseline computes prompts in iterations of their own; the nearest here is Sarathi with its chunk.
    """
    rates = range(1, 16)
    baseline = Setting("sarathi", 128, 256).keywords(SINGLE, 1.0)

    def run(settings: dict[str, Any], rate: float, overhead_s: float) -> float:
        return float(latencies(rate, 500, study.seeds, law=A100, settings=settings, overhead_s=overhead_s).mean())

    overhead_s = 0.0
    for _ in range(20):
        overhead_s += (published.SGLANG_BASELINE[0] - run(baseline, 1.0, overhead_s)) / (OUTPUT + 1)
    waiting = {"kv_blocks": KV_BLOCKS, "block_size": BLOCK} | concurrency(TL, 384, 384)
    ours = tuple([run(settings, rate, overhead_s) for rate in rates] for settings in (baseline, waiting))
    paper = (published.SGLANG_BASELINE, published.SGLANG_WAIT)
    quantity = f"time added to each iteration so that the baseline at 1/s takes theirs, {1e3 * paper[0][0]:.0f} ms"
    study.state("gpu", quantity, "", f"{1e3 * overhead_s:.2f} ms")
    for rate in (5, 10, 15):
        values = [f"{base[rate - 1]:.2f} and {wait[rate - 1]:.2f}" for base, wait in (paper, ours)]
        quantity = f"p512d20 on SGLang at {rate}/s: baseline (chunk 256) and WAIT (tl {TL}, chunk 384) (s)"
        study.state("gpu", quantity, *values)
    gains = [float(np.mean(1 - np.array(wait) / np.array(base))) for base, wait in (paper, ours)]
    quantity = "p512d20 on SGLang: mean reduction of the latency over 1 to 15/s"
    study.state("gpu", quantity, f"{published.SGLANG_GAIN:.1%}", f"{gains[1]:.1%}")
    study.bench.claim("SGLang, p512d20: mean reduction by WAIT, simulated", gains[1], "")
    study.bench.claim("SGLang, p512d20: mean reduction by WAIT, their table", gains[0], "")


def lmsys(study: Study) -> None:
    """Run the real-data table: 200 requests a rate, its tl and segments, Nested WAIT as a cap where load is light."""
    gains = []
    for rate, (tl, boundaries) in published.SGLANG_LMSYS.items():
        workload = replace(LMSYS, name="lmsys on SGLang", boundaries=boundaries)
        settings = (Setting("sarathi", 128, 256), Setting("nested-wait", tl, 384, waits=False))
        base, nested = (study.measure(setting, workload, rate, "GPU table", 200) for setting in settings)
        gains.append(1 - nested.mean("latency_s") / base.mean("latency_s"))
    reduction = float(np.mean(gains))
    quantity = (
        "lmsys on SGLang at 0.1 to 0.7/s: mean reduction of the latency by Nested WAIT (tl and segments of the table)"
    )
    study.state("gpu", quantity, f"{published.SGLANG_LMSYS_GAIN:.1%}", f"{reduction:.1%}")
    study.bench.claim("SGLang, lmsys: mean reduction by Nested WAIT, simulated", reduction, "")
