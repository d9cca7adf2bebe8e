"""The iteration-time law that `adaptive` learns: from what a host reports, in the simulator, kept, and replayed."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from wait_core import Scheduler, WaitCoreError, simulate
from wait_core._core import iteration_seconds
from wait_core.cli import main
from wait_core.logs import replay
from wait_core.logs.decision_log import DecisionLog, LoggedCore
from wait_core.workload import sampled

if TYPE_CHECKING:
    from pathlib import Path

LAW = {"law": "linear", "d0": 0.01, "d1": 2e-7}
A100 = {"law": "a100"}
SETTINGS: dict[str, Any] = {"kv_blocks": 400, "block_size": 16, "max_num_seqs": 32, "token_budget": 512}


def serve(core: Any, iterations: int, *, ahead: int = 0, report_every: int = 1) -> None:
    """Serve prompts of many lengths, whose iterations take what LAW says, planned `ahead` of their reports."""
    pending: list[tuple[int, int]] = []
    number, kv, left = 0, dict[int, int](), dict[int, int]()
    for at in range(iterations):
        while core.num_waiting < 3:
            core.add(number, 10 + 37 * number % 400, now_ns=at)
            kv[number], left[number] = 0, 5 + number % 40
            number += 1
        plan = core.plan(at)
        chunks = [(tokens, kv[n]) for n, tokens in plan.prefill]
        prefilling = {n for n, _ in plan.prefill}
        kv |= dict.fromkeys(plan.preempted, 0)
        decoding = [n for n in kv if kv[n] and n not in prefilling and core.stage(n)]
        for n in decoding:
            kv[n] += 1
        for n, tokens in plan.prefill:
            kv[n] += tokens
        if not plan.is_empty:
            decode_kv = sum(kv[n] for n in decoding)
            seconds = iteration_seconds(LAW, decodes=len(decoding), decode_kv=decode_kv, chunks=chunks)
            pending.append((plan.iteration, round(1e9 * seconds)))
        for n in list(left):
            if (core.stage(n) or 0) >= left[n]:
                core.complete(finished=[n])
                del left[n], kv[n]
        if len(pending) > ahead:
            iteration, ns = pending.pop(0)
            if iteration % report_every == 0:
                named = {"iteration": iteration} if report_every > 1 else {}
                core.complete(step_ns=ns, **named)


@pytest.mark.parametrize(("ahead", "report_every"), [(0, 1), (1, 1), (3, 1), (1, 3)])
def test_times_are_paired_with_their_plans(ahead: int, report_every: int) -> None:
    core = Scheduler("adaptive", **SETTINGS)
    assert core.iteration_time == {"law": None, "error": None, "observations": 0, "used": False}
    serve(core, 1500 * report_every, ahead=ahead, report_every=report_every)
    learned = core.iteration_time
    assert learned is not None
    assert learned["used"]
    assert learned["observations"] > 1300
    # Exact times leave no error, and a time of another plan would.
    assert learned["error"] < 0.01
    predicted = iteration_seconds(learned["law"], decodes=20, decode_kv=4000, chunks=[(300, 0)])
    assert predicted == pytest.approx(iteration_seconds(LAW, decodes=20, decode_kv=4000, chunks=[(300, 0)]), rel=0.02)


def test_what_did_not_happen_as_planned_is_not_learned_from() -> None:
    core = Scheduler("adaptive", **SETTINGS)
    for number in range(200):
        core.add(number, 20, 2)
        core.plan(number)
        core.complete(refused=[number], step_ns=10**7)
        core.abort(number)
    learned = core.iteration_time
    assert learned is not None
    assert learned["law"] is None
    assert learned["observations"] == 0


def test_a_law_that_is_given_decides_and_other_policies_learn_none() -> None:
    given = Scheduler("adaptive", iteration_time=A100, **SETTINGS)
    serve(given, 600)
    assert given.iteration_time is not None
    assert given.iteration_time["law"] is not None
    assert not given.iteration_time["used"]
    stock = Scheduler("vllm", **SETTINGS)
    serve(stock, 100)
    assert stock.iteration_time is None


def test_the_law_is_kept_and_what_no_traffic_gives_is_refused() -> None:
    core = Scheduler("adaptive", **SETTINGS)
    serve(core, 1000)
    state = core.learned()
    assert state is not None
    again = Scheduler("adaptive", **SETTINGS)
    again.restore(state)
    assert again.iteration_time is not None
    assert again.iteration_time["used"]
    assert again.iteration_time["error"] == core.iteration_time["error"]  # type: ignore[index]
    without = Scheduler("adaptive", **SETTINGS)
    without.restore({name: value for name, value in state.items() if name != "iteration_time"})
    assert without.iteration_time is not None
    assert without.iteration_time["law"] is None, "a state that was kept before laws were learned"
    for cell, value in (("count", 1e15), ("count", -1.0), ("from", 3), ("sums", [0.0])):
        changed = copy.deepcopy(state)
        changed["iteration_time"]["cells"][0][cell] = value
        with pytest.raises(WaitCoreError, match="learned"):
            Scheduler("adaptive", **SETTINGS).restore(changed)


def test_a_log_with_step_times_replays_to_the_same_decisions(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = DecisionLog(path, max_bytes=10**7)
    core = LoggedCore(Scheduler("adaptive", tpot_target=0.0102, **SETTINGS), log)
    serve(core, 900, ahead=1, report_every=2)
    log.close()
    assert core.iteration_time["used"]
    assert replay(path).line is None
    untimed = path.read_text(encoding="utf-8").replace('"step_ns":', '"step_ns":1')
    path.write_text(untimed, encoding="utf-8")
    assert replay(path).line is not None, "other times give another law, and other decisions"


def test_a_tpot_target_holds_once_the_law_is_learned() -> None:
    requests = sampled("p512d1000", request_rate=2.0, num_prompts=300, seed=3)
    law = {"law": "linear", "d0": 0.01, "d1": 1e-6}
    free, known, learned = (
        simulate(
            "adaptive",
            requests=requests,
            iteration_time=law,
            iteration_time_knowledge=knowledge,
            kv_blocks=6000,
            tpot_target=target,
        ).summary()
        for knowledge, target in (("learned", None), ("known", 0.04), ("learned", 0.04))
    )
    for key in ("median_itl_ms", "p99_itl_ms"):
        assert learned[key] < 0.8 * free[key]
        assert learned[key] == pytest.approx(known[key], rel=0.05)


@pytest.mark.parametrize("jitter", [0.0, 0.1])
def test_learned_is_nearly_as_good_as_known(jitter: float) -> None:
    requests = sampled("p512d20", request_rate=13.0, num_prompts=3000, seed=1)
    found = {
        knowledge: simulate(
            "adaptive", requests=requests, iteration_time_knowledge=knowledge, step_jitter=jitter, seed=1
        ).summary()
        for knowledge in ("known", "learned", "hidden")
    }
    ratio = {each: found[each]["mean_e2el_ms"] / found["known"]["mean_e2el_ms"] for each in found}
    assert ratio["hidden"] > 1.1
    assert ratio["learned"] < 1.02, "the first iterations included"
    assert found["learned"]["output_throughput"] > 0.99 * found["known"]["output_throughput"]


def test_what_was_learned_in_one_run_is_used_from_the_start_of_the_next() -> None:
    requests = sampled("p512d20", request_rate=20.0, num_prompts=1500, seed=1)
    first = simulate("adaptive", requests=requests, iteration_time_knowledge="learned")
    assert first.run.learned is not None
    again = simulate("adaptive", requests=requests, iteration_time_knowledge="learned", learned=first.run.learned)
    assert again.run.iteration_time is not None
    assert again.run.iteration_time["observations"] > first.run.iteration_time["observations"]  # type: ignore[index]
    assert again.e2el_s[:100].mean() < 0.99 * first.e2el_s[:100].mean()
    with pytest.raises(WaitCoreError, match="learns nothing"):
        simulate("vllm", requests=requests, learned=first.run.learned)


def test_there_is_one_law_and_it_is_the_simulated_gpu() -> None:
    """A law that changed only what the policy believed would leave the GPU an A100."""
    requests = sampled("p16d8", request_rate=1.0, num_prompts=20)
    slow = {"law": "linear", "d0": 1.0, "d1": 0.0}
    report = simulate("vllm", requests=requests, iteration_time=slow, kv_blocks=100)
    assert report.summary()["mean_tpot_ms"] == pytest.approx(1000.0)
    assert report.settings["iteration_time"] == slow
    with pytest.raises(WaitCoreError, match=r"unknown setting.*iteration_time"):
        simulate("vllm", requests=requests, iteration_time_law=slow)  # type: ignore[call-arg]
    for knowledge in ("learned", "hidden"):
        report = simulate(
            "vllm", requests=requests, iteration_time=slow, kv_blocks=100, iteration_time_knowledge=knowledge
        )
        assert report.settings["iteration_time"] is None
        assert report.summary()["mean_tpot_ms"] == pytest.approx(1000.0)


def test_a_law_among_the_settings_is_the_simulated_gpu_too(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["simulate", "--dataset-name", "p16d8", "--request-rate", "1", "--num-prompts", "20", "--json"]
    setting = ["--set", 'iteration_time={"law": "linear", "d0": 1.0, "d1": 0.0}', "--set", "kv_blocks=100"]
    assert main([*arguments, *setting]) == 0
    assert '"mean_tpot_ms": 1000' in capsys.readouterr().out


def test_jitter_is_of_mean_one_seeded_and_of_the_stated_size() -> None:
    requests = sampled("p16d200", request_rate=1.0, num_prompts=50)
    law = {"law": "linear", "d0": 0.01, "d1": 0.0}

    def tpot(jitter: float, seed: int) -> float:
        run = simulate("vllm", requests=requests, iteration_time=law, kv_blocks=1000, step_jitter=jitter, seed=seed)
        return float(run.summary()["mean_tpot_ms"])

    assert tpot(0.0, 1) == pytest.approx(10.0)
    assert tpot(0.2, 1) == tpot(0.2, 1) != tpot(0.2, 2)
    assert tpot(0.2, 1) == pytest.approx(10.0, rel=0.02)
    for refused in (-0.1, 1.5, float("nan")):
        with pytest.raises(WaitCoreError, match="step_jitter"):
            tpot(refused, 1)
    with pytest.raises(WaitCoreError, match="iteration_time_knowledge = 'guessed'"):
        simulate("vllm", requests=requests, iteration_time_knowledge="guessed")
