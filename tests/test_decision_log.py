"""The decision log: replayed to the same decisions, read as a trace, bounded, and never in the way."""

from __future__ import annotations

import json
import random
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from wait_core import Scheduler, WaitCoreError, simulate
from wait_core.cli import main
from wait_core.files import FileError
from wait_core.logs import replay
from wait_core.logs.decision_log import DecisionLog, LoggedCore
from wait_core.workload import TraceError, load, replayed

if TYPE_CHECKING:
    from pathlib import Path

    from wait_core.settings.types import RequestType

TYPES: list[RequestType] = [{"prompt": 40, "output": 12, "rate": 1.0}]
SETTINGS: dict[str, Any] = {"kv_blocks": 60, "block_size": 16, "max_num_seqs": 8, "token_budget": 128}


def serve(path: Path, *, requests: int = 60, max_bytes: int = 10**7) -> dict[int, int]:
    """Serve requests in a loop that also preempts, refuses, corrects and aborts; return the output tokens of each."""
    draw = random.Random(1)
    log = DecisionLog(path, max_bytes=max_bytes)
    core = LoggedCore(Scheduler("wait", types=TYPES, **SETTINGS), log)
    arrivals = [(number, draw.randint(1, 200), draw.randint(1, 30)) for number in range(requests)]
    with pytest.raises(WaitCoreError):
        core.add(999, 100_000, 5, now_ns=0)
    left: dict[int, int] = {}
    tokens: dict[int, int] = {}
    now_ns = 0
    while arrivals or left:
        now_ns += draw.randint(1, 10**7)
        if arrivals and draw.random() < 0.5:
            number, prompt, output = arrivals.pop(0)
            core.add(number, prompt, output, output_tokens=output, priority=draw.randint(-2, 2), now_ns=now_ns)
            left[number] = output
        plan = core.plan(now_ns)
        stages = {number: core.stage(number) or 0 for number in left}
        finished = [number for number, stage in stages.items() if stage >= left[number]]
        preempted = [n for n, _ in plan.prefill if n not in finished and draw.random() < 0.02]
        core.complete(finished=finished, preempted=preempted)
        for number in finished:
            tokens[number] = left.pop(number)
            core.ended(number, tokens[number])
        if left and draw.random() < 0.02:
            number = draw.choice(sorted(left))
            tokens[number] = stages[number] if number not in preempted else 0
            del left[number]
            core.abort(number)
            core.ended(number, tokens[number])
    log.close()
    return tokens


def test_a_log_replays_to_the_same_decisions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    serve(path)
    kinds = {next(iter(json.loads(line))) for line in path.read_text().splitlines()}
    assert kinds == {"format", "add", "plan", "complete", "abort", "end"}
    result = replay(path)
    assert (result.line, result.requests, result.notes) == (None, 60, ())
    assert main(["replay", str(path)]) == 0
    assert f"{result.iterations} iterations, 60 requests" in capsys.readouterr().out


def test_the_first_decision_that_differs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    serve(path)
    lines = path.read_text().splitlines()
    plans = [i for i, line in enumerate(lines) if line.startswith('{"plan"')]
    changed = json.loads(lines[plans[30]])
    changed["decodes"] += 1
    lines[plans[30]] = json.dumps(changed)
    path.write_text("\n".join(lines) + "\n")
    result = replay(path)
    assert (result.iterations, result.line) == (31, plans[30] + 1)
    assert result.logged == changed
    assert result.decided["decodes"] == changed["decodes"] - 1
    assert main(["replay", str(path)]) == 1
    assert "iteration 31" in capsys.readouterr().out


def test_what_was_restored_is_restored_in_the_replay(tmp_path: Path) -> None:
    # With a stated probability, what is known of the lengths decides how many enter.
    settings = SETTINGS | {"overflow_probability": 0.02}
    teacher = Scheduler("adaptive", **settings)
    for number in range(40):
        teacher.add(number, 10, 400)
        while number in teacher:
            teacher.plan()
            teacher.complete(finished=[number] if (teacher.stage(number) or 0) >= 9 else [])
    learned = teacher.learned()
    assert learned is not None
    path = tmp_path / "log.jsonl"
    log = DecisionLog(path, max_bytes=10**7)
    core = LoggedCore(Scheduler("adaptive", **settings), log)
    core.restore(learned)
    for number in range(8):
        core.add(number, 150, 400)
    for _ in range(5):
        core.plan()
        core.complete()
    log.close()
    lines = path.read_text().splitlines()
    assert json.loads(lines[1]) == {"restore": learned}
    assert replay(path).line is None
    path.write_text("\n".join(lines[:1] + lines[2:]) + "\n")
    assert replay(path).line is not None, "it decides otherwise without what was learned"


def test_other_settings_decide_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    serve(path)
    header, rest = path.read_text().split("\n", 1)
    settings = json.loads(header)
    settings["settings"]["thresholds"] = [1.0]
    path.write_text(json.dumps(settings) + "\n" + rest)
    assert replay(path).line is not None


def test_a_log_is_a_trace_that_the_simulator_takes(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    tokens = serve(path)
    trace = load(path)
    assert trace.format == "wait-core-log"
    seen = {number: n for number, n in sorted(tokens.items()) if n}
    assert trace.output_tokens.tolist() == list(seen.values())
    assert trace.dropped.get("left before its first token", 0) == len(tokens) - len(seen)
    report = simulate("wait", requests=replayed(trace), types=TYPES, **SETTINGS)
    assert report.summary()["completed"] == len(seen)


def test_a_log_ends_at_its_size_with_a_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log.jsonl"
    tokens = serve(path, max_bytes=5_000)
    assert path.stat().st_size <= 5_000 + len('{"stop":"size"}\n')
    assert path.read_text().endswith('{"stop":"size"}\n')
    assert caplog.text.count("reached its size") == 1
    result = replay(path)
    assert result.line is None
    assert result.notes == ("the log ends early: size",)
    trace = load(path)
    assert 0 < len(trace) < len(tokens)
    assert trace.dropped["not finished within the log"] > 0


def test_a_log_cut_off_in_a_line_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    serve(path)
    path.write_text(path.read_text()[:-5])
    result = replay(path)
    assert result.line is None
    assert len(result.notes) == 1
    assert len(load(path)) > 50


def test_a_log_keeps_files_that_exist(tmp_path: Path) -> None:
    logs = [DecisionLog(tmp_path / "log.jsonl", max_bytes=100) for _ in range(3)]
    for log in logs:
        log.close()
    assert [log.path.name for log in logs] == ["log.jsonl", "log.1.jsonl", "log.2.jsonl"]


def test_a_full_disk_ends_the_log_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = DecisionLog(tmp_path / "log.jsonl", max_bytes=10**6)
    core = LoggedCore(Scheduler("vllm", **SETTINGS), log)

    class Full:
        closed = False

        def write(self, _: str) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            self.closed = True

    log._file.close()
    log._file = Full()  # type: ignore[assignment]
    core.add(1, 10, 5, output_tokens=5)
    assert core.plan(0).admitted == [1]
    assert not log.is_open
    assert caplog.text.count("No space left") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a decision log"),
        ("[]", "is not a JSON object"),
        ("{", "not a decision log"),
        ("\x00\x01\n", ":1: not JSON"),
        ("[" * 100_000, "not a decision log"),
        ("[" * 100_000 + "\n", ":1: not JSON: nested too deeply"),
        ('{"format": "wait-core-log", "version": 1}\n', ":1: column 'settings'"),
        ('{"format": "wait-core-log", "version": 1, "settings": {"kv_blocks": 9}}\n', "nothing to compare"),
        ('{"plan": 1}\n', "header is missing"),
        ('{"format": "other", "version": 1}\n', "'other' version 1"),
        ('{"format": "wait-core-log", "version": 2}\n', "version 2"),
        ('{"format": "wait-core-log", "version": 1, "settings": {"kv_blcks": 1}}\n', 'did you mean "kv_blocks"'),
        (
            '{"format": "wait-core-log", "version": 1, "settings": {"kv_blocks": 9}}\n{"sleep": 1}\n',
            ":2: .*no known kind",
        ),
        ('{"format": "wait-core-log", "version": 1, "settings": {"kv_blocks": 9}}\n{"add": -1}\n', ":2: "),
    ],
)
def test_what_is_no_log_is_refused(tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    if message != "nothing to compare":
        with pytest.raises(FileError, match=message):
            replay(path)
    assert main(["replay", str(path)]) == 2
    err = capsys.readouterr().err
    assert re.search(message, err)
    assert err.count("\n") == 1


READS = {
    "explain",
    "first_in_queue",
    "kv_forecast",
    "learned",
    "load",
    "num_resident",
    "num_waiting",
    "predicted_wait_ns",
}
READS |= {"admission_gap_ns", "iteration_time", "settings", "stage", "stats", "thresholds", "used_blocks"}
READS |= {"waiting_tokens"}


def test_every_call_that_changes_the_core_is_logged() -> None:
    """A method of `Scheduler` either only reads, or stands in `LoggedCore` too."""
    changes = {name for name in dir(Scheduler) if not name.startswith("_")} - READS
    assert {
        "add",
        "plan",
        "complete",
        "abort",
        "set_capacity",
        "set_paused",
        "drain",
        "restore",
        "reset_prefix_cache",
    } <= changes
    assert {name for name in changes if name not in vars(LoggedCore)} == set()


def test_pauses_capacity_and_draining_are_replayed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = DecisionLog(path, max_bytes=10**6)
    core = LoggedCore(Scheduler("wait", types=TYPES, thresholds=[4.0], work_conserving=False, **SETTINGS), log)
    core.set_capacity(5)
    core.set_paused(True)
    for number in range(4):
        core.add(number, 40, 12)
    assert core.plan(1).admitted == []
    core.set_paused(False)
    assert core.plan(2).admitted == [0]  # two do not fit
    core.complete(finished=[0])
    core.set_capacity(60)
    assert core.plan(3).admitted == []  # three are fewer than the threshold
    core.drain()
    assert core.plan(4).admitted == [1, 2, 3]
    log.close()
    assert replay(path).line is None
    lines = path.read_text().splitlines()
    for call in ("set_capacity", "set_paused", "drain"):
        path.write_text("".join(f"{line}\n" for line in lines if f'"{call}"' not in line))
        assert replay(path).line is not None, f"it decides otherwise without {call}"


def test_ids_of_numpy_and_refused_calls_are_logged_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = DecisionLog(path, max_bytes=10**6)
    core: Any = LoggedCore(Scheduler("vllm", **SETTINGS), log)
    ids = np.array([3, 2**63, 2**64 - 1], np.uint64)
    for number in ids:
        core.add(number, np.int64(20), np.int32(8), priority=np.int64(-1), now_ns=np.int64(2**62))
    for bad in ({"request_id": -1}, {"predicted_tokens": 4, "predicted_log_error": float("nan")}, {"prompt_tokens": 0}):
        arguments: dict[str, Any] = {"request_id": 7, "prompt_tokens": 5} | bad
        with pytest.raises(WaitCoreError):
            core.add(**arguments)
    core.plan(np.int64(2**62))
    core.complete(finished=ids[:1], preempted=[np.uint64(ids[1])], progress=[(ids[2], np.int64(20))])
    core.plan(np.int64(2**62 + 1))
    core.set_paused(np.bool_(True))
    core.abort(ids[1])
    for number in ids:
        core.ended(number, np.int64(4))
    assert log.is_open
    log.close()
    result = replay(path)
    assert (result.line, result.requests, result.iterations) == (None, 3, 2)
    trace = load(path)
    assert (len(trace), trace.dropped) == (3, {"refused by the core": 3})


def test_an_id_that_is_used_again_is_another_request(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = DecisionLog(path, max_bytes=10**6)
    core = LoggedCore(Scheduler("vllm", **SETTINGS), log)
    for prompt, tokens in ((20, 4), (30, 6)):
        core.add(1, prompt, 8)
        core.abort(1)
        core.ended(1, tokens)
    log.close()
    trace = load(path)
    assert list(zip(trace.prompt_tokens, trace.output_tokens, strict=True)) == [(20, 4), (30, 6)]


def test_a_damaged_log_is_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"format": "wait-core-log"}\n{"add": 1, "now_ns": -1, "prompt_tokens": 5}\n')
    with pytest.raises(TraceError, match=":2: column 'now_ns'"):
        load(path)
