"""`plan` and the planning formulas seen from Python."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import wait_core
from wait_core._core import Planner
from wait_core.cli import main
from wait_core.simulation.trial import Engine, figures, saturated
from wait_core.workload import sampled

if TYPE_CHECKING:
    from pathlib import Path

    from wait_core.planning import NestedThresholds

LINEAR = {"law": "linear", "d0": 0.01, "d1": 2e-7}


def test_the_fluid_equilibrium_by_hand() -> None:
    # A = 21 * 522 = 10,962; x = 2e-7 * 10 * 10,962.
    planner = Planner([(512, 20, 10.0)], LINEAR, capacity=12_000, convention="paper")
    assert planner.mean_token_iterations == 10_962
    assert planner.load == pytest.approx(0.021924)
    fluid = planner.equilibrium()
    assert fluid is not None
    assert fluid["iteration_time"] == pytest.approx(0.01 / (1 - 0.021924))
    assert fluid["memory"] == pytest.approx(fluid["iteration_time"] * 109_620)
    assert fluid["fits"]
    largest = planner.largest_stable_rate()
    assert largest["requests"] == pytest.approx(12_000 / ((0.01 + 2e-7 * 12_000) * 10_962))
    assert largest["binding"] == "memory"
    assert planner.capacity_bound()["requests"] >= largest["requests"]


def test_unstable_is_an_answer() -> None:
    planner = Planner([(512, 1000, 40.0)], LINEAR, capacity=118_784)
    assert planner.load > 1
    assert planner.equilibrium() is None
    nested = planner.nested()
    assert (nested["per_segment"], nested["feasible"]) == (None, False)
    assert "unstable" in nested["unstable"]
    assert any(violation["condition"] == "x < 1" for violation in planner.thresholds()["violations"])


def test_thresholds_and_what_fails_of_them() -> None:
    planner = Planner([(512, 20, 10.0), (512, 50, 4.0)], LINEAR, capacity=2_000)
    tight = planner.thresholds(spacing=0.02)
    assert not tight["feasible"]
    failed = {violation["condition"]: violation for violation in tight["violations"]}
    assert failed["M^π ≤ C"]["excess"] == pytest.approx(tight["memory"] - 2_000)
    assert "holds with C = " in failed["M^π ≤ C"]["remedy"]
    roomy = Planner([(512, 20, 10.0), (512, 50, 4.0)], LINEAR, capacity=math.ceil(tight["memory"]))
    assert roomy.thresholds(spacing=0.02)["feasible"]
    assert roomy.thresholds([0.2, 0.08])["memory"] == pytest.approx(tight["memory"])
    best = Planner([(512, 20, 10.0)], LINEAR, capacity=200_000).thresholds()
    assert best["feasible"]
    assert best["slack"] > 0
    assert best["rounded"] == [math.ceil(best["per_type"][0])]


def test_thresholds_as_caps_stay_within_a_tile() -> None:
    caps = Planner([(512, 1000, 4.0)], {"law": "a100"}, capacity=135_168, max_running=256).thresholds(block_size=16)
    assert caps["per_type"][0] == pytest.approx(0.128)
    assert caps["per_type"][0] <= 0.128


def test_gates_planned_on_the_staircase_have_the_least_latency() -> None:
    requests = sampled("p512d20", request_rate=20.0, num_prompts=10_000, seed=3)
    report = wait_core.plan(requests=requests)
    (planned,), (delay,) = report.wait.per_type, report.wait.delays

    def simulated(n: float) -> float:
        run = wait_core.simulate("wait", requests=requests, work_conserving=False, thresholds=[n])
        return float(run.e2el_s.mean())

    least = simulated(planned)
    assert delay.e2el_s == pytest.approx(least, rel=0.1)
    assert all(simulated(factor * planned) > 1.02 * least for factor in (0.6, 1.5, 2.5))
    # The average of its iterations would keep up at 0.48; they themselves do not.
    assert simulated(0.48) > 5 * least


def test_what_is_called_protected_holds_for_unequal_prompts() -> None:
    def planned(prompts: dict[int, float], capacity: int) -> NestedThresholds:
        outputs = {3: 60.0, 8: 40.0}
        types = [(p, output, share * rate) for output, rate in outputs.items() for p, share in prompts.items()]
        report = wait_core.plan(
            types=types, iteration_time="linear:0.01,1e-5", kv_blocks=capacity, block_size=1, horizon_s=20.0,
            runs=1, num_prompts=200, policy="vllm", max_num_seqs=4096, token_budget=4096,
        )  # fmt: skip
        return report.nested_wait

    assert planned({8: 1.0}, 400).protected
    tight = planned({2: 0.9, 62: 0.1}, 400)
    assert (tight.feasible, tight.protected) == (True, False)
    assert [violation.condition for violation in tight.unprotected] == ["M^π + buffer ≤ C"]
    assert planned({2: 0.9, 62: 0.1}, 4000).protected


def test_a_chunked_prompt_is_not_called_protected() -> None:
    # 2,100 tokens do not fit one iteration: the request falls out of step with those that entered with it.
    report = wait_core.plan(types=[(2_100, 20, 1.0), (2_100, 50, 0.5)], runs=1, num_prompts=200, policy="vllm")
    conditions = [violation.condition for violation in report.nested_wait.unprotected]
    assert report.nested_wait.feasible
    assert not report.nested_wait.protected
    assert "tokens per iteration ≤ token_budget" in conditions


def test_segments_and_buffer() -> None:
    planner = Planner([(512, 20, 14.0), (512, 50, 6.0)], LINEAR, capacity=60_000)
    assert [segment["survival"] for segment in planner.segments()] == [1.0, pytest.approx(0.3)]
    assert len(planner.segments(count=1)) == 1
    nested = planner.nested(failure_probability=0.01, horizon=600)
    assert nested["feasible"]
    first, second = nested["per_segment"]
    assert second / first == pytest.approx(0.35)
    buffer = planner.safety_buffer(nested["per_segment"])
    assert nested["buffer"] == pytest.approx(buffer.tokens(0.01, 600))
    assert buffer.theta[0] >= 8 * (second - first * 0.3) / first
    assert buffer.failure_probability(buffer.tokens(0.01, 600), 600) == pytest.approx(0.01)
    assert buffer.horizon(buffer.tokens(0.01, 600), 0.01) == pytest.approx(600)
    caps = planner.stage_caps(64, margin=0.05)
    assert sum(caps["per_stage"]) == sum(caps["per_segment"]) == 64


def test_rates_that_change_over_time_take_the_worst_window() -> None:
    calm, busy = [(512, 20, 9.0), (512, 50, 1.0)], [(512, 20, 5.0), (512, 50, 5.0)]
    both = Planner(calm, LINEAR, capacity=60_000, windows=[busy])
    assert [segment["rate"] for segment in both.segments()] == pytest.approx([10.0, 5.0])
    nested = both.nested(failure_probability=0.01, horizon=600)
    assert nested["feasible"]
    first, second = nested["per_segment"]
    assert second / first == pytest.approx(0.55), "p of the busy window, and the margin"
    needed = [
        planner.safety_buffer(nested["per_segment"]).tokens(0.01, 600)
        for planner in (both, Planner(busy, LINEAR, capacity=60_000), Planner(calm, LINEAR, capacity=60_000))
    ]
    assert needed[0] == pytest.approx(needed[1])
    assert needed[0] > needed[2]
    with pytest.raises(wait_core.WaitCoreError, match="windows share boundaries"):
        both.segments(count=2)


@pytest.mark.parametrize(
    ("name", "rate", "within"), [("p512d1000", 1.4, 0.03), ("two-type", 14.5, 0.06), ("lmsys", 24.0, 0.06)]
)
def test_what_is_expected_is_what_other_seeds_give(name: str, rate: float, within: float) -> None:
    expected = wait_core.plan(dataset_name=name, request_rate=rate, policy="clairvoyant").expected
    other = sampled(name, request_rate=rate, num_prompts=12_000, seed=77)
    found = figures(wait_core.simulate("clairvoyant", requests=other))
    for figure in ("ttft_s", "tpot_s", "e2el_s", "output_throughput"):
        assert getattr(expected.mean, figure) == pytest.approx(getattr(found, figure), rel=within), figure
    assert expected.least.e2el_s <= expected.mean.e2el_s <= expected.most.e2el_s
    assert expected.mean.peak_kv == pytest.approx(found.peak_kv, rel=0.15)


def test_the_saturated_rate_is_that_of_a_long_overload() -> None:
    report = wait_core.plan(
        dataset_name="p512d1000", request_rate=4.0, num_prompts=2_000, kv_blocks=8448, policy="clairvoyant"
    )
    assert not report.stable
    assert report.reasons[0].startswith("rate < saturated rate fails: 4/s against 2.")
    requests = sampled("p512d1000", request_rate=4.0, num_prompts=6_000, seed=77)
    run = figures(wait_core.simulate("clairvoyant", requests=requests, kv_blocks=8448))
    assert run.output_throughput == pytest.approx(report.engine_limit.output_throughput, rel=0.02)
    caps = report.wait.caps
    run = figures(wait_core.simulate("wait", requests=requests, kv_blocks=8448, thresholds=caps.per_type))
    assert run.preemptions == 0
    assert run.output_throughput == pytest.approx(caps.saturated.output_throughput, rel=0.02)
    # Cohorts of equal lengths: FCFS that must never preempt holds memory back, admission one by one does not.
    assert report.engine_limit.request_rate < 0.97 * caps.saturated.request_rate
    assert caps.saturated.request_rate < report.bound.request_rate


def test_overload_is_played_too() -> None:
    short, longer = (wait_core.plan(types=[(512, 1000, 4.0)], num_prompts=n, runs=2) for n in (500, 2_000))
    assert longer.expected.mean.ttft_s > 3 * short.expected.mean.ttft_s
    assert any("latency has not settled" in warning for warning in longer.warnings)


def test_a_plan_is_for_the_policy_that_runs() -> None:
    plans = {
        policy: wait_core.plan(dataset_name="reasoning-2700", request_rate=0.4, num_prompts=600, runs=2, policy=policy)
        for policy in ("clairvoyant", "vllm")
    }
    assert plans["clairvoyant"].expected.most.preemptions == 0
    assert plans["vllm"].expected.least.preemptions > 0.1
    assert plans["vllm"].engine_limit.request_rate < plans["clairvoyant"].engine_limit.request_rate


def test_requests_are_played_as_they_arrive() -> None:
    even = sampled("p512d1000", request_rate=1.4, num_prompts=1_000, seed=5)
    # The same number in the same time, half of them in its first twentieth.
    times = np.sort(np.where(np.arange(1_000) % 2 == 0, even.arrival_ns // 20, even.arrival_ns))
    uneven = replace(even, arrival_ns=times)
    calm, burst = (wait_core.plan(requests=requests) for requests in (even, uneven))
    assert burst.expected.mean.ttft_s > 10 * calm.expected.mean.ttft_s
    assert burst.expected.runs == 1
    assert burst.expected.least == burst.expected.most
    scaled = wait_core.plan(requests=uneven, request_rate=0.05)
    assert scaled.request_rate == pytest.approx(0.05)
    assert scaled.expected.mean.ttft_s < 0.1 * burst.expected.mean.ttft_s


def test_gpus_for_a_target() -> None:
    report = wait_core.plan(types=[(512, 20, 7.0), (512, 50, 3.0)], target_rate=100.0, utilisation=0.7)
    gpus = report.gpus
    assert gpus is not None
    limit = report.engine_limit.request_rate
    assert 100.0 / gpus.number <= 0.7 * limit < 100.0 / (gpus.number - 1)
    assert gpus.expected.mean.e2el_s > report.expected.mean.e2el_s
    # The mix counts, not its rate.
    again = wait_core.plan(types=[(512, 20, 0.7), (512, 50, 0.3)], target_rate=100.0, utilisation=0.7).gpus
    assert again is not None
    assert again.number == gpus.number
    assert again.expected.mean.e2el_s == pytest.approx(gpus.expected.mean.e2el_s)


def test_bursts_are_warned_of() -> None:
    calm = wait_core.plan(dataset_name="chat", request_rate=3.0, num_prompts=2000)
    bursts = wait_core.plan(dataset_name="bursts", request_rate=3.0, num_prompts=2000)
    assert calm.warnings == ()
    assert any("as variable as a Poisson stream" in warning for warning in bursts.warnings)


def test_the_stability_region_ends_where_the_plan_says() -> None:
    """Also where the picture's own play of the mix would say otherwise: a heavy tail, of which types are a summary."""
    plans = [
        wait_core.plan(types=[(512, 1000, 1.0)], kv_blocks=7424, region=5, policy="clairvoyant"),
        wait_core.plan(dataset_name="lognormal-870", request_rate=2.2, num_prompts=1000, runs=2, region=3),
    ]
    for report in plans:
        assert report.region is not None
        own = report.region.capacity.index(report.engine.capacity)
        for column, limit in (("fluid", report.fluid_limit), ("engine", report.engine_limit), ("bound", report.bound)):
            assert getattr(report.region, column)[own] == limit.request_rate
        assert report.stable == (report.request_rate < report.region.engine[own])
        assert list(report.region.capacity) == sorted(report.region.capacity)
    region = plans[0].region
    assert region is not None
    assert len({len(column) for column in asdict(region).values()}) == 1
    for column in ("fluid", "engine", "bound"):
        assert min(getattr(region, column)) > 0
    assert all(fluid <= bound * (1 + 1e-9) for fluid, bound in zip(region.fluid, region.bound, strict=True))
    assert list(region.bound) == sorted(region.bound)


def test_the_curve_of_the_engine_passes_through_the_plan() -> None:
    """What is played at other capacities is typical of the runs, of which a heavy tail makes some much lighter."""
    report = wait_core.plan(
        dataset_name="lognormal-870", request_rate=2.2, num_prompts=1000, runs=8, region=24, policy="vllm"
    )
    region = report.region
    assert region is not None
    own = region.capacity.index(report.engine.capacity)
    (below, at, above), rates = region.capacity[own - 1 : own + 2], region.engine[own - 1 : own + 2]
    between = rates[0] + (rates[2] - rates[0]) * (at - below) / (above - below)
    assert rates[1] == pytest.approx(between, rel=0.03)


def test_plan_on_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["plan", "--type", "512:20:7", "--type", "512:50:3", "--target-rate", "60"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for words in ("STABLE", "largest rate", "expected", "thresholds", "safety buffer", "GPUs"):
        assert words in out
    picture = tmp_path / "region.png"
    assert main([*arguments, "--json", "--picture", str(picture)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["stable"]
    assert report["gpus"]["number"] == 4
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["plan", "--dataset-name", "p512d1000", "--request-rate", "4"]) == 0
    out = capsys.readouterr().out
    assert "NOT STABLE" in out
    assert "x < 1 fails" in out
    assert "the queue grows by" in out
    assert main(["plan", *arguments[1:], "--policy", "vllm", "--runs", "2", "--num-prompts", "500"]) == 0
    out = capsys.readouterr().out
    assert "saturated engine, vllm" in out
    assert "500 requests x 2" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset-name", "chat"], "--request-rate"),
        (["--type", "512:20:7", "--utilisation", "2"], "--utilisation: '2'"),
        (["--type", "512:20:7", "--kv-blocks", "0"], "--kv-blocks: '0'"),
        (["--type", "512:20:7", "--iteration-time", "linear:0.01,1e-7"], "kv_blocks is missing"),
        (["--type", "512:20:0"], "Σ rate = 0"),
        (["--type", "0:20:1"], "--type: '0:20:1'"),
        (["--type", "512:20:nan"], "--type: '512:20:nan'"),
        (["--type", "512:20:7", "--failure-probability", "0"], "--failure-probability: '0'"),
        (["--type", "512:20:7", "--target-rate", "-1"], "--target-rate: '-1'"),
        (["--type", "512:20:7", "--num-types", "0"], "--num-types: '0'"),
        (["--type", "512:20:7", "--runs", "0"], "--runs: '0'"),
        (["--type", "512:20:7", "--num-prompts", "0"], "--num-prompts: '0'"),
        (["--type", "512:20:7", "--policy", "other"], "--policy: invalid choice: 'other'"),
        (["--type", "512:20:7", "--kv-blocks", "10"], "kv_blocks = 10: 160 KV tokens"),
        (["--type", "512:20:7", "--kv-blocks", "33"], "kv_blocks = 33: too few"),
    ],
)
def test_refusals_name_what_is_wrong(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"), [("max_num_seqs", 0), ("token_budget", -1), ("runs", 10**12), ("num_types", 0), ("kv_blocks", 3)]
)
def test_a_call_is_refused_in_its_own_words(name: str, value: int) -> None:
    arguments: dict[str, Any] = {"types": [(64, 32, 1.0)], "num_prompts": 50, "runs": 1, name: value}
    with pytest.raises(wait_core.WaitCoreError, match=f"^{name} = {value}: "):
        wait_core.plan(**arguments)


def test_arguments_exclude_each_other() -> None:
    with pytest.raises(wait_core.WaitCoreError, match="types are given"):
        wait_core.plan(types=[(1, 1, 1.0)], dataset_name="chat")
    planner = Planner([(512, 20, 10.0)], LINEAR, capacity=12_000)
    with pytest.raises(wait_core.WaitCoreError, match="give one of"):
        planner.thresholds([1.0], spacing=0.1)
    with pytest.raises(wait_core.WaitCoreError, match="boundaries are given"):
        planner.segments([20], count=2)
    with pytest.raises(wait_core.WaitCoreError, match="convention"):
        Planner([(512, 20, 10.0)], LINEAR, capacity=12_000, convention="other")


def test_figures_by_hand() -> None:
    # One token an iteration of 10 ms, two requests that never meet: 3 and 2 iterations.
    requests = replace(
        sampled("p4d3", request_rate=1.0, num_prompts=2), arrival_ns=np.array([0, 10**9], np.uint64),
        output=np.array([3, 2], np.uint32),
    )  # fmt: skip
    law = {"law": "linear", "d0": 0.01, "d1": 0.0}
    found = figures(wait_core.simulate("vllm", requests=requests, iteration_time=law, kv_blocks=10, block_size=1))
    assert found.ttft_s == pytest.approx(0.01)
    assert found.tpot_s == pytest.approx(0.01)
    assert found.e2el_s == pytest.approx(0.025)
    assert found.queue_s == 0
    assert found.growth == pytest.approx(2 / 3)
    # In the last iteration of the first the prompt and two tokens have KV.
    assert found.peak_kv == pytest.approx(0.6)
    assert found.preemptions == 0


def test_saturated_is_as_fast_as_the_law_allows() -> None:
    # 8 slots, 10 iterations of 10 ms each; the few requests given are repeated until the slots bind.
    law = {"law": "linear", "d0": 0.01, "d1": 0.0}
    engine = Engine(policy="vllm", iteration_time=law, kv_blocks=1000, block_size=1,
                    max_num_seqs=8, token_budget=1000, num_types=8, settings={})  # fmt: skip
    found = saturated(engine, [sampled("p4d10", request_rate=1.0, num_prompts=10)], 90.0)
    # In 160 requests one batch of 8 more or less between the quantiles shows.
    assert found.request_rate == pytest.approx(8 / 0.1, rel=0.08)
    few = replace(engine, max_num_seqs=1)
    assert saturated(few, [sampled("p4d10", request_rate=1.0)], 10.0).request_rate == pytest.approx(10.0, rel=0.002)
    assert found.output_throughput == pytest.approx(10 * found.request_rate)
    assert found.binding == "max-running"
    assert found.residents == pytest.approx(8, rel=0.2)
    short, long = ([sampled(name, request_rate=1.0)] for name in ("p9d1", "p4d10"))
    assert saturated(replace(engine, kv_blocks=30), long, 90.0).binding == "memory"
    assert saturated(replace(engine, token_budget=9), short, 200.0).binding == "token-budget"
