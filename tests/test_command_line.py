"""How the command behaves in a shell: refusals, exit codes, pipes, terminals, encodings, Ctrl-C, files."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from wait_core import Scheduler
from wait_core.cli import main

ROOT = Path(__file__).resolve().parent.parent
# A shell lets what it runs in the background ignore the signal, and children inherit that.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from wait_core.cli import main
print("begun", file=sys.stderr, flush=True)
sys.exit(main())
"""
WORKLOAD = ["--dataset-name", "p64d32", "--request-rate", "20", "--num-prompts", "50"]
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:15:51.2225670,879,55\n"
)


def wait_core(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"} | options.pop("env", {})
    return subprocess.run(
        [sys.executable, "-m", "wait_core.cli", *arguments], capture_output=True, timeout=60, check=False,
        env=environment, encoding=environment["PYTHONIOENCODING"], **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulate", *WORKLOAD, "--seed", "-1"], "--seed: '-1'"),
        (["simulate", *WORKLOAD, "--seed", "18446744073709551616"], "--seed: '18446744073709551616'"),
        (["simulate", *WORKLOAD, "--max-concurrency", "-1"], "--max-concurrency: '-1'"),
        (["simulate", *WORKLOAD, "--max-tokens", "-5"], "--max-tokens: '-5'"),
        (["simulate", *WORKLOAD, "--overhead", "1e30"], "--overhead: '1e30'"),
        (["simulate", *WORKLOAD, "--overhead", "nan"], "--overhead: 'nan'"),
        (["simulate", *WORKLOAD, "--burstiness", "0"], "--burstiness: '0'"),
        (["simulate", *WORKLOAD, "--num-prompts", "99999999999"], "--num-prompts: '99999999999'"),
        (["simulate", *WORKLOAD, "--slo-ttft", "nan"], "--slo-ttft: 'nan'"),
        (["simulate", *WORKLOAD, "--goodput", "ttft=20"], "--goodput: 'ttft=20'"),
        (["simulate", *WORKLOAD, "--goodput", "ttft:-1"], "--goodput: ttft: '-1'"),
        (["simulate", *WORKLOAD, "--goodput", "tpot:1", "tpot:2"], "'tpot:2': tpot is given twice"),
        (["simulate", *WORKLOAD, "--set", "policy=wait"], "--set policy=wait"),
        (["simulate", *WORKLOAD, "--request-rate", "1e-300"], "--request-rate: '1e-300'"),
        (["plan", "--type", "512:20:1e300"], "--type: '512:20:1e300'"),
        (["simulate", *WORKLOAD, "--nonsense"], "--nonsense"),
        (["simulate", *WORKLOAD, "--set", "seed=3"], 'unknown setting "seed"'),
        (["simulate", *WORKLOAD, "--set", "progress=true"], 'unknown setting "progress"'),
        (["simulate", *WORKLOAD, "--set", "hints=1"], 'unknown setting "hints"'),
        (["compare", *WORKLOAD, "--set", "lengths=known"], 'unknown setting "lengths"'),
        (["simulate", *WORKLOAD, "--set", "iteration_time=5"], "iteration_time = 5"),
        (["simulate", *WORKLOAD, "--config", "{config}"], 'unknown setting "num_prompts"'),
        (["sweep", *WORKLOAD[:2], "--request-rates", "3", "--set", "kv_block=5"], 'did you mean "kv_blocks"'),
        (["simulate", "--dataset-path", "{azure}", "--request-rate", "inf"], "--request-rate inf"),
        (["simulate", "--dataset-path", "{azure}", "--dataset-name", "chat"], "--dataset-name chat"),
        (["simulate", "--dataset-path", "{azure}", "--dataset-name", "burstgpt"], "azure.csv"),
        (["simulate", "--dataset-name", "azure", "--request-rate", "3"], "--dataset-path"),
        (["simulate"], "--dataset-name"),
        (["plan", "--type", "512:20:7", "--token-budget", "-1"], "--token-budget: '-1'"),
        (["plan", "--type", "512:20:7", "--max-num-seqs", "0"], "--max-num-seqs: '0'"),
        (["plan", "--type", "512:20:7", "--num-types", "0"], "--num-types: '0'"),
        (["plan", "--type", "512:0:7"], "--type: '512:0:7'"),
        (["plan", "--type", "512:20:7", "--kv-blocks", "1"], "kv_blocks = 1: 16 KV tokens"),
        (["plan", "--dataset-name", "chat", "--type", "512:20:7"], "give one of --dataset-name"),
        (["replay", "{binary}"], "binary.dat:1: not UTF-8 text"),
        (["calibrate", "{binary}"], "binary.dat:1: not UTF-8 text"),
        (["nothing"], "'nothing'"),
        ([], "COMMAND"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_what_is_refused_is_refused_in_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    azure, binary, config = tmp_path / "azure.csv", tmp_path / "binary.dat", tmp_path / "settings.json"
    config.write_text('{"num_prompts": 3}', encoding="utf-8")
    azure.write_text(AZURE, encoding="utf-8")
    binary.write_bytes(bytes(range(255, 0, -1)) * 9)
    assert main([each.format(azure=azure, binary=binary, config=config) for each in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("wait-core: ")
    assert err.count("\n") == 1
    assert said in err
    for internal in ("GpuLimits", "max_running", "classes =", "overhead_ns"):
        assert internal not in err


def test_what_a_scheduler_says_of_its_settings_is_a_settings_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Scheduler("vllm", kv_blocks=60).settings
    policy = settings.pop("policy")
    config = tmp_path / "settings.json"
    config.write_text(json.dumps(settings), encoding="utf-8")
    assert main(["simulate", *WORKLOAD, "--policy", policy, "--config", str(config), "--json"]) == 0
    first = capsys.readouterr().out
    assert main(["simulate", *WORKLOAD, "--policy", policy, "--set", "kv_blocks=60", "--json"]) == 0
    assert capsys.readouterr().out == first


def test_the_names_of_vllm_bench_are_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    azure = tmp_path / "azure.csv"
    azure.write_text(AZURE, encoding="utf-8")
    named = ["simulate", "--dataset-name", "azure", "--dataset-path", str(azure), "--json"]
    assert main([*named, "--goodput", "ttft:2000", "tpot:100"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["completed"] == 3
    assert main([*named[:1], *named[3:], "--slo-ttft", "2000", "--slo-tpot", "100"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert first["goodput"] == 1
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a b c", "output_tokens": 4}\n', encoding="utf-8")
    assert main(["simulate", "--dataset-name", "custom", "--dataset-path", str(prompts), "--request-rate", "1"]) == 0


def test_compare_shows_the_goodput_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *WORKLOAD]) == 0
    assert "goodput" not in capsys.readouterr().out
    assert main(["compare", *WORKLOAD, "--goodput", "ttft:1"]) == 0
    header, _, *rows = capsys.readouterr().out.splitlines()[1:]
    assert header.split()[-1] == "goodput"
    assert all(row.endswith(" 0.0%") for row in rows)


def test_a_run_in_which_nothing_can_run_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["simulate"], ["compare", "--policies", "vllm"]):
        assert main([*command, *WORKLOAD, "--set", "kv_blocks=5", "--json"]) == 1
        out, err = capsys.readouterr()
        assert json.loads(out)["failed"] == 50
        assert "none of the 50 requests could run" in err
        assert "80 KV tokens" in err
        assert main([*command, *WORKLOAD, "--set", "kv_blocks=5"]) == 1
        assert "None" not in capsys.readouterr().out


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_error(closed: str, tmp_path: Path) -> None:
    saved = tmp_path / "result.json"
    command = [sys.executable, "-m", "wait_core.cli", "simulate", *WORKLOAD, "--save-result", str(saved)]
    done = subprocess.run(
        ["bash", "-c", f'"$@" {closed}', "-", *command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(saved.read_text(encoding="utf-8"))["completed"] == 50
    assert ("completed" in done.stdout) == (closed == "2>&-")


def test_a_file_that_cannot_be_opened_is_named_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *WORKLOAD, "--config", "nowhere.json"]) == 2
    assert capsys.readouterr().err == "wait-core: nowhere.json: No such file or directory\n"


@pytest.mark.skipif(sys.platform == "darwin", reason="names of files are Unicode there")
def test_names_of_files_may_be_no_unicode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / os.fsdecode(b"\xff.csv")
    trace.write_text(AZURE, encoding="utf-8")
    page, table = tmp_path / "page.html", tmp_path / "table.csv"
    assert main(["simulate", "--dataset-path", str(trace), "--report", str(page)]) == 0
    assert "/?.csv: adaptive</h1>" in page.read_text(encoding="utf-8")
    assert main(["sweep", "--dataset-path", str(trace), "--output", str(table), "--workers", "1"]) == 0
    assert table.read_text(encoding="utf-8").count("/?.csv,") == 2
    capsys.readouterr()


def test_a_result_on_the_terminal_is_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No Python dictionary is printed: holds by reason in words, what was dropped as notes beside the result."""
    trace = tmp_path / "burst.csv"
    rows = ["Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type", "5,ChatGPT,1087,0,1087,API log"]
    rows += [f"{second},ChatGPT,1000,200,1200,API log" for second in range(5, 9)]
    trace.write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert main(["simulate", "--dataset-path", str(trace), "--policy", "vllm", "--set", "kv_blocks=80"]) == 0
    out, err = capsys.readouterr()
    assert not set("{}[]'") & set(out)
    (holds,) = [line for line in out.splitlines() if line.startswith("holds")]
    assert "no_blocks" in holds
    assert "too_large" not in holds
    assert "total_input_tokens         4,000" in out
    assert "note: 1 row left out" in err


def test_exit_codes_are_stated(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["simulate", "--help"], ["replay", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        out = capsys.readouterr().out
        for code in (0, 1, 2, 130, 141):
            assert f"\n  {code:<3}  " in out


@pytest.mark.parametrize("command", [["settings"], ["compare", *WORKLOAD], ["--help"]], ids=lambda command: command[0])
def test_a_reader_that_leaves_is_no_error(command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with os.fdopen(writing, "wb") as gone:
        process = subprocess.Popen(
            [sys.executable, "-m", "wait_core.cli", *command], stdout=gone, stderr=subprocess.PIPE, text=True,
            env=buffered,
        )  # fmt: skip
    _, err = process.communicate(timeout=60)
    assert err == ""
    assert process.returncode == 141


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
def test_any_encoding_of_the_terminal_will_do(encoding: str) -> None:
    for command in (["settings"], ["plan", "--type", "512:1000:4", "--num-prompts", "50", "--runs", "1"]):
        done = wait_core(*command, env={"PYTHONIOENCODING": encoding})
        assert (done.returncode, done.stderr) == (0, "")
    done = wait_core("simulate", *WORKLOAD, "--policy", "wïat…", env={"PYTHONIOENCODING": encoding})
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_tables_fit_a_narrow_terminal() -> None:
    wide = wait_core("compare", *WORKLOAD).stdout
    narrow = wait_core("compare", *WORKLOAD, env={"COLUMNS": "40", "TERM": "dumb"}).stdout
    assert max(map(len, wide.splitlines())) > 100
    assert all(len(line) <= 40 for line in narrow.splitlines()), narrow
    for word in wide.split():
        assert word in narrow or set(word) == {"-"}
    assert all(len(line) <= 40 for line in wait_core("settings", env={"COLUMNS": "40"}).stdout.splitlines())


def test_the_command_starts_in_a_moment() -> None:
    def processor_time(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    cli = ["-m", "wait_core.cli"]
    for command in (["-c", "import wait_core"], [*cli, "--version"], [*cli, "--help"], [*cli, "settings"]):
        assert min(processor_time(*command) for _ in range(3)) < 0.35
    loaded = "import sys, wait_core; print(sorted({'numpy', 'tqdm', 'matplotlib', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True).stdout == b"[]\n"


def ended_seconds() -> float:
    """Return the processor time of the child processes that have ended, s."""
    times = os.times()
    return times.children_user + times.children_system


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    long = ["--dataset-name", "reasoning-2700", "--request-rate", "1", "--num-prompts", "2000000"]
    for command in (["simulate", *long, "--save-result"], ["compare", *long, "--save-result"]):
        ended = ended_seconds()
        done = wait_core(*command, str(tmp_path / "no" / "such.json"))
        assert done.returncode == 2
        assert "such.json" in done.stderr
        assert ended_seconds() - ended < 10
    kept = tmp_path / "kept.json"
    kept.write_text("as it was", encoding="utf-8")
    assert main(["simulate", *WORKLOAD, "--set", "order=lifo", "--save-result", str(kept)]) == 2
    assert kept.read_text(encoding="utf-8") == "as it was"
    assert list(tmp_path.iterdir()) == [kept]


def processor_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc for how far a process is")
@pytest.mark.parametrize("after", [0.01, 0.03, 0.1, 0.2, 0.4, 2.5])
def test_ctrl_c_ends_it_at_any_moment(after: float, tmp_path: Path) -> None:
    """While modules load, while requests are drawn, and while they are simulated: distinguished by processor time."""
    saved = tmp_path / "result.json"
    long = ["--dataset-name", "reasoning-2700", "--request-rate", "1", "--num-prompts", "1000000"]
    command = [sys.executable, "-c", PROGRAM, "simulate", *long, "--save-result", str(saved)]
    ended = ended_seconds()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "begun\n"
    begun = processor_seconds(process.pid)
    while processor_seconds(process.pid) < begun + after:
        assert process.poll() is None
        time.sleep(0.005)
    sent = processor_seconds(process.pid)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    # The whole run takes minutes. Drawing requests is not cut short: about a second for a million.
    assert ended_seconds() - ended - sent < 10
    assert (process.returncode, out) == (130, "")
    assert err == "wait-core: interrupted, nothing was written\n"
    assert list(tmp_path.iterdir()) == []


def test_the_example_that_needs_vllm_says_so() -> None:
    program = "import runpy, sys; sys.modules['vllm'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    example = str(ROOT / "examples" / "vllm_offline.py")
    done = subprocess.run([sys.executable, "-c", program, example], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("vLLM is not installed here")
    assert done.stderr.count("\n") == 1
