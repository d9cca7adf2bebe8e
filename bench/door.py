"""What refusing requests gains for an overloaded engine: in time, late and refused, by where they are refused.

The core plans for a made-up engine (64 seats, 32,000 tokens of KV, a linear law) on a clock of its own; arrivals are
Poisson, outputs lognormal, and the target for the first token is 2 s. "door" is what AdmissionMiddleware does with
fresh figures: a request whose predicted wait is longer than a share of the target is refused.
"""

from __future__ import annotations

import random
from typing import Any

from contract import start

from wait_core import DeadlineError, Scheduler

TARGET_S = 2.0
CARRIED = 28.0  # requests a second that this engine completes
REQUESTS = 3000


def run(load: float, door: float | None, requests: int, **settings: Any) -> dict[str, float]:
    """Serve to the end and return shares of those offered, and seconds."""
    core = Scheduler(kv_blocks=2000, block_size=16, max_num_seqs=64, token_budget=1024, host_preempts=True, **settings)
    draw = random.Random(1)  # noqa: S311  made-up traffic
    arrivals, at = [], 0.0
    for _ in range(requests):
        at += draw.expovariate(CARRIED * load)
        arrivals.append((at, draw.randint(50, 400), min(800, max(1, int(draw.lognormvariate(4.3, 0.7))))))
    present: dict[int, int] = {}
    first: dict[int, float] = {}
    refused: list[float] = []
    now, number, tokens = 0.0, 0, 0
    while number < requests or present:
        while number < requests and arrivals[number][0] <= now:
            arrival, prompt, output = arrivals[number]
            bound = None if door is None else int(door * TARGET_S * 1e9)
            try:
                core.add(number, prompt, 800, max_wait_ns=bound, now_ns=int(arrival * 1e9))
                present[number] = output
            except DeadlineError:
                refused.append(now - arrival)
            number += 1
        if not present:
            now = arrivals[number][0] if number < requests else now
            continue
        plan = core.plan(int(now * 1e9))
        for each, _, _ in plan.refused:
            refused.append(now - arrivals[each][0])
            del present[each]
        now += 0.012 + 5e-5 * (plan.num_decodes + sum(chunk for _, chunk in plan.prefill))
        finished = []
        for each, output in present.items():
            stage = core.stage(each)
            if stage:
                first.setdefault(each, now - arrivals[each][0])
            if stage and stage >= output:
                finished.append(each)
        tokens += sum(present.pop(each) for each in finished)
        core.complete(finished=finished)
    late = [wait for wait in first.values() if wait > TARGET_S]
    return {
        "in time": (len(first) - len(late)) / requests,
        "served late": len(late) / requests,
        "longest TTFT, s": max(first.values()),
        "refused": len(refused) / requests,
        "after, s": sum(refused) / max(1, len(refused)),
        "tok/s": tokens / now,
    }


def main() -> None:
    """Print the table."""
    bench = start("door", str(__doc__).splitlines()[0])
    requests = REQUESTS // 10 if bench.options.quick else REQUESTS
    cases: dict[str, tuple[float | None, dict[str, Any]]] = {
        "stock": (None, {"policy": "vllm"}),
        "ttft_target": (None, {"ttft_target": TARGET_S}),
        "ttft_target, late: refuse": (None, {"ttft_target": TARGET_S, "late": "refuse"}),
    }
    for share in (0.5, 0.75, 0.9):
        cases[f"ttft_target, the door at {share}"] = share, {"ttft_target": TARGET_S}
    for load in (1.3, 2.0):
        for name, (door, settings) in cases.items():
            found = run(load, door, requests, **settings)
            row: dict[str, Any] = {"load": load, "case": name}
            row |= {f"{head}, %": f"{100 * found[head]:.1f}" for head in ("in time", "served late")}
            row |= {"longest TTFT, s": f"{found['longest TTFT, s']:.1f}", "refused, %": f"{100 * found['refused']:.1f}"}
            row |= {"after, s": f"{found['after, s']:.2f}" if found["refused"] else "", "tok/s": round(found["tok/s"])}
            bench.rows.append(row)
            bench.claim(f"load {load:g}, {name}: in time", 100 * found["in time"], "%")
    bench.finish()


if __name__ == "__main__":
    main()
