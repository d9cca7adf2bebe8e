"""GPUs and models by name: the fit of each shipped law, and predictions beside what vLLM and others have published.

`--make-laws` writes the shipped deployments (python/wait_core/hardware/data) anew.
"""

from __future__ import annotations

import os
import tempfile

from contract import ROOT, start

from wait_core import hardware

DATA = ROOT / "python" / "wait_core" / "hardware" / "data"
SHIPPED = (
    ("a100_sxm", "meta-llama/Meta-Llama-3.1-8B", 1),
    ("h100_sxm", "meta-llama/Meta-Llama-3.1-8B", 1),
    ("b200_sxm", "meta-llama/Meta-Llama-3.1-8B", 1),
    ("l40s", "meta-llama/Meta-Llama-3.1-8B", 1),
    ("a100_sxm", "Qwen/Qwen3-32B", 2),
    ("h100_sxm", "Qwen/Qwen3-32B", 2),
    ("h200_sxm", "Qwen/Qwen3-32B", 1),
    ("b200_sxm", "Qwen/Qwen3-32B", 1),
    ("a100_sxm", "meta-llama/Meta-Llama-3.1-70B", 4),
    ("h100_sxm", "meta-llama/Meta-Llama-3.1-70B", 4),
    ("h200_sxm", "meta-llama/Meta-Llama-3.1-70B", 2),
    ("b200_sxm", "meta-llama/Meta-Llama-3.1-70B", 2),
    ("a100_sxm", "Qwen/Qwen3-30B-A3B", 2),
    ("h100_sxm", "openai/gpt-oss-120b", 2),
    ("h200_sxm", "openai/gpt-oss-120b", 1),
    ("b200_sxm", "openai/gpt-oss-120b", 1),
)
"""What is often asked for: an 8B, a 32B, a 70B and an MoE model, on the fewest GPUs that leave room for KV."""


def make_laws() -> None:
    """Fit every shipped deployment anew, without what is shipped or cached."""
    for old in DATA.glob("*.json"):
        old.unlink()
    hardware.shipped.cache_clear()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WAIT_CORE_CACHE"] = folder
        for gpu, model, size in SHIPPED:
            made = hardware.engine(gpu, model, tensor_parallel_size=size)
            (DATA / f"{made.name}.json").write_text(made.to_json() + "\n", encoding="utf-8")
            print(f"{made.name}: {made.kv_blocks:,} blocks, {len(made.law['steps'])} stairs")


def main() -> None:
    """Print the tables and the claims."""
    bench = start(
        "hardware",
        str(__doc__).splitlines()[0],
        make_laws={"action": "store_true", "help": "write the shipped deployments anew; needs the extra"},
    )
    if bench.options.make_laws:
        make_laws()
        return
    for each in hardware.shipped().values():
        for region in each.accuracy:
            bench.claim(f"{each.name}: {region.name}: median", 100 * region.median_error, "%", "<= 3")
            bench.claim(f"{each.name}: {region.name}: 95 %", 100 * region.p95_error, "%", "<= 10")
    bench.finish()


if __name__ == "__main__":
    main()
