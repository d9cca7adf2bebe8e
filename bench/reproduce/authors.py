"""The authors' configuration beside the text's.

It is that of their notes (see `published`): Llama-3-8B with 29,952 blocks; N of 5,000 or 10,000, the mean over the
central half; Vidur's vLLM; Sarathi with chunk 512 and cap 512; "WAIT" with tl 21, 256 tokens of a prompt and 508 tokens
in an iteration, `wait_gate` false: a cap on concurrency, nothing waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reproduce import published
from reproduce.llama3_law import KV_BLOCKS
from reproduce.llama3_law import LAW as LLAMA3
from reproduce.runs import WATERMARK, plus_minus
from reproduce.study import PAPER, TUNED
from reproduce.sweeps import as_published
from reproduce.workloads import BLOCK, SINGLE
from wait_core import _core, simulate
from wait_core.hardware import iteration_time

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
    rate: float, n: int, seeds: Sequence[int], *, law: str, settings: dict[str, Any], overhead_s: float = 0.0
) -> npt.NDArray[np.float64]:
    """Mean latency (s) of the central half of p512d20, by seed."""
    found = []
    for seed in seeds:
        requests = SINGLE.requests(rate, n, seed)
        report = simulate(requests=requests, iteration_time=law, overhead_s=overhead_s, **settings)
        run = report.run
        if np.any(run.finished_ns == np.iinfo(np.uint64).max):
            raise RuntimeError(f"{settings['policy']} did not finish every request")
        first, last = (int(share * n) for share in CENTRAL)
        found.append(float((run.finished_ns - run.arrival_ns)[first:last].mean() * 1e-9))
    return np.array(found)


def authors(study: Study) -> None:
    """One table: paper, notes, their rerun, ours as the text has it, ours tuned, ours in their configuration."""
    sizes = (2_000,) if study.quick else (5_000, 10_000)
    memory = {"kv_blocks": KV_BLOCKS, "block_size": BLOCK}
    for rate in (22.0, 23.0, 24.0):
        as_text = {setting.policy: setting for setting in as_published(study, SINGLE, rate)}
        for policy, configured in CONFIGURED.items():
            columns = {
                f"theirs, N = {n:,}": latencies(
                    rate, n, study.seeds, law=str(LLAMA3), settings=memory | configured.settings
                )
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
            theirs = [f"paper {plus_minus(*printed)}"] if printed else []
            theirs += [f"{name} {value:.2f}" for name, value in (("notes", notes), ("rerun", rerun)) if value]
            ours = "; ".join(f"{name} {cell}" for name, cell in cells.items())
            study.state("authors", f"p512d20 at {rate:g}/s, {configured.name}: latency (s)", ", ".join(theirs), ours)
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
