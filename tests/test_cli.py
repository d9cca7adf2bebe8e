"""The `wait-core` command, in a process of its own and in this one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from wait_core.cli import main

if TYPE_CHECKING:
    from pathlib import Path

WORKLOAD = ["--dataset-name", "p64d32", "--request-rate", "20", "--num-prompts", "100", "--set", "kv_blocks=60"]


def test_simulate_prints_one_line_of_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    saved = tmp_path / "result.json"
    assert main(["simulate", "--policy", "wait", *WORKLOAD, "--json", "--save-result", str(saved)]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert json.loads(out)["completed"] == 100
    assert saved.read_text(encoding="utf-8") == out
    assert err == ""  # no progress bar without a terminal


def test_simulate_prints_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *WORKLOAD]) == 0
    assert "output_throughput" in capsys.readouterr().out


def test_compare_runs_the_same_requests(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *WORKLOAD, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["policy"] for row in rows] == ["vllm", "adaptive"]
    assert rows[0]["total_input_tokens"] == rows[1]["total_input_tokens"]
    assert main(["compare", *WORKLOAD]) == 0
    assert "preemptions" in capsys.readouterr().out


def test_demo_writes_its_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "demo.png"
    assert main(["demo", "--output", str(picture), "--num-prompts", "400"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "wait" in capsys.readouterr().out


def test_settings_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "settings.json"
    config.write_text('{"kv_blocks": 50}', encoding="utf-8")
    assert main(["simulate", *WORKLOAD[:-2], "--config", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kv_blocks"] == 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", *WORKLOAD, "--policy", "wiat"], "--policy: invalid choice: 'wiat'"),
        (["compare", *WORKLOAD, "--policies", "vllm", "wiat"], "--policies: invalid choice: 'wiat'"),
        (["simulate", *WORKLOAD, "--set", "kv_block=3"], 'did you mean "kv_blocks"'),
        (["simulate", *WORKLOAD, "--set", "kv_blocks"], "expected NAME=VALUE"),
        (["simulate", *WORKLOAD, "--set", "kv_blocks=many"], "kv_blocks"),
        (["simulate", "--dataset-name", "chat"], "--request-rate"),
        (["simulate", "--dataset-name", "caht", "--request-rate", "1"], "caht"),
        (["simulate", "--dataset-path", "/nowhere.csv"], "/nowhere.csv"),
        (["simulate", *WORKLOAD, "--iteration-time", "linear:1"], "linear:1"),
        (["simulate", *WORKLOAD, "--config", "/nowhere.json"], "/nowhere.json"),
    ],
)
def test_refusals_name_what_is_wrong(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.startswith("wait-core: ")
    assert out == ""


def test_a_malformed_row_is_named_by_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,10,5\n0.1,ten,5\n", encoding="utf-8")
    assert main(["simulate", "--dataset-path", str(trace)]) == 2
    err = capsys.readouterr().err
    assert "3" in err
    assert "ten" in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("wait-core 0.")


def test_what_was_dropped_and_assumed_is_said_and_in_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Failed rows, words for tokens, hash ids, missing times and a burstiness without effect."""
    burst, words, mooncake = (tmp_path / name for name in ("burst.csv", "words.csv", "mooncake.jsonl"))
    burst.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,API log\n45,ChatGPT,1087,0,1087,API log\n118,GPT-4,417,276,693,API log\n"
    )
    words.write_text("question_length,answer_length\n24,10\n6,0\n20,30\n")
    mooncake.write_text(
        '{"timestamp": 30000, "input_length": 700, "output_length": 52, "hash_ids": [46, 47]}\n'
        '{"timestamp": 20000, "input_length": 512, "output_length": 26, "hash_ids": [46]}\n'
    )
    cases: list[tuple[list[str], dict[str, int], list[str]]] = [
        (
            ["--dataset-path", str(burst), "--burstiness", "2"],
            {"failed (response of 0 tokens)": 1},
            ["the burstiness is ignored"],
        ),
        (
            ["--dataset-path", str(words), "--request-rate", "1"],
            {"output length 0": 1},
            ["lengths are words", "each word is taken for one token", "no arrival times: they are drawn"],
        ),
        (["--dataset-path", str(mooncake)], {}, ["not in order of arrival", "hash_ids name common prefixes"]),
    ]
    for arguments, dropped, notes in cases:
        assert main(["simulate", *arguments, "--json"]) == 0
        out, err = capsys.readouterr()
        result = json.loads(out)
        assert result["dropped"] == dropped
        for note in notes:
            assert any(note in said for said in result["notes"]), note
            assert note in err
        for reason, rows in dropped.items():
            assert f"note: {rows} row left out: {reason}\n" in err
        assert main(["compare", "--policies", "vllm", *arguments, "--json"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["notes"] == result["notes"]
        assert err.count("note: ") == len(dropped) + len(result["notes"])
    assert main(["plan", "--dataset-path", str(words), "--request-rate", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["dropped"] == {"output length 0": 1}
    assert "each word is taken for one token" in json.loads(out)["notes"]
    assert "note: each word is taken for one token\n" in err
