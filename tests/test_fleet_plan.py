"""Fleets planned for an objective: the search finds the least, its figures are simulated, and bounds are bounds."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from wait_core import WaitCoreError, hardware, plan_fleet, simulate
from wait_core._core import Planner
from wait_core.cli import main
from wait_core.hardware import iteration_time
from wait_core.planning.fleet_bound import FleetBound
from wait_core.planning.search import least
from wait_core.report.html import page_of_fleet_plan
from wait_core.simulation import Disaggregated, Transfer
from wait_core.simulation.trial import Engine
from wait_core.workload import sampled

if TYPE_CHECKING:
    from pathlib import Path

    from wait_core.planning import FleetTrial

CHAT: dict[str, Any] = {"dataset_name": "chat", "request_rate": 16.0, "num_prompts": 600, "runs": 2}
SLO: dict[str, Any] = {"slo_ttft_ms": 1000.0, "slo_tpot_ms": 60.0}
COMMAND = ["plan", "--dataset-name", "chat", "--request-rate", "16", "--num-prompts", "600", "--runs", "2"]
WITHIN = ["--goodput", "ttft:1000", "tpot:60"]


@pytest.mark.parametrize("low", [1, 3, 10])
@pytest.mark.parametrize("answer", [1, 3, 4, 5, 9, 17, 40, 41])
def test_the_search_finds_the_least_and_asks_little(low: int, answer: int) -> None:
    asked: list[int] = []

    def meets(number: int) -> bool:
        asked.append(number)
        return number >= answer

    found = least(meets, low, 40)
    assert found == (None if answer > 40 else max(low, answer))
    assert all(low <= number <= 40 for number in asked)
    assert len(asked) == len(set(asked)) <= 12


def test_the_fewest_gpus_meet_the_objective_and_one_less_does_not() -> None:
    plan = plan_fleet(**CHAT, **SLO, routers=["forecast", "least-requests"])
    assert plan.fluid is not None
    assert plan.recommended is not None
    assert {(each.router, each.prefill > 0) for each in plan.found} == {
        (router, apart) for router in ("forecast", "least-requests") for apart in (False, True)
    }
    shares = {(each.prefill, each.decode, each.router): each.goodput for each in plan.trials}
    for best in plan.found:
        assert best.meets
        assert best.goodput >= 0.95 >= best.goodput - 0.05
        if best.prefill == 0:
            assert best.decode == plan.fluid.colocated or shares[0, best.decode - 1, best.router] < 0.95
        else:
            assert best.prefill >= (plan.fluid.prefill or 0)
            assert best.decode == plan.fluid.decode or shares[best.prefill, best.decode - 1, best.router] < 0.95
    assert plan.recommended.gpus == min(each.gpus for each in plan.found)
    assert (plan.runs, plan.num_prompts, plan.simulated) == (2, 600, len(plan.trials) * 1200)
    assert plan.transfer == Transfer.of()
    assert [each.gpus for each in plan.trials] == sorted(each.gpus for each in plan.trials)


def test_the_figures_of_a_fleet_are_those_of_its_simulation() -> None:
    seen: list[FleetTrial] = []
    plan = plan_fleet(**CHAT, **SLO, replicas=4, routers=["least-kv"], progress=seen.append)
    assert sorted(each.split for each in seen) == ["1P3D", "2P2D", "3P1D", "colocated"]
    assert plan.found[1].goodput == max(each.goodput for each in seen if each.prefill)
    transfer = Transfer.of()
    for trial in seen:
        replicas: Any = 4
        if trial.prefill:
            replicas = Disaggregated(prefill=trial.prefill, decode=trial.decode, transfer=transfer)
        shares: list[float] = []
        ttft = []
        for seed in range(2):
            requests = sampled("chat", request_rate=16.0, num_prompts=600, seed=seed)
            run = simulate(requests=requests, replicas=replicas, router="least-kv").run
            first = (run.first_token_ns - run.arrival_ns)[120:]
            rest = (run.finished_ns - run.first_token_ns)[120:]
            in_time = (first <= 10**9) & (rest <= 60_000_000.0 * (run.output[120:] - 1))
            shares.append(float(np.mean(in_time)))
            ttft.append(first)
        assert [trial.least_goodput, trial.most_goodput] == [min(shares), max(shares)]
        assert trial.goodput == pytest.approx(np.mean(shares))
        assert trial.ttft_s == pytest.approx(np.mean(np.concatenate(ttft)) * 1e-9)
        assert trial.goodput <= min(trial.ttft_goodput, trial.tpot_goodput)


def test_threads_change_nothing_in_a_plan() -> None:
    first, *others = (
        plan_fleet(**CHAT, **SLO, replicas=3, routers=["forecast"], threads=threads).to_dict() for threads in (1, 2, 5)
    )
    assert all(other == first for other in others)


def test_what_several_routers_cost_is_in_the_plan() -> None:
    asked: dict[str, Any] = {**CHAT, **SLO, "replicas": 4, "routers": ["forecast"], "staleness_s": 1.0}
    one, four = (plan_fleet(**asked, num_routers=number) for number in (1, 4))
    assert (one.num_routers, one.one_router) == (1, ())
    assert four.num_routers == 4
    alone = {each.split: each for each in one.trials}
    assert [each.split for each in four.one_router] == [each.split for each in four.found]
    for several, behind_one in zip(four.found, four.one_router, strict=True):
        assert behind_one == alone[several.split]
        assert several.goodput < behind_one.goodput
    assert four.simulated == (len(four.trials) + len(four.found)) * 1200
    assert page_of_fleet_plan(four, command="").sections[2].heading == "The same behind one router instead of 4"


def test_no_fleet_serves_more_for_long_than_its_bound() -> None:
    # Engines that know the target serve in time what they can.
    plan = plan_fleet(
        dataset_name="chat", request_rate=24.0, num_prompts=4000, runs=1, **SLO, replicas=2, routers=["forecast"],
        settings={"ttft_target": 1.0},
    )  # fmt: skip
    for trial in plan.trials:
        assert trial.goodput_bound is not None
        assert 0.3 < trial.goodput_bound < 0.9
        assert trial.goodput <= trial.goodput_bound + 0.02
        assert trial.prefill or trial.goodput > 0.5 * trial.goodput_bound


def test_decode_replicas_carry_no_more_than_their_bound_and_nearly_as_much() -> None:
    law, types = iteration_time("a100"), [(500, 200, 1.0)]
    planner = Planner(types, law, capacity=118_784, max_running=256, token_budget=2048, convention="decode-only")
    bound = planner.capacity_bound()["requests"]
    whole = Planner(types, law, capacity=118_784, max_running=256, token_budget=2048).capacity_bound()["requests"]
    assert bound > 1.3 * whole
    requests = sampled("p500d200", request_rate=2 * bound, num_prompts=4000)
    fleet = Disaggregated(prefill=0, decode=1, transfer=Transfer.of(bandwidth=np.inf))
    finished = simulate("vllm", requests=requests, replicas=fleet).run.finished_ns
    low, high = np.quantile(finished, (0.2, 0.8))
    carried = np.count_nonzero((finished > low) & (finished <= high)) / (high - low) * 1e9
    assert 0.8 * bound < carried <= 1.01 * bound


def test_bounds_of_the_pools() -> None:
    engine = Engine(policy="vllm", iteration_time=iteration_time("a100"), kv_blocks=7424, block_size=16,
                    max_num_seqs=256, token_budget=2048, num_types=8, settings={})  # fmt: skip
    bound = FleetBound([(500, 200, 10.0), (500, 1, 10.0)], engine, 1000.0, 60.0)
    assert bound.fleet(0, 1) <= bound.fleet(0, 2) <= bound.fleet(0, 40) == 1.0
    assert bound.fleet(2, 1) == min(bound.share("prefill", 2), bound.share("decode", 1))
    assert bound.share("decode", 0.01) >= 0.5, "requests of one token need no decode replica"
    fewest = bound.fewest(0.95, 100, pools=True)
    assert fewest is not None
    assert bound.fleet(0, fewest.colocated) >= 0.95
    assert fewest.colocated == 1 or bound.fleet(0, fewest.colocated - 1) < 0.95
    only = FleetBound([(500, 1, 10.0)], engine, 1000.0, 60.0)
    assert only.share("decode", 0.001) == 1.0
    many = FleetBound([(500 + i, 200, 0.001) for i in range(5000)], engine, 1000.0, 60.0)
    few = FleetBound([(500 + i, 200, 0.003) for i in range(0, 5000, 3)], engine, 1000.0, 60.0)
    assert many.share("colocated", 0.5) == pytest.approx(few.share("colocated", 0.5), rel=1e-3)


def test_replicas_of_several_gpus_prefix_caches_and_one_kind_only() -> None:
    pair = hardware.shipped()["qwen3-32b-h100-sxm-tp2"]
    settings = pair.settings()
    plan = plan_fleet(
        **CHAT, slo_ttft_ms=2000, iteration_time=settings.pop("iteration_time"), settings=settings, gpus_each=2,
        disaggregated=False, routers=["random", "random"],
    )  # fmt: skip
    assert plan.recommended is not None
    assert plan.recommended.gpus == 2 * plan.recommended.replicas
    assert (plan.transfer, len(plan.found)) == (None, 1)
    turns: dict[str, Any] = {"dataset_name": "multi-turn", "request_rate": 8.0, "num_prompts": 200, "runs": 1}
    cached = plan_fleet(**turns, slo_ttft_ms=500, routers=["forecast"], settings={"prefix_caching": True})
    assert cached.fluid is None
    assert {each.goodput_bound for each in cached.trials} == {None}
    assert cached.recommended is not None


def test_how_long_a_run_is_and_what_is_uncertain() -> None:
    plan = plan_fleet(types=[(100, 20, 30.0)], slo_ttft_ms=2000, runs=1, routers=["random"], disaggregated=False)
    assert (plan.num_prompts, plan.warnings) == (3600, ())
    assert plan.span_s == pytest.approx(120, rel=0.1)
    short = plan_fleet(**CHAT, slo_tpot_ms=100, replicas=2, routers=["random"], disaggregated=False)
    assert short.recommended is not None
    assert [warning.split(":")[0] for warning in short.warnings] == [
        "the requests of a run arrive in 37.2 s", "queues have not settled",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slo_ttft_ms": None, "slo_tpot_ms": None}, "slo_ttft_ms and slo_tpot_ms are missing"),
        ({"slo_ttft_ms": float("inf")}, "slo_ttft_ms = inf: must be finite"),
        ({"attainment": 0.0}, "attainment = 0.0: must be above 0"),
        ({"replicas": 0}, "replicas = 0: must be between 1"),
        ({"runs": 0}, "runs = 0: must be between 1"),
        ({"gpus_each": 0}, "gpus_each = 0"),
        ({"routers": []}, "routers: none"),
        ({"num_routers": 0}, "num_routers = 0: must be between 1 and 1024"),
        ({"threads": 0}, "threads = 0: must be between 1 and 1024"),
        ({"routers": ["nearest"]}, "router = 'nearest'"),
        ({"iteration_time": "linear:0.01,1e-6", "settings": {"kv_blocks": 900}}, "bytes_per_token is missing"),
        ({"slo_tpot_ms": 5.0}, r"goodput ttft:1000 tpot:5: no number of GPUs meets it for 0.95 of the requests; the"),
        (
            {"slo_ttft_ms": 60.0, "attainment": 0.54, "policy": "prefill-first", "routers": ["random"]},
            r"goodput ttft:60 tpot:60: none of the fleets up to \d+ GPUs meets it for 0.54 of the requests; the best",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(WaitCoreError, match=message) as refused:
        plan_fleet(**(CHAT | SLO | change))
    assert "\n" not in str(refused.value)


def test_the_command_prints_draws_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, page = tmp_path / "fleet.png", tmp_path / "fleet.html"
    command = [*COMMAND, "--replicas", "3", *WITHIN, "--routers", "vllm"]

    def goodput(*options: str) -> float:
        assert main([*command, "--attainment", "0.5", "--json", *options]) == 0
        return float(json.loads(capsys.readouterr().out)["trials"][0]["goodput"])

    # What three replicas reach behind one router, but not behind two.
    one, two = goodput(), goodput("--num-routers", "2")
    assert two < one
    command += ["--attainment", str((one + two) / 2)]
    assert main([*command, "--json", "--picture", str(picture), "--report", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recommended"]["split"] in {"colocated", "1P2D", "2P1D"}
    assert picture.stat().st_size > 10_000
    assert found["recommended"]["split"] in page.read_text(encoding="utf-8")
    assert main([*command, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["split"] for row in rows] == [each["split"] for each in found["trials"]]
    assert float(rows[0]["goodput"]) == found["trials"][0]["goodput"]
    # Two replicas do not meet the objective, and the status says so.
    assert main([*command, "--replicas", "2", "--kv-bandwidth", "0.5"]) == 1
    out = capsys.readouterr().out
    assert "none of these meets the objective" in out
    assert "one router" not in out
    assert "at 0.5 GB/s" in out
    assert main([*command, "--num-routers", "2", "--threads", "1"]) == 1
    out = capsys.readouterr().out
    assert "2 routers side by side" in out
    assert out.count("one router") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--replicas", "0", *WITHIN], "--replicas: '0' is not an integer from 1 to 65,536, or auto"),
        (["--replicas", "auto"], "--goodput is missing"),
        (["--replicas", "2", *WITHIN, "--target-rate", "5"], "--target-rate: with --replicas"),
        (["--replicas", "2", *WITHIN, "--routers", "nearest"], "nearest"),
        (["--replicas", "2", *WITHIN, "--num-routers", "0"], "--num-routers: '0'"),
        (["--csv"], "--csv needs --replicas"),
        (["--replicas", "2", *WITHIN, "--gpu", "h100_sxm", "a100_sxm", "--model", "x"], "x"),
        (["--replicas", "2", *WITHIN, "--iteration-time", "linear:0.01,1e-6", "--kv-blocks", "900"],
         "--kv-bytes-per-token is missing"),
        (["--set", "policy=wait"], "--set policy=wait"),
    ],
)  # fmt: skip
def test_the_command_refuses_in_a_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: int | str | None = main([*COMMAND, *arguments])
    except SystemExit as exit_:  # what argparse refuses
        status = exit_.code
    assert status == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.strip().splitlines()) == 1
