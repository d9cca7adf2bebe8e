"""How the command ends where a shell interrupts it early, and where its output cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wait_core.cli import main

WORKLOAD = ["--dataset-name", "p64d32", "--request-rate", "20", "--num-prompts", "50"]
# The signal comes when a module is looked for, as one that arrives during the start would.
INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupts:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
from wait_core.cli import main
sys.exit(main(["compare", "--dataset-name", "chat", "--request-rate", "1"]))
"""


@pytest.mark.parametrize("module", ["wait_core._core", "wait_core.cli.app", "argparse", "numpy"])
def test_ctrl_c_while_modules_load_ends_it_in_one_line(module: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, module]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "wait-core: interrupted, nothing was written\n"


def test_the_entry_point_loads_nothing_before_it_can_answer_ctrl_c() -> None:
    program = "import sys; old = set(sys.modules); import wait_core.cli; print(*sorted(set(sys.modules) - old))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"__future__", "wait_core", "wait_core.cli"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(
    "command", [["--help"], ["--version"], ["simulate", "--help"], ["settings", "--json"], ["simulate", *WORKLOAD]]
)
def test_an_output_that_is_full_is_an_error(command: list[str], *, buffered: bool) -> None:
    options = [] if buffered else ["-u"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, *options, "-m", "wait_core.cli", *command], stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=60, check=False, env=environment,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "wait-core: the output: No space left on device\n"


def test_a_folder_and_two_outputs_in_one_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link.json").symlink_to("out.json")
    Path("there.json").write_text("{}", encoding="utf-8")
    Path("hard.json").hardlink_to("there.json")
    pairs = [
        ("out.json", "../" + tmp_path.name + "/out.json"),
        ("link.json", str(tmp_path / "out.json")),
        ("there.json", "hard.json"),
    ]
    for folder in ("", "."):
        assert main(["simulate", *WORKLOAD, "--report", folder]) == 2
        assert capsys.readouterr() == ("", "wait-core: --report .: is a directory\n")
    for saved, report in pairs:
        assert main(["simulate", *WORKLOAD, "--save-result", saved, "--report", report]) == 2
        assert capsys.readouterr() == ("", f"wait-core: --report {report}: the same file as --save-result {saved}\n")
    assert main(["simulate", *WORKLOAD, "--config", "there.json", "--save-result", "hard.json"]) == 2
    assert "--save-result hard.json: the same file as --config there.json" in capsys.readouterr().err
    assert Path("there.json").read_text(encoding="utf-8") == "{}"
    assert not Path("out.json").exists()
    assert main(["simulate", *WORKLOAD, "--save-result", "/dev/null", "--report", "/dev/null"]) == 0


@pytest.mark.parametrize("columns", ["40", "60", "80"])
def test_names_of_any_length_fit_the_terminal(
    columns: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
    name = "a-model-" + "of-a-long-name-" * 9
    rows = [f"{second},{name},100,20,120,API log" for second in range(5)]
    Path("burst.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    commands = [
        ["trace", "burst.csv"],
        ["simulate", "--dataset-path", "burst.csv"],
        ["plan", "--gpu", "h100_sxm", "--model", "Qwen/Qwen3-32B", "-tp", "2", *WORKLOAD, "--runs", "1", "--slo-ttft",
         "1e4"],
        ["hardware"],
        ["doctor"],
    ]  # fmt: skip
    for command in commands:
        monkeypatch.delenv("COLUMNS", raising=False)
        main(command)
        wide = capsys.readouterr().out
        monkeypatch.setenv("COLUMNS", columns)
        main(command)
        narrow = capsys.readouterr().out
        tables = [line for line in narrow.splitlines() if line not in wide.splitlines()]
        assert max(map(len, tables), default=0) <= int(columns), command
        # Whole, though in pieces.
        assert (name in "".join(narrow.split())) == (name in wide)
