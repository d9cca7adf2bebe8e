"""A live API server with the engine in a process of its own: `wait_core_*` beside `vllm:*` at /metrics."""

from __future__ import annotations

import json
import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from engine import LLAMA, write_model
from live import Server, get, installed_entry_points, samples, write_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REQUESTS = 48
WAIT_CORE = {"policy": "wait", "types": [{"prompt": 60, "output": 30, "rate": 1.0}]}


@contextmanager
def serving(folder: Path, settings: dict[str, Any], **more: object) -> Iterator[tuple[str, Path]]:
    model = write_model(folder / "model")
    (model / "config.json").write_text(json.dumps(LLAMA))
    write_tokenizer(model, LLAMA["vocab_size"])
    installed_entry_points(folder)
    options = {
        "served-model-name": "tiny",
        "dtype": "float32",
        "enforce-eager": True,
        "max-model-len": 256,
        "block-size": 32,
        "num-gpu-blocks-override": 40,
        "max-num-seqs": 32,
        "max-num-batched-tokens": 2048,
        "scheduler-cls": "wait_core.vllm.WaitScheduler",
        "additional-config": {"wait_core": settings},
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    server = Server(model, folder, options, folder / "server.log")
    try:
        server.wait()
        yield server.url, server.log
    finally:
        server.stop()


def complete(url: str, number: int) -> dict[str, Any]:
    prompt = [3 + (number * 31 + i * 7) % 500 for i in range(60)]
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 30, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(  # noqa: S310
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
        return dict(json.load(answer))


@pytest.mark.timeout(400)
def test_metrics_arrive(tmp_path: Path) -> None:
    with serving(tmp_path, WAIT_CORE) as (url, log):
        look(url, log)


def look(url: str, log: Path) -> None:
    labels = '{engine="0",model_name="tiny"}'
    before = samples(get(f"{url}/metrics"))
    assert before[f"wait_core_active{labels}"] == 1
    assert before[f"wait_core_admitted_total{labels}"] == 0
    with ThreadPoolExecutor(REQUESTS) as pool:
        answers = list(pool.map(lambda number: complete(url, number), range(REQUESTS)))
    assert all(answer["usage"]["completion_tokens"] == 30 for answer in answers)
    text = get(f"{url}/metrics")
    shown = samples(text)
    assert shown[f"wait_core_admitted_total{labels}"] == REQUESTS
    assert shown[f"wait_core_hold_seconds_count{labels}"] == REQUESTS
    assert shown[f"wait_core_hold_seconds_sum{labels}"] > 0
    assert shown[f"wait_core_decision_seconds_count{labels}"] >= 30
    assert 0 < shown[f"wait_core_arrival_rate{labels}"] <= REQUESTS
    assert shown[f"wait_core_held_requests{labels}"] == 0
    assert shown['wait_core_policy_info{engine="0",mode="active",model_name="tiny",policy="wait"}'] == 1
    assert shown['wait_core_holds_total{engine="0",model_name="tiny",reason="below_threshold"}'] > 0
    # Beside vLLM's, which stay as they are.
    assert shown[f"vllm:num_requests_running{labels}"] == 0
    assert shown[f"vllm:num_preemptions_total{labels}"] == shown[f"wait_core_preemptions_total{labels}"]
    ours = [name for name in shown if name.startswith("wait_core_")]
    assert all('engine="0"' in name and 'model_name="tiny"' in name for name in ours)
    names = {re.split(r"[{]", name)[0] for name in shown}
    assert not [name for name in names if "wait_core" in name and not name.startswith("wait_core_")]
    said = log.read_text()
    assert re.search(r"thresholds +\[[\d.]+\] +planned", said), "the settings in force are logged at the start"
    assert "KV fetch" not in said


def law_of(url: str) -> tuple[dict[str, float], int]:
    """Return what /metrics says of the law of rank 0, once it has learned one, and how many requests that took."""
    labels = '{engine="0",model_name="tiny"}'
    waves = 0
    while waves < 20:
        waves += 1
        with ThreadPoolExecutor(8) as pool:  # for both ranks; thirty steps, reported once a second
            list(pool.map(lambda number: complete(url, number), range(8)))
        shown = samples(get(f"{url}/metrics"))
        if f"wait_core_iteration_time_error_ratio{labels}" in shown:  # it has predicted what it had not learned from
            break
    names = ("iteration_time_steps", "iteration_time_error_ratio", "iteration_time_used")
    found = {name: shown[f"wait_core_{name}{labels}"] for name in names}
    seconds = "wait_core_iteration_time_seconds"
    steps = ("decode", "decodes", "prompt")
    found |= {step: shown[f'{seconds}{{batch="{step}",engine="0",model_name="tiny"}}'] for step in steps}
    return found, 8 * waves


@pytest.mark.timeout(600)
def test_two_data_parallel_ranks(tmp_path: Path) -> None:
    """One scheduler a rank, each with a queue, a log and figures of its own."""
    settings: dict[str, Any] = {"log_file": str(tmp_path / "decisions.jsonl"), "known_lengths": False}
    with serving(tmp_path, settings, data_parallel_size=2) as (url, log):
        with ThreadPoolExecutor(REQUESTS) as pool:
            answers = list(pool.map(lambda number: complete(url, number), range(REQUESTS)))
        assert all(answer["usage"]["completion_tokens"] == 30 for answer in answers)
        law, more = law_of(url)
        shown = samples(get(f"{url}/metrics"))
    assert law["iteration_time_steps"] >= 64
    assert law["iteration_time_error_ratio"] >= 0
    assert law["iteration_time_used"] in {0, 1}
    assert 0 < law["decode"] <= law["decodes"]
    assert law["prompt"] > 0
    admitted = []
    for rank in "01":
        labels = f'{{engine="{rank}",model_name="tiny"}}'
        admitted.append(shown[f"wait_core_admitted_total{labels}"])
        assert shown[f"wait_core_active{labels}"] == 1
        assert shown[f"wait_core_held_requests{labels}"] == 0
        assert shown[f"wait_core_preemptions_total{labels}"] == shown[f"vllm:num_preemptions_total{labels}"]
        assert 0 <= shown[f"wait_core_overflow_probability{labels}"] <= 1
        assert shown[f"wait_core_kv_forecast_peak_ratio{labels}"] >= 0
        decisions = tmp_path / ("decisions.jsonl" if rank == "0" else "decisions.rank1.jsonl")
        assert sum('"add"' in line for line in decisions.read_text().splitlines()) == admitted[-1]
        assert json.loads(decisions.read_text().splitlines()[0])["settings"]["kv_blocks"] == 39, "its own, not shared"
    assert sum(admitted) == REQUESTS + more
    assert min(admitted) > 0, "both ranks serve"
    assert "wait-core failed" not in log.read_text()


@pytest.mark.timeout(400)
def test_a_wrong_setting_ends_the_start_and_is_said_last(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no server"), serving(tmp_path, {"watchdgo_s": 1}):
        pass
    last = (tmp_path / "server.log").read_text().splitlines()[-1]
    assert last.endswith('unknown setting "watchdgo_s"; did you mean "watchdog_s"?')
