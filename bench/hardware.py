"""GPUs and models by name: the fit of each shipped law, and predictions beside what has been published.

Without the extra `hardware` only what ships is printed. `--make-laws` writes the shipped deployments
(python/wait_core/hardware/data) anew. bench/hardware_published.json has the published figures, each with its source.
"""

from __future__ import annotations

import json
import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from contract import ROOT, Bench, start
from pages import Row, markdown

from wait_core import WaitCoreError, hardware, simulate
from wait_core._core import iteration_seconds
from wait_core.hardware import catalogue, law, memory, package
from wait_core.workload import sampled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wait_core.hardware import Deployment

DATA = ROOT / "python" / "wait_core" / "hardware" / "data"
PUBLISHED = json.loads((Path(__file__).parent / "hardware_published.json").read_text(encoding="utf-8"))
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
"""Common requests: an 8B, a 32B, a 70B and an MoE model, on the fewest GPUs that leave room for KV."""
LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096,
    "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 11008, "vocab_size": 32000,
    "max_position_embeddings": 4096, "torch_dtype": "float16", "hidden_act": "silu", "rms_norm_eps": 1e-5,
}  # fmt: skip
"""The model of wait-core's first law, fitted to Vidur's profile; the package has no name for it."""


ERRORS = ("median", "95 %", "largest")
"""Of the queries of a region that a law was not fitted to."""
PARTS = ("weights", "activations", "runtime", "KV cache")
"""Of a GPU's memory."""
PAST = "cost a token past it"


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
            print(f"{made.name}: {made.kv_blocks:,} blocks, {len(made.iteration_time['steps'])} stairs")


def stairs(each: Deployment) -> list[dict[str, Any]]:
    """One row a stair's end: tokens, time of the part that depends on tokens alone, and the step to one token more.

    The last column is what ending there is worth: time per token one token past the end over that at the end.
    """
    steps = each.iteration_time["steps"]
    rows = []
    for step, following in pairwise(steps):
        end = step["up_to"]
        at, after = (
            (part["base_ns"] + part["per_token_ns"] * tokens) * 1e-6
            for part, tokens in ((step, end), (following, end + 1))
        )
        row = {"law": each.name, "tokens": end, "ms": f"{at:.2f}", "next token, ms": f"{after - at:.2f}"}
        rows.append(row | {PAST: f"{after / (end + 1) / (at / end):.3f}"})
    return rows


def steepest(rows: Sequence[Row]) -> str:
    """Return the table of docs/hardware.md of the stairs worth heeding: 64 tokens and more, 5 % and more a token."""
    worth = [row for row in rows if int(row["tokens"]) >= 64 and float(row[PAST]) >= 1.05]
    return markdown(
        list(rows[0]), [[f"{int(text):,}" if name == "tokens" else text for name, text in row.items()] for row in worth]
    )


def fits(bench: Bench) -> list[dict[str, Any]]:
    """One row a shipped deployment: how well its law predicts queries that it was not fitted to."""
    rows = []
    for each in hardware.shipped().values():
        bench.claim(
            f"{each.name}: largest median of a region", 100 * max(r.median_error for r in each.accuracy), "%", "<= 3"
        )
        bench.claim(
            f"{each.name}: largest 95 % of a region", 100 * max(r.p95_error for r in each.accuracy), "%", "<= 10"
        )
        row: dict[str, Any] = {"deployment": each.name, "stairs": len(each.iteration_time["steps"])}
        for region in each.accuracy:
            row |= {
                f"{region.name}: {name}, %": 100 * error
                for name, error in zip(
                    ERRORS, (region.median_error, region.p95_error, region.largest_error), strict=True
                )
            }
        rows.append(row)
    return rows


def accuracy(rows: Sequence[Row]) -> str:
    """Return the table of docs/hardware.md of the errors by region: median, 95 %, largest."""
    regions = list(dict.fromkeys(name.partition(": ")[0] for name in rows[0] if ": " in name))
    lines = []
    for row in rows:
        line = [row["deployment"], row["stairs"]]
        for region in regions:
            median, high, most = (float(row[f"{region}: {name}, %"]) for name in ERRORS)
            line.append(f"{median:.1f}% / {high:.1f}% / {most:.0f}%")
        lines.append(line)
    return markdown(["deployment", "stairs", *regions], lines)


def startup(bench: Bench) -> list[dict[str, Any]]:
    """One row a published start-up line of vLLM: what it says of its memory, and what is computed here, GiB."""
    lines = PUBLISHED["startup"]
    rows = []
    for line in lines["lines"]:
        gpu, size = lines["gpu"], line["tp"]
        model = catalogue.find_model(line["model"], gpu, "vllm")
        total = int(memory.REPORTED[gpu] * memory.GIB)
        seats, budget = memory.defaults(gpu, total)
        weights = package.weights(model, "vllm", size)
        found = memory.memory(
            model.config, total=total, weights=weights, share=line["share"], gpus=size, seats=seats, budget=budget,
            engine_version=lines["engine_version"],
        )  # fmt: skip
        parts = (found.weights, found.activations, found.runtime, found.kv_cache)
        said = (line["weights"], line["activations"], line["runtime"], line["kv_cache"])
        row: dict[str, Any] = {"model": line["served"], "TP": size}
        for name, value, part in zip(PARTS, said, parts, strict=True):
            row |= {f"{name}: vLLM": "" if value is None else f"{value:.2f}"}
            row |= {f"{name}: here": "" if value is None else f"{part / memory.GIB:.2f}"}
        row |= {"off": "", "fitted to it": "yes" if line["fitted"] else "no"}
        if line["kv_cache"] is not None:
            off = found.kv_cache / memory.GIB / line["kv_cache"] - 1.0
            goal = "" if line["fitted"] else "<= 5"
            bench.claim(f"KV cache of {line['served']}, tp {size}: off by", 100 * abs(off), "%", goal)
            row["off"] = f"{off:+.1%}"
        rows.append(row)
    return rows


def reported(rows: Sequence[Row]) -> str:
    """Return the table of docs/hardware.md of what vLLM reports of its memory, and what is computed here, GiB."""
    lines = []
    for row in rows:
        pairs = ([row[f"{name}: vLLM"], row[f"{name}: here"]] for name in PARTS)
        lines.append(
            [
                row["model"],
                row["TP"],
                *(" / ".join(filter(None, pair)) for pair in pairs),
                row["off"],
                row["fitted to it"],
            ]
        )
    return markdown(["vLLM / here, GiB", "TP", *PARTS, "off", "fitted to it"], lines)


def throughput(bench: Bench) -> list[dict[str, Any]]:
    """One row a published throughput: output tokens/s there, and simulated here with stock vLLM's policy."""
    rows = []
    for group in PUBLISHED["throughput"]:
        for row in group["rows"]:
            each = hardware.engine(
                row["gpu"], row["model"], tensor_parallel_size=row["tp"], engine=row["engine"],
                gpu_memory_utilization=row.get("share"), max_num_seqs=row.get("seats"), token_budget=row.get("budget"),
            )  # fmt: skip
            requests = sampled(
                f"p{row['input']}d{row['output']}", request_rate=float("inf"), num_prompts=row["prompts"]
            )
            found = simulate("vllm", requests=requests, **each.settings()).summary()["output_throughput"]
            off = found / row["tokens_s"] - 1.0
            name = f"{row['tp']} x {row['gpu']}, {row['model'].rpartition('/')[2]}"
            lengths = f"{row['input']:,} + {row['output']:,}"
            bench.claim(f"{name}, {lengths}, {group['ran']}: off by", 100 * abs(off), "%", "<= 25")
            said = {
                "GPUs, model": name,
                "input + output": lengths,
                "ran": group["ran"],
                "published": round(row["tokens_s"]),
            }
            rows.append(said | {"simulated": round(found), "off": f"{off:+.0%}"})
    return rows


def host() -> list[dict[str, Any]]:
    """One row a published time per token of few requests: what it leaves beside the kernels, ms."""
    rows = []
    for row in PUBLISHED["tpot"]:
        each = hardware.engine(row["gpu"], row["model"], tensor_parallel_size=row["tp"], host_s=0.0)
        kernels = 1e3 * iteration_seconds(
            each.iteration_time, decodes=row["decodes"], decode_kv=row["decodes"] * row["context"]
        )
        name = f"{row['tp']} x {row['gpu']}, {row['model'].rpartition('/')[2]}"
        said = {"GPUs, model": name, "requests": row["decodes"], "ran": row["ran"], "TPOT, ms": f"{row['ms']:.2f}"}
        rows.append(said | {"kernels": f"{kernels:.2f}", "left": f"{row['ms'] - kernels:.2f}"})
    return rows


def beside_vidur(bench: Bench) -> list[dict[str, Any]]:
    """One row a region: Llama-2-7B on an A100 by the package, over the law that was fitted to Vidur's profile."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "llama-2-7b" / "config.json"
        file.parent.mkdir()
        file.write_text(json.dumps(LLAMA_2_7B), encoding="utf-8")
        each = hardware.engine("a100_sxm", str(file), host_s=0.0)
    ratios: dict[str, list[float]] = {}
    for query in law.grid(kv_tokens=118_784, seats=256, budget=2048, longest=4096):
        ratio = iteration_seconds(each.iteration_time, **query.shape) / iteration_seconds(
            {"law": "a100"}, **query.shape
        )
        ratios.setdefault(query.region, []).append(ratio)
    few = law.Query(decodes=1, context=300), law.Query(prompts=1, tokens=2048)
    for name, query in zip(("a decode that reads 300 tokens", "a prompt of 2,048 tokens"), few, strict=True):
        for whose, found_law in (("here", each.iteration_time), ("by Vidur's profile", {"law": "a100"})):
            took = 1e3 * iteration_seconds(found_law, **query.shape)
            bench.claim(f"Llama-2-7B on an A100, {name}, {whose}", took, "ms")
    bench.claim("Llama-2-7B on an A100: KV blocks (vLLM in 2023: 7,351, pull request 2031)", each.kv_blocks, "")
    for name, found in ratios.items():
        bench.claim(f"Llama-2-7B on an A100 over Vidur's, {name}: median", float(np.median(found)), "")
    rows = []
    for name, found in ratios.items():
        ends = zip(("5 %", "median", "95 %"), np.quantile(found, (0.05, 0.5, 0.95)), strict=True)
        rows.append({"Llama-2-7B, A100": name, "queries": len(found)} | {end: f"{value:.2f}" for end, value in ends})
    return rows


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
    bench.tables["fits"] = fits(bench)
    bench.tables["stairs"] = [row for each in hardware.shipped().values() for row in stairs(each)]
    try:
        print(package.version())
    except WaitCoreError as error:
        print(f"what has been published is not compared: {error}")
    else:
        bench.tables |= {"memory": startup(bench), "throughput": throughput(bench), "host": host()}
        bench.tables["vidur"] = beside_vidur(bench)
    bench.finish()


if __name__ == "__main__":
    main()
