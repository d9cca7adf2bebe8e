"""The authors' configuration beside the text's, and their runs on a GPU, as far as they can be simulated.

The configuration is that of their notes (see `published`): Llama-3-8B with 29,952 blocks; N of 5,000 or 10,000, the mean
over the central half; Vidur's vLLM; Sarathi with chunk 512 and cap 512; "WAIT" with tl 21, 256 tokens of a prompt and 508
tokens in an iteration, `wait_gate` false: a cap on concurrency, nothing waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reproduce import published
from reproduce.llama3_law import KV_BLOCKS as LLAMA3_BLOCKS
from reproduce.llama3_law import LAW as LLAMA3
from reproduce.runs import WATERMARK, Setting, plus_minus
from reproduce.study import PAPER, TUNED
from reproduce.sweeps import as_published
from reproduce.workloads import A100, BLOCK, D0, KV_BLOCKS, SINGLE
from wait_core import _core, simulate
from wait_core.laws import iteration_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from reproduce.study import Study

CENTRAL = (0.25, 0.75)
"""The requests that the authors' figures measure."""
TL = 21
PROMPT, OUTPUT = 512, 20


@dataclass(frozen=True)
class Configured:
    """One policy as the authors ran it: settings of the core, and what the table calls it."""

    name: str
    settings: dict[str, Any]


def concurrency(tl: int, budget: int, chunk: int) -> dict[str, Any]:
    """WAIT with its threshold as a cap: n of tl over the stages, at most `chunk` tokens of a prompt in an iteration."""
    return {
        "policy": "wait", "thresholds": [tl / OUTPUT], "types": [{"prompt": PROMPT, "output": OUTPUT, "rate": 1.0}],
        "work_conserving": True, "max_num_seqs": tl, "token_budget": budget, "long_prefill_token_threshold": chunk,
    }  # fmt: skip


CONFIGURED = {
    "prefill-first": Configured(
        "vLLM of Vidur", {"policy": "prefill-first", "max_num_seqs": 128, "token_budget": 4096, "watermark": WATERMARK}
    ),
    "sarathi": Configured(
        "Sarathi, 512 tokens",
        {"policy": "sarathi", "max_num_seqs": 512, "token_budget": 512, "watermark": WATERMARK},
    ),
    "wait": Configured('"WAIT"', concurrency(TL, 508, 256)),
    "sarathi-508": Configured(
        "Sarathi, 508 tokens",
        {"policy": "sarathi", "max_num_seqs": 508, "token_budget": 508, "watermark": WATERMARK},
    ),
}


def latencies(
    rate: float, n: int, seeds: Sequence[int], law: str, kv_blocks: int, settings: dict[str, Any], **more: Any
) -> npt.NDArray[np.float64]:
    """Mean latency (s) of the central half of p512d20, by seed."""
    found = []
    for seed in seeds:
        report = simulate(
            requests=SINGLE.requests(rate, n, seed), iteration_time_law=law,
            **({"kv_blocks": kv_blocks, "block_size": BLOCK} | settings | more),
        )  # fmt: skip
        run = report.run
        if np.any(run.finished_ns == np.iinfo(np.uint64).max):
            raise RuntimeError(f"{settings['policy']} did not finish every request")
        first, last = (int(share * n) for share in CENTRAL)
        found.append(float((run.finished_ns - run.arrival_ns)[first:last].mean() * 1e-9))
    return np.array(found)


def authors(study: Study) -> None:
    """One table: paper, notes, their rerun, ours as the text has it, ours tuned, ours in their configuration."""
    sizes = (2_000,) if study.quick else (5_000, 10_000)
    for rate in (22.0, 23.0, 24.0):
        as_text = {setting.policy: setting for setting in as_published(study, SINGLE, rate)}
        for policy, configured in CONFIGURED.items():
            columns = {
                f"theirs, N = {n:,}": latencies(rate, n, study.seeds, str(LLAMA3), LLAMA3_BLOCKS, configured.settings)
                for n in sizes
            }
            if policy in as_text:
                tuned = study.tuned(policy, SINGLE, rate)
                for name, setting in ((PAPER, as_text[policy]), (TUNED, tuned)):
                    columns[name] = np.array(study.measure(setting, SINGLE, rate, name).values("latency_s"))
            cells = {name: spread(values) for name, values in columns.items()}
            printed = published.LATENCY.get(("single", int(rate)), {}).get(policy)
            notes = published.NOTES.get(int(rate), {}).get(policy)
            rerun = published.RERUN.get(int(rate), {}).get(policy)
            study.bench.rows.append(
                {"experiment": "authors", "rate (1/s)": rate, "policy": configured.name,
                 "paper": plus_minus(*printed) if printed else "", "notes": notes or "", "rerun, Llama-2": rerun or "",
                 **cells}
            )  # fmt: skip
            paper = f"paper {plus_minus(*printed)}" if printed else ""
            theirs = ", ".join(filter(None, (paper, notes and f"notes {notes:.2f}", rerun and f"rerun {rerun:.2f}")))
            ours = "; ".join(f"{name} {cell}" for name, cell in cells.items())
            study.state("authors", f"p512d20 at {rate:g}/s, {configured.name}: latency (s)", theirs, ours)
            if policy == "sarathi":
                slow = columns[f"theirs, N = {sizes[-1]:,}"]
            elif policy == "sarathi-508":
                ratio = columns[f"theirs, N = {sizes[-1]:,}"].mean() / slow.mean()
                study.bench.claim(f"authors, {rate:g}/s: Sarathi with 508 / with 512 tokens", ratio, "", "<= 0.8")
            elif policy == "wait":
                waits = columns[f"theirs, N = {sizes[-1]:,}"].mean() / slow.mean()
                study.bench.claim(f'authors, {rate:g}/s: "WAIT" / Sarathi with 512 tokens', waits, "", "<= 0.8")
    decodes = TL - 1
    law = iteration_time(str(LLAMA3))
    full = [
        1e3 * _core.iteration_seconds(law, decodes=decodes, decode_kv=decodes * 522, chunks=[(tokens - decodes, 0)])
        for tokens in (508, 512)
    ]
    quantity = f"an iteration of {decodes} decodes and prompts, of 508 and of 512 tokens, Llama-3-8B (ms)"
    study.state("authors", quantity, "", f"{full[0]:.1f} and {full[1]:.1f}")


def spread(values: npt.NDArray[np.float64]) -> str:
    """Mean and sample standard deviation over the seeds."""
    return plus_minus(float(values.mean()), float(values.std(ddof=1)))


def gpu(study: Study) -> None:
    """Figure A's fit beside the M* table's, and the single-type runs on SGLang under the same law made slower."""
    figure_a(study)
    sglang(study)
    study.state(
        "gpu", "lmsys on SGLang at 0.1 to 0.7/s, 200 requests a rate: Nested WAIT below the baseline by", "3.6%",
        "not simulated: at these rates fewer than 7 requests are resident and no policy holds any back but by its cap",
    )  # fmt: skip


def figure_a(study: Study) -> None:
    """Time of whole batches under the A100 law, fitted as figure A is: d0 is that of a batch's 21 iterations."""
    law, prompt, output = iteration_time(A100), 256, 20
    sizes = [1, 2, 4, 8, 16, 32, 64, 128]
    times = []
    for size in sizes:
        seconds = _core.iteration_seconds(law, decodes=0, decode_kv=0, chunks=[(prompt, 0)] * size)
        for step in range(1, output + 1):
            seconds += _core.iteration_seconds(law, decodes=size, decode_kv=size * (prompt + step), chunks=[])
        times.append(seconds)
    kv = np.array(sizes) * float(prompt + output)
    slope, base = np.polyfit(kv, times, 1)
    d0, d1 = published.FIGURE_A
    quantity = (
        f"time of a batch, prompt {prompt} and output {output}, up to {sizes[-1]} requests: d0 (ms), d1 (ms/token)"
    )
    study.state("gpu", quantity, f"{1e3 * d0:.0f}, {1e3 * d1:.4f}", f"{1e3 * base:.0f}, {1e3 * slope:.4f}")
    study.bench.claim("figure A: d0 of ours / printed", float(base) / d0, "", "")
    quantity = f"d0 of an iteration (ms): the {output + 1} iterations of such a batch, and the table of M*"
    study.state("gpu", quantity, f"{1e3 * d0 / (output + 1):.1f}, {1e3 * D0:.1f}", f"{1e3 * base / (output + 1):.1f}")
    most = 1 / (d1 * published.TOKEN_ITERATIONS)
    quantity = "lmsys: rate at which x = 1 if figure A's fit were an iteration's (1/s)"
    study.state("gpu", quantity, "table of M* printed to 80", f"{most:.2f}")


def sglang(study: Study) -> None:
    """p512d20 at 1 to 15/s, 500 requests: time is added to each iteration until the baseline at 1/s is theirs."""
    rates = range(1, 16)
    baseline = Setting("sarathi", 128, 256)
    settings = baseline.keywords(SINGLE, 1.0)
    iterations = OUTPUT + 1

    def run(settings: dict[str, Any], rate: float, overhead_s: float) -> float:
        return float(latencies(rate, 500, study.seeds, A100, KV_BLOCKS, settings, overhead_s=overhead_s).mean())

    overhead_s = 0.0
    for _ in range(20):
        overhead_s += (published.SGLANG_BASELINE[0] - run(settings, 1.0, overhead_s)) / iterations
    waiting = concurrency(TL, 384, 384)
    ours = {name: [run(of, rate, overhead_s) for rate in rates] for name, of in (("b", settings), ("w", waiting))}
    paper = {"b": published.SGLANG_BASELINE, "w": published.SGLANG_WAIT}
    gains = {
        name: float(np.mean(1 - np.array(of["w"]) / np.array(of["b"])))
        for name, of in (("ours", ours), ("paper", paper))
    }
    study.state("gpu", f"time added to each iteration so that the baseline at 1/s is theirs, {1e3 * paper['b'][0]:.0f} ms",
                "", f"{1e3 * overhead_s:.2f} ms")  # fmt: skip
    for rate in (5, 10, 15):
        values = [f"{of['b'][rate - 1]:.2f} and {of['w'][rate - 1]:.2f}" for of in (paper, ours)]
        study.state(
            "gpu", f"p512d20 on SGLang at {rate}/s: baseline (chunk 256) and WAIT (tl 21, chunk 384) (s)", *values
        )
    quantity = "p512d20 on SGLang: mean reduction over 1 to 15/s"
    study.state("gpu", quantity, f"{published.SGLANG_GAIN:.1%}", f"{gains['ours']:.1%}")
    study.bench.claim("SGLang, p512d20: mean reduction by WAIT, simulated", gains["ours"], "", "")
    study.bench.claim("SGLang, p512d20: mean reduction by WAIT, their table", gains["paper"], "", "")
