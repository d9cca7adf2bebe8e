"""`simulate`, its report, and what it refuses."""

from __future__ import annotations

import json
import math
import pickle
import statistics
from typing import Any

import numpy as np
import pytest

import wait_core
from wait_core import WaitCoreError, simulate
from wait_core.files import FileError
from wait_core.workload import Requests, TraceError, dataset, sampled

POLICIES = ["vllm", "wait", "adaptive"]


def tiny(**changes: object) -> dict[str, object]:
    return {"dataset_name": "p64d32", "request_rate": 100.0, "num_prompts": 200, "kv_blocks": 60} | changes


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_finishes_in_overload(policy: str) -> None:
    report = simulate(policy, **tiny())  # type: ignore[arg-type]
    summary = report.summary()
    assert summary["completed"] == 200
    assert summary["failed"] == 0
    assert summary["total_output_tokens"] == 200 * 32
    assert summary["peak_kv_blocks"] <= 60
    # Each output token but the first is one decode, or the end of a recomputation (none for a prompt cut short).
    assert summary["decode_tokens"] <= 200 * 31 <= summary["decode_tokens"] + summary["preemptions"]
    assert summary["prefill_tokens"] >= 200 * 64
    assert (report.run.first_token_ns <= report.run.finished_ns).all()
    assert (report.run.arrival_ns < report.run.first_token_ns).all()


def test_fcfs_breaks_where_wait_does_not() -> None:
    stock = simulate("vllm", **tiny()).summary()  # type: ignore[arg-type]
    ours = simulate("wait", **tiny()).summary()  # type: ignore[arg-type]
    assert stock["preemptions"] > 20
    assert ours["preemptions"] <= stock["preemptions"] / 20


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_inputs_give_the_same_report(policy: str) -> None:
    first, second = (simulate(policy, **tiny(seed=5)) for _ in range(2))  # type: ignore[arg-type]
    assert first.to_json() == second.to_json()
    assert (first.run.finished_ns == second.run.finished_ns).all()
    other = simulate(policy, **tiny(seed=6))  # type: ignore[arg-type]
    assert (other.run.arrival_ns != first.run.arrival_ns).any()


def test_one_request_takes_what_the_law_says() -> None:
    """512 tokens at once, then two decodes: three iterations of the linear law, d0 + d1 x KV."""
    law = {"law": "linear", "d0": 0.01, "d1": 1e-5}
    offered = Requests(
        name="one",
        arrival_ns=np.array([7], np.uint64),
        prompt=np.array([512], np.uint32),
        output=np.array([3], np.uint32),
        rate=1.0,
    )
    report = simulate("vllm", requests=offered, iteration_time=law, kv_blocks=100)
    expected_ns = [round(1e9 * (0.01 + 1e-5 * kv)) for kv in (512, 513, 514)]
    assert report.run.first_token_ns[0] == 7 + expected_ns[0]
    assert report.run.finished_ns[0] == 7 + sum(expected_ns)
    assert report.summary()["mean_ttft_ms"] == pytest.approx(expected_ns[0] * 1e-6)
    assert report.ttft_s == pytest.approx([expected_ns[0] * 1e-9])


def test_the_report_has_the_keys_of_vllm_bench() -> None:
    summary = json.loads(simulate("vllm", **tiny()).to_json(slo_ttft_ms=2000.0, slo_tpot_ms=100.0))  # type: ignore[arg-type]
    for key in (
        "duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput",
        "request_goodput", "output_throughput", "total_token_throughput", "policy", "workload", "seed", "preemptions",
        "recomputed_tokens", "peak_kv_blocks", "kv_blocks", "holds",
        *(f"{f}_{name}_ms" for f in ("mean", "median", "std", "p99") for name in ("ttft", "tpot", "itl", "e2el")),
    ):  # fmt: skip
        assert key in summary, key
    assert 0 <= summary["goodput"] <= 1


def test_goodput_counts_the_requests_offered() -> None:
    report = simulate("vllm", **tiny(num_prompts=50, request_rate=1.0))  # type: ignore[arg-type]
    met = np.count_nonzero(report.ttft_s <= 0.02) / 50
    assert 0 < met < 1
    assert report.summary(slo_ttft_ms=20.0)["goodput"] == pytest.approx(met)


def test_a_request_that_never_fits_is_refused_and_counted() -> None:
    offered = Requests(
        name="two",
        arrival_ns=np.array([0, 0], np.uint64),
        prompt=np.array([1000, 10], np.uint32),
        output=np.array([10, 10], np.uint32),
        rate=1.0,
    )
    summary = simulate("vllm", requests=offered, kv_blocks=10).summary()
    assert (summary["completed"], summary["failed"]) == (1, 1)


def test_output_of_one_token_has_no_time_per_output_token() -> None:
    report = simulate("vllm", dataset_name="p8d1", request_rate=1.0, num_prompts=3)
    assert math.isnan(report.summary()["mean_tpot_ms"])
    assert json.loads(report.to_json())["mean_tpot_ms"] is None


def test_max_concurrency_keeps_the_client_back() -> None:
    free = simulate("vllm", dataset_name="p64d32", request_rate=math.inf, num_prompts=64)
    held = simulate("vllm", dataset_name="p64d32", request_rate=math.inf, num_prompts=64, max_concurrency=4)
    _, _, residents, waiting = held.run.series
    assert (residents + waiting).max() <= 4
    assert (free.run.series[2]).max() > 4
    assert held.summary()["completed"] == 64
    assert (held.run.arrival_ns[4:] > 0).all()


def test_preemption_restart_loses_the_output() -> None:
    keep = simulate("vllm", **tiny()).summary()  # type: ignore[arg-type]
    lose = simulate("vllm", **tiny(preemption="restart")).summary()  # type: ignore[arg-type]
    assert lose["completed"] == 200
    assert lose["decode_tokens"] > keep["decode_tokens"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"request_rate": -1.0}, "request_rate = -1"),
        ({"request_rate": math.nan}, "request_rate = NaN"),
        ({"request_rate": None}, "request_rate = None"),
        ({"num_prompts": 0}, "num_prompts = 0"),
        ({"num_prompts": 10**12}, "num_prompts = 1000000000000"),
        ({"num_types": 0}, "num_types = 0"),
        ({"overhead_s": 1e30}, "overhead_s = 1e[+]30"),
        ({"kv_blocks": 0}, "kv_blocks = 0"),
        ({"watermark": math.nan}, "watermark = NaN"),
        ({"watermark": 1.0}, "watermark = 1"),
        ({"token_budget": 10}, "token_budget = 10"),
        ({"block_sise": 16}, 'did you mean "block_size"'),
        ({"lengths": "guessed"}, "lengths = 'guessed'"),
        ({"overhead_s": math.inf}, "overhead_s = inf"),
        ({"iteration_time": {"law": "linear", "d0": math.nan, "d1": 0.0}}, "d0 = NaN"),
        ({"iteration_time": {"law": "linear", "d0": -1.0, "d1": 0.0}}, "d0"),
        ({"iteration_time": "b200"}, "b200"),
        ({"dataset_name": "chatt"}, "chatt"),
        ({"burstiness": -2.0}, "burstiness"),
    ],
)
def test_bad_input_names_the_argument_and_the_value(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(WaitCoreError, match=f"(?i){message}"):
        simulate("vllm", **tiny(**arguments))  # type: ignore[arg-type]


def test_unknown_policy() -> None:
    with pytest.raises(WaitCoreError, match='policy = "fcfs"'):
        simulate("fcfs", **tiny())  # type: ignore[arg-type]


def test_a_kv_size_is_asked_for_with_a_law_of_ones_own() -> None:
    with pytest.raises(WaitCoreError, match="kv_blocks"):
        simulate("vllm", dataset_name="p8d8", request_rate=1.0, iteration_time="linear:0.01,0")


def test_exactly_one_source_of_requests() -> None:
    with pytest.raises(WaitCoreError, match="exactly one"):
        simulate("vllm", request_rate=1.0)


def test_a_callback_that_raises_ends_the_run() -> None:
    class StopError(Exception):
        pass

    def stop(_completed: int) -> None:
        raise StopError

    offered = sampled("p64d32", request_rate=20.0, num_prompts=10)
    with pytest.raises(StopError):
        wait_core._core.run(
            {"kv_blocks": 60},
            {"law": "a100"},
            offered.arrival_ns,
            offered.prompt,
            offered.output,
            np.zeros(10, np.uint16),
            lengths_known=False,
            typed=False,
            max_tokens=None,
            max_concurrency=None,
            overhead_ns=0,
            callback=stop,
        )


def test_columns_that_do_not_match_are_refused() -> None:
    offered = sampled("p64d32", request_rate=20.0, num_prompts=10)
    short = Requests(
        name="x", arrival_ns=offered.arrival_ns, prompt=offered.prompt, output=offered.output[:5], rate=1.0
    )
    with pytest.raises(WaitCoreError, match="5 lengths for 10 prompts"):
        simulate("vllm", requests=short)


def test_faithful_wait_waits_for_company_and_drains() -> None:
    """Threshold 4 and 10 arrivals: two services start requests by threshold, the rest goes when no more can come."""
    report = simulate(
        "wait",
        dataset_name="p16d8",
        request_rate=5.0,
        num_prompts=10,
        work_conserving=False,
        thresholds=[4.0],
        types=[{"prompt": 16, "output": 8, "rate": 5.0}],
    )
    assert report.summary()["completed"] == 10
    # The first four enter together, when the fourth has arrived.
    assert len(set(report.run.first_token_ns[:4])) == 1
    assert report.run.first_token_ns[0] > report.run.arrival_ns[3]


def test_every_error_is_a_wait_core_error() -> None:
    for name in ("CapacityError", "DeadlineError", "DuplicateIdError", "QueueFullError", "StalledError"):
        assert issubclass(getattr(wait_core, name), WaitCoreError), name
    assert issubclass(FileError, WaitCoreError)
    assert issubclass(TraceError, FileError)
    for bad in ({"seed": -1}, {"seed": 2**64}, {"max_tokens": -5}, {"max_concurrency": -1}):
        with pytest.raises(WaitCoreError) as caught:
            simulate(**tiny(**bad))  # type: ignore[arg-type]
        assert "out of range" in str(caught.value), bad


def test_reports_and_errors_can_be_pickled() -> None:
    report = simulate("adaptive", **tiny(num_prompts=100))  # type: ignore[arg-type]
    again = pickle.loads(pickle.dumps(report))  # noqa: S301
    assert again.to_json(slo_ttft_ms=1e3) == report.to_json(slo_ttft_ms=1e3)
    for column in ("arrival_ns", "admitted_ns", "first_token_ns", "finished_ns", "predicted_wait_ns", "preemptions"):
        assert (getattr(again.run, column) == getattr(report.run, column)).all()
    assert all((a == b).all() for a, b in zip(again.run.series, report.run.series, strict=True))
    with pytest.raises(WaitCoreError, match="state: not one of a Run"):
        type(report.run)(b'{"arrival_ns": [1]}')
    error = TraceError("a.csv", "is missing", line=3, column="prompt", value="x")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), str(again), again.line, again.column, again.value) == (
        TraceError,
        str(error),
        3,
        "prompt",
        "x",
    )


def test_lengths_do_not_depend_on_the_rate() -> None:
    slow, fast = (sampled("chat", request_rate=rate, num_prompts=100, seed=3) for rate in (1.0, 10.0))
    assert (slow.prompt == fast.prompt).all()
    assert slow.arrival_ns[-1] == pytest.approx(10 * fast.arrival_ns[-1], rel=1e-6)


@pytest.mark.parametrize("name", ["chat", "lmsys", "lognormal-870", "reasoning-2700", "two-type"])
def test_samples_have_the_means_of_their_definition(name: str) -> None:
    definition = dataset(name)
    prompt, output = definition.mean_lengths()
    drawn = sampled(name, request_rate=1.0, num_prompts=40_000, seed=1)
    assert drawn.prompt.mean() == pytest.approx(prompt, rel=0.03)
    assert drawn.output.mean() == pytest.approx(output, rel=0.03)
    assert np.diff(drawn.arrival_ns.astype(float)).mean() == pytest.approx(1e9, rel=0.02)


def test_bursts_keep_the_mean_rate() -> None:
    drawn = sampled("bursts", request_rate=2.0, num_prompts=40_000, seed=1)
    assert len(drawn) / (drawn.arrival_ns[-1] * 1e-9) == pytest.approx(2.0, rel=0.05)
    gaps = np.diff(drawn.arrival_ns.astype(float))
    assert gaps.std() / gaps.mean() > 1.1


def test_where_memory_is_short_adaptive_does_not_delay_the_decodes_that_free_it() -> None:
    """At capacity, large chunks bring first tokens earlier now and later by and by, as requests stay longer."""
    ratios = []
    for seed in (1, 2, 3):
        requests = sampled("lognormal-870", request_rate=2.006, num_prompts=2500, seed=seed)
        static = min(mean_e2el("vllm", requests, token_budget=budget) for budget in (256, 384))
        ratios.append(mean_e2el("adaptive", requests, lengths="hidden") / static)
    assert statistics.mean(ratios) < 0.92


def mean_e2el(policy: str, requests: Requests, **settings: Any) -> float:
    return float(simulate(policy, requests=requests, **settings).summary()["mean_e2el_ms"])
