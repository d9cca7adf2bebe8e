"""Stock vLLM and ours side by side on one GPU, within minutes: every arm an engine of its own, alive beside the others.

The arms are those of bench/vllm_ab.json. Each runs vLLM's `LLMEngine` in a process of its own, all of them hold their
weights on the same GPU, and one serves at a time; so a round costs no start, and the rounds of the arms interleave, in
rotated order. The model has the shape of Llama-3.1-8B with the embedding shared with the output layer, so that four fit
in 80 GB; its weights are random, large enough that attention decides the next token. Memory is made scarce: 20,000
tokens of KV cache. Output lengths are hidden from the scheduler. All requests of a round arrive at once.

Parts (all, unless some are named):
`calibrate`     one engine under stock's rule logs its steps; the report fits a law to half of them
`chat-like`, `long outputs`     the arms side by side, and whether the tokens of a request served alone agree
`report`        the tables and claims, from what --folder keeps

    VENV/bin/python bench/vllm_gpu.py      VENV with vLLM for your GPU, wait-core in it, and scipy
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from contract import ROOT, start
from vllm_gpu_cells import ARMS, CELLS, FIXED, OURS, Lengths, drawn
from vllm_gpu_report import report

if TYPE_CHECKING:
    import numpy.typing as npt

SPAWN = multiprocessing.get_context("spawn")


def randomize(model: Any) -> None:
    """Overwrite dummy weights, which are so small that the next token would depend on the last one alone."""
    import torch  # noqa: PLC0415

    for i, (_, weights) in enumerate(sorted(model.named_parameters())):
        draw = torch.Generator(weights.device).manual_seed(i)
        if weights.dim() < 2:
            weights.data.fill_(1.0)
        else:
            weights.data.normal_(0.0, 2 / weights.shape[-1] ** 0.5, generator=draw)


class Engine:
    """One engine, in this process, and a stopwatch on its scheduler."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from vllm import EngineArgs  # noqa: PLC0415
        from vllm.v1.engine.llm_engine import LLMEngine  # noqa: PLC0415

        self.engine = LLMEngine.from_engine_args(EngineArgs(**settings))
        if settings["load_format"] == "dummy":
            self.engine.apply_model(randomize)
        self.core = self.engine.engine_core.engine_core
        self.vocabulary = self.core.vllm_config.model_config.get_vocab_size()
        self.spent: dict[str, list[float]] = {}
        self.preemptions = 0
        for name in ("schedule", "update_from_output"):
            self.spent[name] = []
            self._time(name)

    def _time(self, name: str) -> None:
        method, spent, clock = getattr(self.core.scheduler, name), self.spent[name], time.perf_counter

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = clock()
            output = method(*args, **kwargs)
            spent.append(clock() - began)
            self.preemptions += len(getattr(output, "preempted_req_ids", None) or ())
            return output

        setattr(self.core.scheduler, name, timed)

    def about(self) -> dict[str, Any]:
        """Return what ran: GPU, versions, and how vLLM set itself up."""
        import torch  # noqa: PLC0415
        import vllm  # noqa: PLC0415

        config = self.core.vllm_config
        layers = config.compilation_config.static_forward_context.values()
        backends = {layer.get_attn_backend().get_name() for layer in layers if hasattr(layer, "get_attn_backend")}
        return {
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
            "torch": torch.__version__,
            "vllm": vllm.__version__,
            "attention": ", ".join(sorted(backends)),
            "compilation": config.compilation_config.mode.name,
            "graphs": config.compilation_config.cudagraph_mode.name,
            "asynchronous": self.core.async_scheduling,
            "scheduler": type(self.core.scheduler).__name__,
            "usable blocks": self.core.scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1,
        }

    def serve(self, lengths: Lengths, seed: int) -> tuple[dict[str, Any], list[list[int]]]:
        """Serve requests that arrive at once; return the figures, and the tokens of each."""
        from vllm import SamplingParams  # noqa: PLC0415
        from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

        draw = np.random.default_rng(seed)
        prompts = [draw.integers(3, self.vocabulary, size).tolist() for size, _ in lengths]
        for times in self.spent.values():
            times.clear()
        self.preemptions = 0
        tokens: list[list[int]] = [[] for _ in lengths]
        first, last, gaps = np.zeros(len(lengths)), np.zeros(len(lengths)), []
        began = time.perf_counter()
        for i, (prompt, (_, output)) in enumerate(zip(prompts, lengths, strict=True)):
            kind = RequestOutputKind.DELTA
            params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True, detokenize=False)
            params.output_kind = kind
            self.engine.add_request(str(i), {"prompt_token_ids": prompt}, params)
        while self.engine.has_unfinished_requests():
            for answer in self.engine.step():
                if not (new := answer.outputs[0].token_ids):
                    continue
                i, now = int(answer.request_id), time.perf_counter() - began
                if tokens[i]:
                    gaps.append(now - last[i])
                else:
                    first[i] = now
                last[i] = now
                tokens[i].extend(new)
        took = time.perf_counter() - began
        while self.core.scheduler.has_requests():  # let the scheduler see the last finishes
            self.engine.step()
        counts = [len(each) for each in tokens]
        if counts != [output for _, output in lengths]:
            raise RuntimeError("not every request got its tokens")
        return self._figures(took, first, last, gaps, counts), tokens

    def _figures(
        self, took: float, first: npt.NDArray[Any], last: npt.NDArray[Any], gaps: list[float], counts: list[int]
    ) -> dict[str, Any]:
        schedule, update = (np.array(times) for times in self.spent.values())
        per_token = (last - first) / np.maximum(np.array(counts) - 1, 1)
        return {
            "duration": took,
            "output_throughput": sum(counts) / took,
            "mean_ttft_ms": 1e3 * float(first.mean()),
            "p99_ttft_ms": 1e3 * float(np.quantile(first, 0.99)),
            "mean_tpot_ms": 1e3 * float(per_token.mean()),
            "p99_itl_ms": 1e3 * float(np.quantile(gaps, 0.99)),
            "mean_e2el_ms": 1e3 * float(last.mean()),
            "p99_e2el_ms": 1e3 * float(np.quantile(last, 0.99)),
            "preemptions": self.preemptions,
            "steps": len(update),
            "schedule_us": 1e6 * float(np.median(schedule)),
            "update_us": 1e6 * float(np.median(update)),
            "scheduler_s": float(schedule.sum() + update.sum()),
        }


def work(pipe: Any, settings: dict[str, Any], log: str) -> None:
    """Be the process of one arm: answer each job, until there is none."""
    with Path(log).open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        engine = Engine(settings)
        pipe.send(engine.about())
        while (job := pipe.recv()) is not None:
            figures, tokens = engine.serve(*job)
            pipe.send(figures | {"digests": [hashlib.sha256(repr(each).encode()).hexdigest()[:12] for each in tokens]})
    except BaseException:  # noqa: BLE001  reported to the parent, which ends
        pipe.send(traceback.format_exc())
    finally:
        pipe.close()
        os._exit(0)  # engines in one process end in their own time


class Arm:
    """A process with an engine."""

    def __init__(self, name: str, settings: dict[str, Any], folder: Path) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        self.pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=work, args=(theirs, settings, str(self.log)), daemon=True)
        self.process.start()
        theirs.close()

    def answer(self) -> dict[str, Any]:
        """Return the answer to what was asked; the first is what the engine says of itself."""
        try:
            answer = self.pipe.recv()
        except EOFError:
            answer = "the process ended"
        if not isinstance(answer, dict):
            log = self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
            sys.exit(f"{self.name}: {log}\n{answer}")
        return answer

    def ask(self, lengths: Lengths, seed: int) -> dict[str, Any]:
        """Let it serve requests."""
        self.pipe.send((lengths, seed))
        return self.answer()

    def stop(self) -> None:
        """End it."""
        self.pipe.send(None)
        self.process.join(20)
        self.process.kill()


class Bed:
    """Where it runs: a folder with the model and what was measured."""

    def __init__(self, folder: Path, overrides: dict[str, Any], *, quick: bool) -> None:
        self.folder, self.part = folder, 4 if quick else 1
        folder.mkdir(parents=True, exist_ok=True)
        self.runs = folder / "runs.jsonl"
        (folder / "model").mkdir(exist_ok=True)
        shape = FIXED["model"] | overrides.pop("model", {})
        (folder / "model" / "config.json").write_text(json.dumps(shape), encoding="utf-8")
        self.engine: dict[str, Any] = FIXED["engine"] | overrides | {"model": str(folder / "model")}
        self.began = time.monotonic()

    def tell(self, kind: str, **figures: Any) -> None:
        """Keep figures, and show them."""
        with self.runs.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **figures}) + "\n")
        shown = {key: round(v, 3) if isinstance(v, float) else v for key, v in figures.items() if key != "digests"}
        print(f"{time.monotonic() - self.began:.0f} s: {kind}", json.dumps(shown), file=sys.stderr, flush=True)

    def started(self, arms: dict[str, dict[str, Any]]) -> dict[str, Arm]:
        """Start the engines of the arms, all at once."""
        alive = {}
        for name, flags in arms.items():
            options = {key.replace("-", "_"): value for key, value in flags.items()}
            alive[name] = Arm(name, self.engine | options, self.folder)
        for name, arm in alive.items():
            self.tell("about", arm=name, **arm.answer())
        return alive

    def calibrate(self) -> None:
        """Serve each kind of requests twice, the second time for the errors of the law that is fitted to the first."""
        log = self.folder / "steps.jsonl"
        logged = {"policy": "vllm", "step_log_file": str(log)}
        flags = {"scheduler-cls": ARMS[OURS]["scheduler-cls"], "additional-config": {"wait_core": logged}}
        arm = self.started({"calibration": flags})["calibration"]
        ends = []
        arm.ask(drawn(CELLS["chat-like"], 0, 20), 0)
        for number in (101, 102):
            ends.append(len(log.read_text(encoding="utf-8").splitlines()))
            for name, cell in (CELLS | FIXED["for the law"]).items():
                figures = arm.ask(drawn(cell, number, 2 * self.part), number)
                self.tell("calibration", cell=name, number=number, **figures)
        arm.stop()
        header, *lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        for name, part in (("fitted", lines[ends[0] - 1 : ends[1] - 1]), ("held-out", lines[ends[1] - 1 :])):
            (self.folder / f"steps-{name}.jsonl").write_text(header + "".join(part), encoding="utf-8")

    def compare(self, cell: str, arms: list[str], rounds: int, seconds: float) -> None:
        """Serve the rounds of a cell with each arm in turn, as far as `seconds` allow."""
        alive = self.started({arm: ARMS[arm] for arm in arms})
        alone = drawn(CELLS[cell], 1_000, 1)[:6]
        for i, (prompt, _) in enumerate(alone):
            for arm in alive.values():
                arm.pipe.send(([(prompt, 48)], i))
            answers = {name: arm.answer()["digests"] for name, arm in alive.items()}
            self.tell("alone", cell=cell, same={name: each == answers[arms[0]] for name, each in answers.items()})
        for arm in alive.values():
            arm.ask(drawn(CELLS[cell], 0, 6 * self.part), 0)
        longest = 0.0
        for number in range(1, rounds + 1):
            lengths = drawn(CELLS[cell], number, self.part)
            by = number % len(arms)
            if time.monotonic() - self.began + longest * len(arms) > seconds:
                self.tell("stopped", cell=cell, number=number)
                break
            for name in arms[by:] + arms[:by]:
                figures = alive[name].ask(lengths, number)
                longest = max(longest, figures["duration"])
                self.tell("run", cell=cell, arm=name, number=number, **figures)
        for arm in alive.values():
            arm.stop()


def main() -> None:
    """Run the parts that are named."""
    parts = ["calibrate", *CELLS, "report"]
    folder = ROOT / "bench" / "results" / "vllm-gpu"
    overrides = "JSON: arguments of vLLM's engine; `model`: fields of the model's config.json"
    compared = "names or files of laws to compare too; the first is simulated as the fitted one is"
    bench = start(
        "vllm_gpu",
        str(__doc__),
        positional={"nargs": "*", "metavar": "PART", "help": ", ".join(parts)},
        folder={"type": Path, "default": folder, "help": "keeps what is measured (%(default)s)"},
        rounds={"type": int, "default": FIXED["rounds"]},
        arms={"nargs": "+", "choices": list(ARMS), "default": list(ARMS), "help": "the first is compared with"},
        engine={"type": json.loads, "default": {}, "help": overrides},
        seconds={"type": float, "default": float("inf"), "help": "begin no round that would end later than this"},
        laws={"nargs": "*", "default": ["llama-3.1-8b-h100-sxm"], "help": compared},
    )
    asked = bench.options
    if unknown := set(asked.positional) - set(parts):
        sys.exit(f"{', '.join(unknown)}: no part; one of {', '.join(parts)}")
    chosen = asked.positional or parts
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in the process that times it
    bed = Bed(asked.folder, asked.engine, quick=asked.quick)
    if "calibrate" in chosen:
        bed.calibrate()
    for cell in CELLS:
        if cell in chosen:
            bed.compare(cell, asked.arms, asked.rounds, asked.seconds)
    if "report" in chosen:
        report(bench, asked.folder, asked.laws)
        bench.finish()


if __name__ == "__main__":
    main()
