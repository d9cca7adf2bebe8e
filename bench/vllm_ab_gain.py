"""What there is to gain in the memory-bound cells of bench/vllm_ab.py: the simulator under the engine's own law.

A law is calibrated on the live server of the settings (stock decisions, round 1 of every cell); then the requests of
all rounds are simulated under it: the arms, ours with lengths known, and the clairvoyant, which sees all lengths and
never evicts. The rounds of a cell follow each other, so that what one teaches the next knows, as on the server; in
`ours, just started` each round is the first. Free of the machine's noise, and only as true as the law.

    VENV/bin/python bench/vllm_ab_gain.py
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from contract import markdown, start
from vllm_ab import FIXED, OURS, STOCK, WARM_UP, WATERMARKS, Bed, calibrated, gpu

from wait_core import simulate
from wait_core.requests import Requests

GAP_NS = 10_000 * 10**9
"""Time between the starts of two rounds: none lasts that long."""
HIDDEN: dict[str, Any] = {"policy": "adaptive", "lengths": "hidden"}
COLD = "ours, just started"
SIMULATED: dict[str, dict[str, Any]] = {
    STOCK: {"policy": "vllm"},
    **{arm: {"policy": "vllm", "watermark": FIXED["arms"][arm]["watermark"]} for arm in WATERMARKS},
    OURS: HIDDEN,
    COLD: HIDDEN,
    "ours, lengths known": {"policy": "adaptive", "lengths": "known"},
    "clairvoyant": {"policy": "clairvoyant"},
}


def drawn(bed: Bed, cell: dict[str, Any], number: int) -> tuple[list[int], list[int]]:
    """Return the prompt and output lengths of a round; those of the warm-up are a quarter, as served."""
    lines = [json.loads(line) for line in bed.requests(cell, number).read_text(encoding="utf-8").splitlines()]
    lines = lines[: cell["requests"] // 4] if number == WARM_UP else lines
    return [len(line["prompt"].split()) for line in lines], [line["output_tokens"] for line in lines]


def simulated(bed: Bed, cell: dict[str, Any], numbers: list[int], law: Any, arm: str) -> tuple[list[float], int]:
    """Simulate rounds one after the other; return how long each lasts, s, and all preemptions."""
    rounds = [drawn(bed, cell, number) for number in numbers]
    serve = bed.settings["serve"]
    requests = Requests(
        name="rounds",
        arrival_ns=np.concatenate([np.full(len(p), i * GAP_NS, np.uint64) for i, (p, _) in enumerate(rounds)]),
        prompt=np.array([size for prompts, _ in rounds for size in prompts], np.uint32),
        output=np.array([size for _, outputs in rounds for size in outputs], np.uint32),
        rate=float("inf"),
    )
    sizes: dict[str, Any] = {
        "kv_blocks": serve["num-gpu-blocks-override"] - 1,
        "block_size": serve["block-size"],
        "max_num_seqs": serve["max-num-seqs"],
        "token_budget": serve["max-num-batched-tokens"],
        "max_model_len": serve["max-model-len"],
    }
    # The engine runs `adaptive` without a law, so its token budget stays vLLM's.
    report = simulate(requests=requests, iteration_time_law=law, iteration_time=None, **sizes, **SIMULATED[arm])
    ends = np.cumsum([len(prompts) for prompts, _ in rounds])
    spans = [float(part.max()) for part in np.split(np.asarray(report.e2el_s), ends[:-1])]
    return spans, int(report.summary()["preemptions"])


def main() -> None:
    """Calibrate, simulate, print the ratios."""
    bench = start(
        "vllm_ab_gain",
        str(__doc__).splitlines()[0],
        settings={"choices": ["cpu", "gpu"], "default": "gpu" if gpu() else "cpu", "help": "(%(default)s)"},
        law={"help": "file with a law, instead of calibrating one"},
        markdown={"action": "store_true", "help": "print the table of docs/vllm-ab.md as well"},
    )
    options = bench.options
    with tempfile.TemporaryDirectory(prefix="wait-core-ab-") as folder:
        bed = Bed(options.settings, Path(folder))
        try:
            if options.law is None:
                fitted = calibrated(bed)
                bench.claim("steps calibrated on", fitted.iterations, "")
                bench.claim("relative error of a step, median", fitted.median_error, "")
                law: Any = fitted.law
            else:
                law = json.loads(Path(options.law).read_text(encoding="utf-8"))
        finally:
            bed.stop()
        print("law:", json.dumps(law))
        rounds = list(range(1, bed.settings["rounds"] + 1))[: 2 if options.quick else None]
        for name, cell in bed.settings["cells"].items():
            if "within" in cell["goals"]:
                continue
            spans: dict[str, list[float]] = {}
            for arm in SIMULATED:
                if arm == COLD:
                    each = [simulated(bed, cell, [number], law, arm) for number in rounds]
                    spans[arm], preemptions = [span for (span,), _ in each], sum(count for _, count in each)
                else:
                    spans[arm], preemptions = simulated(bed, cell, [WARM_UP, *rounds], law, arm)
                    del spans[arm][0]
                ratio = statistics.mean(s / m for s, m in zip(spans[STOCK], spans[arm], strict=True))
                row = {"cell": name, "policy": arm, "tok/s / stock's": f"{ratio:.3f}"}
                bench.rows.append(row | {"preemptions a round": f"{preemptions / len(rounds):.1f}"})
                if arm == "clairvoyant":
                    bench.claim(f"{name}: {arm} / {STOCK}, output tok/s", ratio, "")
    if options.markdown:
        print(markdown(list(bench.rows[0]), [list(row.values()) for row in bench.rows]) + "\n")
    bench.finish()


if __name__ == "__main__":
    main()
