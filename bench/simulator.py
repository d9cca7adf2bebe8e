"""Speed of the simulator: simulated token-steps a second on one core, two runs at once, and another one beside it.

Rates are per second of processor time (user and system), which a busy machine does not inflate; seconds are wall time.

`--against VENV` replays the same requests with the offline mocker of `ai-dynamo-runtime` installed there, by turns with
ours, without the time it takes to read the trace. Both batch continuously as vLLM does, first come first served with
chunked prefills, over 7,424 blocks of 16 tokens, max_num_seqs 256 and 2,048 tokens an iteration; prefixes are not
shared. They are not the same model: the mocker names the blocks of each request by hash, stands behind a router of many
workers, and takes its iteration times from a polynomial of its own; ours counts blocks, steps all decodes at once, and
uses the fitted A100 law. Requests that all arrive at once keep both full, so that neither law decides how large batches
are.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from contract import start

from wait_core import simulate
from wait_core.workload import Trace, sampled, write_mooncake

if TYPE_CHECKING:
    from collections.abc import Callable

    from contract import Bench

    from wait_core.workload import Requests

KV_BLOCKS = 7424
# 1.2 times what the A100 law carries (p512d1000: 2.3 requests/s; lmsys: about 77).
WORKLOADS = {"p512d1000": 2.76, "lmsys": 92.0}
CONVERSATIONS = ("multi-turn", 4.3)
"""With a prefix cache, and 1.2 times what stock vLLM carries in overload."""


@dataclass(frozen=True)
class Cost:
    """What something took: wall time and processor time of all threads, s."""

    wall_s: float
    cpu_s: float

    @classmethod
    def of(cls, call: Callable[[], object]) -> Cost:
        """Time one call."""
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        return cls(time.perf_counter() - wall, time.process_time() - cpu)


def run(policy: str, requests: Requests, *, prefix_caching: bool = False) -> dict[str, Any]:
    """Run one simulation, figures included."""
    summary = simulate(policy, requests=requests, kv_blocks=KV_BLOCKS, prefix_caching=prefix_caching).summary()
    if summary["completed"] != len(requests):
        raise RuntimeError(f"{policy} completed {summary['completed']} of {len(requests)} requests")
    return summary


def measure(policy: str, requests: Requests, rounds: int, *, prefix_caching: bool) -> tuple[dict[str, Any], Cost]:
    """Return the figures of a run, and the medians of what several runs took."""
    summary = run(policy, requests, prefix_caching=prefix_caching)
    costs = [Cost.of(lambda: run(policy, requests, prefix_caching=prefix_caching)) for _ in range(rounds)]
    walls, cpus = [cost.wall_s for cost in costs], [cost.cpu_s for cost in costs]
    return summary, Cost(statistics.median(walls), statistics.median(cpus))


def speed(bench: Bench, n: int, rounds: int) -> None:
    """Token-steps and iterations a second, by workload and policy."""
    for workload, rate in (*WORKLOADS.items(), CONVERSATIONS):
        requests = sampled(workload, request_rate=rate, num_prompts=n, seed=1)
        cached = requests.follows is not None
        # WAIT's thresholds are of requests that come by themselves.
        for policy in ("vllm", "adaptive") if cached else ("vllm", "wait", "adaptive"):
            summary, cost = measure(policy, requests, rounds, prefix_caching=cached)
            steps = (summary["decode_tokens"] + summary["prefill_tokens"]) / cost.cpu_s
            bench.rows.append(
                {
                    "workload": workload,
                    "policy": policy,
                    "requests": n,
                    "M token-steps/s": steps / 1e6,
                    "M iterations/s": summary["iterations"] / cost.cpu_s / 1e6,
                    "CPU s": cost.cpu_s,
                    "s": cost.wall_s,
                }
            )
            name = f"token-steps/s, {policy}, {workload}" + (", prefix caching" if cached else "")
            bench.claim(name, steps / 1e6, "M/s", ">= 50" if cached else ">= 100")


def ran_and_blocked(call: Callable[[], object]) -> float:
    """Seconds for which this thread ran, or neither ran nor waited for a processor: then it awaited a lock."""
    schedule = Path("/proc/thread-self/schedstat")
    began, before = time.perf_counter(), schedule.read_text(encoding="utf-8").split()
    call()
    wall_s, after = time.perf_counter() - began, schedule.read_text(encoding="utf-8").split()
    ran, ready = ((int(after[i]) - int(before[i])) * 1e-9 for i in (0, 1))
    return ran + max(wall_s - ran - ready, 0.0)


def two_at_once(bench: Bench, n: int, rounds: int) -> None:
    """Two runs in two threads of one process, by turns with the same two one after the other.

    Wall time says how many processors others left; what the code decides is how long the threads run and how long they
    wait for each other. How far the machine itself goes is measured in the same rounds, on calls that hold no lock:
    hashing in the first-level cache, and sorting fresh memory, as the simulator sorts the gaps between tokens.
    """
    if not Path("/proc/thread-self/schedstat").exists():
        return
    requests = sampled("lmsys", request_rate=WORKLOADS["lmsys"], num_prompts=n, seed=1)
    cached, many = bytes(16 * 1024), np.random.default_rng(1).integers(0, 1 << 60, 1_000_000)

    def hashing() -> None:
        for _ in range(10_000):
            hashlib.sha256(cached)

    calls: dict[str, Callable[[], object]] = {
        f"lmsys, {n:,} requests": lambda: [run("vllm", requests) for _ in range(5)],
        "the machine, hashing in cache": hashing,
        "the machine, sorting fresh memory": lambda: [np.sort(many) for _ in range(10)],
    }
    walls: dict[str, list[float]] = {name: [] for name in calls}
    speedups: dict[str, list[float]] = {name: [] for name in calls}
    with ThreadPoolExecutor(2) as pool:
        for _ in range(rounds):
            for name, call in calls.items():
                began = time.perf_counter()
                apart = [ran_and_blocked(call) for _ in range(2)]
                between = time.perf_counter()
                together = list(pool.map(ran_and_blocked, [call] * 2))
                walls[name].append((between - began) / (time.perf_counter() - between))
                speedups[name].append(sum(apart) / max(together))
    for name in calls:
        goal = ">= 1.7" if name.startswith("lmsys") else ""
        median = statistics.median(speedups[name])
        bench.claim(f"two threads, {name}: speed-up, waits for a processor left out", median, "", goal)
        bench.claim(f"two threads, {name}: speed-up in wall time, best round", max(walls[name]), "")


def mooncake(requests: Requests, path: Path) -> None:
    """Write requests as a Mooncake trace in which no two share a prefix."""
    # The format names blocks of 512 prompt tokens.
    ends = np.concatenate([[0], np.cumsum(-(-requests.prompt.astype(np.int64) // 512))])
    trace = Trace(
        prompt_tokens=requests.prompt,
        output_tokens=requests.output,
        arrival_ns=(requests.arrival_ns - requests.arrival_ns[0]).astype(np.int64),
        hash_ids=np.arange(ends[-1], dtype=np.uint64),
        hash_offsets=ends,
        hash_block_tokens=512,
    )
    write_mooncake(trace, path)


def side_by_side(bench: Bench, environment: str, n: int, rounds: int) -> None:
    """Run the same requests here and in the mocker of `environment`, by turns."""
    rows = bench.tables["mocker"] = []
    command = [f"{environment}/bin/python", str(Path(__file__).with_name("dynamo_replay.py"))]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other,
    ):
        if other.stdin is None or other.stdout is None:
            raise RuntimeError("no pipe to the other simulator")
        for workload, rate in WORKLOADS.items():
            for load, offered in ((f"{rate:g}/s", rate), ("all at once", float("inf"))):
                requests = sampled(workload, request_rate=offered, num_prompts=n, seed=1)
                path = Path(folder) / f"{workload}-{offered:g}.jsonl"
                mooncake(requests, path)
                ours, theirs = [], []
                for _ in range(rounds):
                    print(path, file=other.stdin, flush=True)
                    reply = json.loads(other.stdout.readline())
                    if reply["completed_requests"] != n:
                        raise RuntimeError(f"the other simulator: {reply} for {n} requests")
                    theirs.append(reply["cpu_s"] - reply["read_cpu_s"])
                    ours.append(Cost.of(partial(run, "vllm", requests)).cpu_s)
                tokens = int(requests.prompt.sum()) + int(requests.output.sum())
                name = f"{workload}, {n:,} requests, {load}"
                cpu_s, other_s = statistics.median(ours), statistics.median(theirs)
                bench.claim(f"wait-core: tokens of the requests/s, {name}", tokens / cpu_s / 1e6, "M/s")
                bench.claim(f"ai-dynamo-runtime: tokens of the requests/s, {name}", tokens / other_s / 1e6, "M/s")
                bench.claim(f"ratio of processor time, {name}", other_s / cpu_s, "", ">= 1")
                prefilled = reply["committed_prefill_tokens"] / run("vllm", requests)["prefill_tokens"]
                bench.claim(f"prefill tokens it computed over ours, {name}", prefilled, "")
                rows.append(
                    {
                        "workload": workload,
                        "arrivals": load,
                        "requests": n,
                        "ours, M tokens/s": tokens / cpu_s / 1e6,
                        "the mocker's": tokens / other_s / 1e6,
                        "its time / ours": other_s / cpu_s,
                        "its prefill tokens / ours": prefilled,
                    }
                )
        other.stdin.close()


def main() -> None:
    """Print the table."""
    bench = start(
        "simulator",
        "Speed of the simulator.",
        against={"metavar": "VENV", "help": "an environment with ai-dynamo-runtime, to run beside ours"},
    )
    quick = bench.options.quick
    speed(bench, 4_000 if quick else 40_000, 3 if quick else 5)
    two_at_once(bench, 40_000 if quick else 200_000, 5)
    if not quick:
        million = sampled("lmsys", request_rate=WORKLOADS["lmsys"], num_prompts=1_000_000, seed=1)
        cost = Cost.of(lambda: run("vllm", million))
        bench.claim("a million requests, vllm, lmsys", cost.wall_s, "s", "<= 30")
        bench.claim("a million requests, vllm, lmsys: processor time", cost.cpu_s, "s")
    if bench.options.against:
        side_by_side(bench, bench.options.against, 1_000 if quick else 4_000, 3 if quick else 5)
    bench.finish()


if __name__ == "__main__":
    main()
