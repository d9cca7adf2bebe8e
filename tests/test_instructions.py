"""bench/instructions.py writes the whole table, whatever else it is asked for."""

import csv
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import contract
import instructions
import speed
from callgrind import Profile


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it writes; what it counts is 1,000 instructions an iteration."""

    def run(_binary: Path, _case: str, _running: int, _waiting: int, iterations: int) -> Profile:
        return Profile(files=Counter({"step.rs": 1_000 * iterations}))

    monkeypatch.setattr(instructions, "run", run)
    monkeypatch.setattr(instructions, "build", lambda: tmp_path / "step")
    monkeypatch.setattr(shutil, "which", lambda _: "valgrind")
    monkeypatch.setattr(instructions, "BASELINE", tmp_path / "instructions.json")
    monkeypatch.setattr(contract, "DATA", tmp_path)
    return tmp_path


def test_a_new_baseline_and_the_table_are_written_at_once(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["instructions.py", "--update", "--data"])
    instructions.main()
    baseline = json.loads((written / "instructions.json").read_text(encoding="utf-8"))
    assert set(baseline.values()) == {1_000}
    with (written / "instructions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sizes = {(int(row["running"]), int(row["waiting"])) for row in rows}
    assert sizes == {(size, 1_000) for size in instructions.RUNNING} | {(256, size) for size in instructions.WAITING}
    assert all(row[case] == "1000" for row in rows for case in ("vllm", "wait", "nested-wait", "adaptive"))


@pytest.mark.parametrize("asked", ["--profile", "--check"])
def test_the_table_is_never_written_without_its_sizes(
    asked: str, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["instructions.py", asked, "--data"])
    with pytest.raises(SystemExit, match="all sizes"):
        instructions.main()
    assert not list(written.iterdir())


def test_the_exponents_are_those_of_the_rows_and_say_what_is_missed() -> None:
    rows = [{"running": str(size), "waiting": "1000", "vllm": "500", "wait": str(size)} for size in (16, 256, 65_536)]
    rows.append({"running": "256", "waiting": "0", "vllm": "500", "wait": "256"})
    rows = [row | {"nested-wait": "7", "adaptive": str(int(int(row["running"]) ** 0.5))} for row in rows]
    assert instructions.exponents(rows).splitlines()[2:] == [
        "| in waiting | 0 | 0 | 0 | 0 | <= 0.05 |",
        "| in running, 16 to 256 | 0 | 1, missed | 0 | 0.5, missed | <= 0.2 |",
        "| in running, 16 to 65,536 | 0 | 1, missed | 0 | 0.5, missed | <= 0.2 |",
    ]


def test_the_table_of_speed_has_the_counts_of_the_data_file() -> None:
    root = Path(__file__).resolve().parent.parent
    with (root / "docs" / "data" / "instructions.csv").open(encoding="utf-8", newline="") as file:
        result = {"table": list(csv.DictReader(file))}
    page = (root / "docs" / "performance.md").read_text(encoding="utf-8")
    rows = [row for row in speed.ROWS if row.bench == "instructions"]
    assert len(rows) == 2
    for row in rows:
        assert f"| {row.says} | {row.figure(result)} | `python bench/instructions.py` |" in page, row.says
