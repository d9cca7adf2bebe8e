"""The `wait-core` command: `demo`, `simulate`, `compare`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wait_core import __version__
from wait_core._core import StalledError, WaitCoreError
from wait_core.laws import A100
from wait_core.requests import Requests, replayed, sampled
from wait_core.simulation import Report, simulate
from wait_core.tables import table
from wait_core.traces import TraceError

if TYPE_CHECKING:
    from collections.abc import Sequence

_COLUMNS = {
    "policy": "policy",
    "completed": "completed",
    "output_throughput": "output tok/s",
    "mean_ttft_ms": "mean TTFT ms",
    "p99_ttft_ms": "p99 TTFT ms",
    "mean_tpot_ms": "mean TPOT ms",
    "mean_e2el_ms": "mean E2E ms",
    "preemptions": "preemptions",
    "recomputed_tokens": "recomputed",
    "kv_peak": "peak KV",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status (2 for refused input, 130 when interrupted)."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (WaitCoreError, StalledError, TraceError, OSError) as error:
        print(f"wait-core: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("wait-core: interrupted, nothing was written", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wait-core", description="Scheduling for LLM inference: predict, compare, plan, without a GPU."
    )
    parser.add_argument("--version", action="version", version=f"wait-core {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="long outputs in overload on a simulated A100: where FCFS breaks")
    demo.add_argument("--output", type=Path, default=Path("wait-core-demo.png"), help="picture to write (%(default)s)")
    demo.add_argument("--num-prompts", type=int, default=4000, help="requests (%(default)s)")
    demo.set_defaults(run=_demo)

    one = commands.add_parser("simulate", help="one policy on one workload")
    one.add_argument("--policy", default="vllm", help="see docs/policies.md (%(default)s)")
    _add_workload(one)
    one.add_argument("--json", action="store_true", help="one line of JSON under the keys of `vllm bench serve`")
    one.add_argument("--save-result", type=Path, metavar="FILE", help="write that JSON to a file")
    one.set_defaults(run=_simulate)

    several = commands.add_parser("compare", help="several policies on the same requests")
    several.add_argument("--policies", nargs="+", default=["vllm", "wait"], metavar="POLICY", help="(%(default)s)")
    _add_workload(several)
    several.add_argument("--json", action="store_true", help="one JSON object a line, one line a policy")
    several.set_defaults(run=_compare)
    return parser


def _add_workload(parser: argparse.ArgumentParser) -> None:
    offered = parser.add_argument_group("requests")
    source = offered.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset-name", help="a synthetic dataset: p<prompt>d<output>, chat, lmsys, ...")
    source.add_argument("--dataset-path", help="a trace: Azure, Vidur, BurstGPT, Mooncake, ShareGPT, vllm bench custom")
    offered.add_argument("--request-rate", type=float, help="requests/s; scales a trace's times; inf: all at once")
    offered.add_argument("--num-prompts", type=int, help="number of requests (dataset: 1000; trace: all)")
    offered.add_argument("--burstiness", type=float, default=1.0, help="shape of the gamma gaps (%(default)s: Poisson)")
    offered.add_argument("--max-concurrency", type=int, help="most requests that the client keeps under way")
    offered.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    offered.add_argument("--max-tokens", type=int, help="declared for every request")
    offered.add_argument("--lengths", choices=["known", "hidden"], help="may the policy see output lengths?")
    offered.add_argument(
        "--num-types", type=int, default=8, help="most request types, by length quantiles (%(default)s)"
    )
    engine = parser.add_argument_group("engine")
    engine.add_argument("--iteration-time", default=A100, help="law: %(default)s, linear:D0,D1, or a JSON file")
    engine.add_argument("--overhead", type=float, default=0.0, metavar="S", help="seconds added to each iteration")
    engine.add_argument("--slo-ttft", type=float, metavar="MS", help="objective for the goodput, ms")
    engine.add_argument("--slo-tpot", type=float, metavar="MS", help="objective for the goodput, ms")
    engine.add_argument("--config", type=Path, metavar="FILE", help="settings of the core, JSON")
    engine.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting; VALUE is JSON")


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if arguments.config is not None:
        try:
            settings = json.loads(arguments.config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise WaitCoreError(f"--config {arguments.config}: not JSON ({error})") from None
        if not isinstance(settings, dict):
            raise WaitCoreError(f"--config {arguments.config}: not a JSON object")
    for assignment in arguments.set:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise WaitCoreError(f"--set {assignment}: expected KEY=VALUE")
        try:
            settings[key] = json.loads(text)
        except ValueError:
            # A bare word is meant as a string.
            settings[key] = text
    return settings


def _requests(arguments: argparse.Namespace) -> Requests:
    if arguments.dataset_path is not None:
        return replayed(
            arguments.dataset_path,
            request_rate=arguments.request_rate,
            num_prompts=arguments.num_prompts,
            seed=arguments.seed,
            burstiness=arguments.burstiness,
        )
    if arguments.request_rate is None:
        raise WaitCoreError("--request-rate is missing: a dataset needs a rate in requests per second")
    return sampled(
        arguments.dataset_name,
        request_rate=arguments.request_rate,
        num_prompts=1000 if arguments.num_prompts is None else arguments.num_prompts,
        seed=arguments.seed,
        burstiness=arguments.burstiness,
    )


def _run(arguments: argparse.Namespace, policy: str, requests: Requests) -> Report:
    return simulate(
        policy,
        requests=requests,
        seed=arguments.seed,
        max_concurrency=arguments.max_concurrency,
        iteration_time_law=arguments.iteration_time,
        overhead_s=arguments.overhead,
        lengths=arguments.lengths,
        max_tokens=arguments.max_tokens,
        num_types=arguments.num_types,
        progress=True,
        **_settings(arguments),
    )


def _simulate(arguments: argparse.Namespace) -> int:
    report = _run(arguments, arguments.policy, _requests(arguments))
    line = report.to_json(slo_ttft_ms=arguments.slo_ttft, slo_tpot_ms=arguments.slo_tpot)
    if arguments.save_result is not None:
        arguments.save_result.write_text(line + "\n", encoding="utf-8")
    if arguments.json:
        print(line)
        return 0
    for key, value in json.loads(line).items():
        print(f"{key:26} {value:.6g}" if isinstance(value, float) else f"{key:26} {value}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    requests = _requests(arguments)
    reports = [_run(arguments, policy, requests) for policy in arguments.policies]
    if arguments.json:
        for report in reports:
            print(report.to_json(slo_ttft_ms=arguments.slo_ttft, slo_tpot_ms=arguments.slo_tpot))
        return 0
    print(f"{requests.name}: {len(requests)} requests, {requests.rate:.4g}/s")
    print(_comparison(reports))
    return 0


def _comparison(reports: Sequence[Report]) -> str:
    rows = [report.summary() for report in reports]
    for row in rows:
        row["kv_peak"] = f"{row['peak_kv_blocks'] / row['kv_blocks']:.1%}"
    return table(list(_COLUMNS.values()), [[row[key] for key in _COLUMNS] for row in rows])


def _demo(arguments: argparse.Namespace) -> int:
    from wait_core.plots import overview  # noqa: PLC0415 - matplotlib is needed here only

    # 1 % of the memory of an A100-80GB kept back, Llama-2-7B: 8,448 blocks of 16 tokens; arrivals at 1.7 times what it
    # can serve.
    kv_blocks, rate = 8448, 4.0
    requests = sampled("p512d1000", request_rate=rate, num_prompts=arguments.num_prompts)
    print("Llama-2-7B on a simulated A100-80GB, in overload:")
    print(f"{len(requests)} requests, prompt 512, output 1,000, {rate:g}/s")
    reports = [simulate(policy, requests=requests, kv_blocks=kv_blocks, progress=True) for policy in ("vllm", "wait")]
    print(_comparison(reports))
    path = overview(
        arguments.output,
        {report.policy: report.kv_over_time for report in reports},
        {report.policy: report.e2el_s for report in reports},
        capacity_tokens=kv_blocks * 16,
        title=f"p512d1000 at {rate:g}/s on a simulated A100-80GB",
    )
    print(f"picture: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
