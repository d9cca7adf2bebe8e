"""The possible gain in the memory-bound cells of bench/vllm_ab.py: the simulator under the engine's own law.

A law is calibrated on the live server of the settings (stock decisions, round 1 of every cell); then the requests of
all rounds are simulated under it: the arms, ours with lengths known, and the clairvoyant, which sees all lengths and
never preempts. The rounds of a cell follow each other, so that what was learned carries over, as on the server; in
`ours, just started` each round is the first. Free of the machine's noise, and only as true as the law. The text model
chooses its lengths itself: those of bench/vllm_ab.py's rounds are simulated; without these all rounds are served first.

    VENV/bin/python bench/vllm_ab_gain.py
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from contract import Bench, start
from vllm_ab import FIXED, OPTIONAL, OURS, SHARED, STOCK, WATERMARKS, Runs, gpu
from vllm_ab_servers import WARM_UP, Bed, Lengths, calibrated

from wait_core import simulate
from wait_core.workload import Requests

GAP_NS = 10_000 * 10**9
"""Time between the starts of two rounds: none lasts that long."""
HIDDEN: dict[str, Any] = {"policy": "adaptive", "lengths": "hidden"}
COLD = "ours, just started"
SIMULATED: dict[str, dict[str, Any]] = {
    STOCK: {"policy": "vllm"},
    **{arm: {"policy": "vllm", "watermark": FIXED["arms"][arm]["watermark"]} for arm in WATERMARKS},
    OURS: HIDDEN,
    COLD: HIDDEN,
    **{
        arm: HIDDEN | {"overflow_probability": options["additional-config"]["wait_core"]["overflow_probability"]}
        for arm, options in OPTIONAL.items()
    },
    "ours, lengths known": {"policy": "adaptive", "lengths": "known"},
    "clairvoyant": {"policy": "clairvoyant"},
}


def drawn(bed: Bed, name: str, number: int) -> tuple[list[int], list[int]]:
    """Return the prompt and output lengths of a round."""
    cell = bed.settings["cells"][name]
    lines = [json.loads(line) for line in bed.requests(cell, number).read_text(encoding="utf-8").splitlines()]
    return [len(line["prompt"].split()) for line in lines], [line["output_tokens"] for line in lines]


def simulated(bed: Bed, rounds: list[tuple[list[int], list[int]]], law: Any, arm: str) -> tuple[list[float], int]:
    """Simulate rounds one after the other; return how long each lasts, s, and all preemptions."""
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
    report = simulate(
        requests=requests, iteration_time=law, iteration_time_knowledge="hidden", **sizes, **SIMULATED[arm]
    )
    ends = np.cumsum([len(prompts) for prompts, _ in rounds])
    spans = [float(part.max()) for part in np.split(np.asarray(report.e2el_s), ends[:-1])]
    return spans, int(report.summary()["preemptions"])


def known(bench: Bench, bed: Bed, rounds: int) -> tuple[Any, Lengths]:
    """Return the engine's law, and the lengths that only serving reveals: as kept, or from the live server."""
    file = None if bench.options.keep is None else Path(bench.options.keep)
    if file is not None and file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        return kept["law"], {(name, number): tuple(lengths) for name, number, lengths in kept["served"]}
    chosen = [name for name, cell in bed.settings["cells"].items() if "prompt" not in cell]
    wanted = [(name, number) for name in chosen for number in range(1, rounds + 1)]
    made = Runs(bench.options.settings, quick=False).made
    lengths = {
        (name, number): (answer["input_lens"], answer["output_lens"])
        for name, number in wanted
        if (answer := made.get((name, STOCK, number))) is not None
    }
    fitted, served = calibrated(bed, rounds=1 if len(lengths) == len(wanted) else rounds)
    bench.claim("steps calibrated on", fitted.iterations, "")
    bench.claim("relative error of a step, median", fitted.median_error, "")
    served = {key: lengths.get(key) or served[key] for key in wanted}
    if file is not None:
        kept = {
            "law": fitted.iteration_time,
            "served": [[name, number, pair] for (name, number), pair in served.items()],
        }
        file.write_text(json.dumps(kept), encoding="utf-8")
    return fitted.iteration_time, served


def main() -> None:
    """Calibrate, simulate, print the ratios."""
    bench = start(
        "vllm_ab_gain",
        str(__doc__).splitlines()[0],
        settings={
            "choices": [name for name in FIXED["settings"] if name != SHARED],
            "default": "gpu" if gpu() else "cpu",
            "help": "(%(default)s)",
        },
        keep={"help": "file for the law and the lengths: read where it exists, instead of calibrating"},
    )
    options = bench.options
    bench.variant = options.settings
    with tempfile.TemporaryDirectory(prefix="wait-core-ab-") as folder:
        bed = Bed(FIXED["settings"][options.settings], Path(folder))
        count = 2 if options.quick else bed.settings["rounds"]
        try:
            law, served = known(bench, bed, count)
        finally:
            bed.stop()
        print("law:", json.dumps(law))
        for name, cell in bed.settings["cells"].items():
            if "within" in cell["goals"]:
                continue
            rounds = [served.get((name, number)) or drawn(bed, name, number) for number in range(1, count + 1)]
            # The warm-up of the servers is a quarter of a round of its own; where the model chooses, of the first.
            prompts, outputs = drawn(bed, name, WARM_UP) if "prompt" in cell else rounds[0]
            warm_up = prompts[: cell["requests"] // 4], outputs[: cell["requests"] // 4]
            spans: dict[str, list[float]] = {}
            for arm in SIMULATED:
                if arm == COLD:
                    each = [simulated(bed, [one], law, arm) for one in rounds]
                    spans[arm], preemptions = [span for (span,), _ in each], sum(count for _, count in each)
                else:
                    spans[arm], preemptions = simulated(bed, [warm_up, *rounds], law, arm)
                    del spans[arm][0]
                ratio = statistics.mean(s / m for s, m in zip(spans[STOCK], spans[arm], strict=True))
                row = {"cell": name, "policy": arm, "tok/s / stock's": f"{ratio:.3f}"}
                bench.rows.append(row | {"preemptions a round": f"{preemptions / len(rounds):.1f}"})
                if arm == "clairvoyant":
                    bench.claim(f"{name}: {arm} / {STOCK}, output tok/s", ratio, "")
    bench.finish()


if __name__ == "__main__":
    main()
