"""`wait-core demo`: long outputs in overload on a simulated A100, where FCFS breaks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wait_core.cli import arguments as kinds
from wait_core.cli.picture import picture
from wait_core.cli.results import comparison
from wait_core.extras import install
from wait_core.report import bars, overview
from wait_core.report.plot_style import drawable
from wait_core.simulation import simulate
from wait_core.workload import sampled

if TYPE_CHECKING:
    import argparse

PICTURE = "wait-core-demo.png"
POLICIES = ("vllm", "wait", "adaptive")
"""Stock, the paper's, and the default."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=f"picture to write, PNG ({PICTURE}, where matplotlib is installed)"
    )
    parser.add_argument("--num-prompts", type=kinds.requests, default=4000, help="requests (%(default)s)")
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    output = arguments.output
    if output is None and drawable():
        output = Path(PICTURE)
    # 1 % of the memory of an A100-80GB held back, Llama-2-7B: 8,448 blocks of 16 tokens; arrivals at 1.7 times what it
    # can serve.
    kv_blocks, rate = 8448, 4.0
    requests = sampled("p512d1000", request_rate=rate, num_prompts=arguments.num_prompts)
    with picture(output) as drawn:
        print("Llama-2-7B on a simulated A100-80GB, in overload:")
        print(f"{len(requests):,} requests, prompt 512, output 1,000, {rate:g}/s")
        reports = [simulate(policy, requests=requests, kv_blocks=kv_blocks, progress=True) for policy in POLICIES]
        print(comparison(reports))
        kv = {report.policy: report.kv_over_time for report in reports}
        seconds = max(times[-1] for times, _ in kv.values())
        print(f"KV cache in use, of {kv_blocks * 16:,} tokens, over {seconds:,.0f} s:")
        print(bars(kv, kv_blocks * 16))
        if drawn is not None:
            overview(
                drawn,
                kv,
                {report.policy: report.e2el_s for report in reports},
                capacity_tokens=kv_blocks * 16,
                title=f"p512d1000 at {rate:g}/s on a simulated A100-80GB",
            )
    print(f"for a picture as well: {install('plot')}" if output is None else f"picture: {output}")
    return 0
