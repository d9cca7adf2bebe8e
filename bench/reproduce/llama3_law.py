"""The iteration-time law of Llama-3-8B on one A100-80GB, from Vidur's published profile.

python bench/reproduce/llama3_law.py PROFILE writes data/llama-3-8b-a100-80gb.json again. PROFILE is the folder
data/profiling/compute/a100/meta-llama/Meta-Llama-3-8B of github.com/microsoft/vidur (MIT; its commit 7d47513 was used),
of which mlp.csv is read. The rules, in ms a layer, for n tokens in an iteration and 32 layers:

- Everything but attention: the median of each of the nine operations at n rounded up to 8, between profiled counts
  interpolated. Counts that are profiled twice are averaged. Embedding and sampling are not in Vidur's model time.
- `attn_kv_cache_save` (attention.csv) was profiled with decode batches of up to 512 requests and with prompts in steps
  of 32 tokens, and grows with the tokens for the second only: 3.25e-4 n. Up to 128 tokens it is 0.006, up to 512 it is
  0.0045 but for counts within 7 above a multiple of 32, which meet a row of prompts, and above 512 every count meets
  the next one. So an iteration of 512 tokens takes 5.2 ms more than one of 508.
- Attention, as fitted to the medians of attention.csv: 0.352 ms and 108 ns per KV token where something decodes;
  0.288 ms, 1.92 us per prompt token and 3.2 ns per unit of sum(chunk (kv + chunk / 2)) where something prefills.
"""

from __future__ import annotations

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from numpy import interp

LAW = Path(__file__).resolve().parent / "data" / "llama-3-8b-a100-80gb.json"
KV_BLOCKS = 29_952
"""Blocks of 16 tokens that go with it in the authors' configuration."""

LAYERS = 32
OPERATIONS = (
    "attn_pre_proj", "attn_rope", "attn_post_proj", "mlp_up_proj", "mlp_act", "mlp_down_proj", "input_layernorm",
    "post_attention_layernorm", "add",
)  # fmt: skip
ATTENTION = {
    "decode_base_ns": 352_000.0,
    "per_decode_kv_ns": 108.0,
    "prefill_base_ns": 288_000.0,
    "per_prefill_token_ns": 1_920.0,
    "per_prefill_attention_ns": 3.2,
}
STEP, LAST = 4, 4096


def cache_save_ms(tokens: int) -> float:
    """`attn_kv_cache_save` of a layer, as Vidur's profile has it for a count that is a multiple of 4."""
    if tokens > 512:
        return 3.25e-4 * -(-tokens // 32) * 32
    row = tokens // 8 * 8
    if tokens > 128 and row % 32 == 0:
        return 3.25e-4 * row
    return 0.006 if tokens <= 128 else 0.0045


def law(profile: Path) -> dict[str, Any]:
    """Make the law from the profile's folder."""
    operations: dict[int, list[float]] = defaultdict(list)
    with (profile / "mlp.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["num_tensor_parallel_workers"] == "1":
                times = (float(row[f"time_stats.{name}.median"]) for name in OPERATIONS)
                operations[int(row["num_tokens"])].append(sum(times))
    counts = sorted(operations)
    medians = [mean(operations[count]) for count in counts]
    steps: list[dict[str, float]] = []
    for tokens in range(STEP, LAST + 1, STEP):
        rounded = -(-tokens // 8) * 8
        base_ns = float(round(1e6 * LAYERS * (interp(rounded, counts, medians) + cache_save_ms(tokens))))
        if steps and steps[-1]["base_ns"] == base_ns:
            steps.pop()
        steps.append({"up_to": tokens, "base_ns": base_ns, "per_token_ns": 0.0})
    return {"law": "measured", "round_to": STEP, "steps": steps, "attention": ATTENTION}


def main() -> None:
    """Write the law again."""
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} PROFILE")
    LAW.parent.mkdir(exist_ok=True)
    LAW.write_text(json.dumps(law(Path(sys.argv[1]))) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
