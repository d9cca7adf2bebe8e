"""The prefill side of disaggregated serving, one GPU of it: which rate it carries, and how many a decoding GPU needs.

What a fleet would add, routing and the transfer itself, is not simulated: the transfer is stated as bytes a second.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reproduce.runs import Setting
from reproduce.study import PAPER
from reproduce.sweeps import NAMES, stable_up_to
from reproduce.workloads import SINGLE
from wait_core.workload import dataset

if TYPE_CHECKING:
    from reproduce.study import Study

PROMPT = 630
KV_BYTES = 2 * 32 * 4096 * 2
"""Bytes of KV a token: keys and values of 32 layers of 4,096 numbers of 2 bytes (Llama-2-7B)."""
RATES = tuple(range(10, 27))


def prefill_side(study: Study) -> None:
    """Prompts of 630 tokens that leave after their first token, on the A100 law."""
    workload = replace(SINGLE, name="prefill-side", source=dataset(f"p{PROMPT}d1"), rates=RATES)
    carried = {}
    for setting in (
        Setting("prefill-first", 128, 4096),
        Setting("sarathi", 128, 512),
        Setting("vllm", 256, 2048),
        Setting("wait", 1, 4096),
    ):
        cells = {rate: study.measure(setting, workload, rate, PAPER) for rate in study.few(RATES, [20])}
        carried[setting.policy] = stable_up_to(cells)
        latency = ", ".join(f"{cells[rate].latency} at {rate}" for rate in cells if rate in {10, 16, 20, 22, 24})
        what = f"prompts of {PROMPT} computed and handed on, {NAMES[setting.policy]} ({setting}): latency (s) at 1/s"
        study.state("prefill-side", what, "", latency)
        study.state("prefill-side", f"stable up to, {NAMES[setting.policy]} ({setting}) (1/s)", "",
                    f"{carried[setting.policy]:g}")  # fmt: skip
    most = max(carried.values())
    for rate in (100, 200, 500):
        gpus, bytes_s = -(-rate // most), rate * PROMPT * KV_BYTES
        quantity = f"prefilling GPUs for one that decodes {rate}/s, and KV handed over (GB/s)"
        study.state("prefill-side", quantity, "not given", f"{gpus:.0f}, {bytes_s / 1e9:.0f}")
