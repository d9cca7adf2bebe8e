"""Impossible fleets are refused with a clear error; without fresh reports a router falls back, and loses no request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wait_core import WaitCoreError, simulate
from wait_core.cli import main
from wait_core.fleet import ROUTERS
from wait_core.simulation import Change, Disaggregated, Transfer
from wait_core.workload import sampled

NEVER = np.iinfo(np.uint64).max
CORE: dict[str, Any] = {"kv_blocks": 150, "max_num_seqs": 16, "token_budget": 256}


def test_bad_input_is_refused_by_name() -> None:
    requests = sampled("p64d32", request_rate=60.0, num_prompts=10)

    def refused(match: str, **given: Any) -> None:
        with pytest.raises(WaitCoreError, match=match):
            simulate("adaptive", requests=requests, **{"replicas": 2} | given, **CORE)

    refused("replicas = 0", replicas=0)
    refused("replicas = 0", replicas=[])
    refused("router = 'nearest': one of random", router="nearest")
    refused("unknown field `patience`", router={"router": "forecast", "patience": 3})
    refused("staleness_s = -1", staleness_s=-1)
    refused("threads = 0", threads=0)
    refused("routers = 0", routers=0)
    refused("changes.replica = 2", changes=[Change(at_s=0, replica=2, kind="fail")])
    refused("at_s = -1", changes=[Change(at_s=-1, replica=0, kind="fail")])
    refused('kind = "die": must be one of', changes=[Change(at_s=1, replica=0, kind="die")])  # type: ignore[arg-type]
    refused("did you mean", replicas=[{"kv_block": 3}])
    other = {"iteration_time": "qwen3-32b-h200-sxm"}
    refused(
        "replica 1: a law of Qwen/Qwen3-32B, but that of replica 0 is of", replicas=[{"iteration_time": "a100"}, other]
    )
    pools = Disaggregated(prefill=[{"iteration_time": "llama-3.1-8b-l40s"}], decode=[other], transfer=Transfer.of())
    refused("replica 1: a law of Qwen/Qwen3-32B, but that of replica 0 is of .*Llama-3.1-8B", replicas=pools)


@pytest.mark.parametrize("router", ROUTERS)
def test_reports_older_than_a_router_believes_lose_no_request(router: str) -> None:
    requests = sampled("p64d32", request_rate=40.0, num_prompts=250)
    asked: dict[str, Any] = {"replicas": 3, "staleness_s": 100.0, "seed": 3, **CORE}

    def run(name: str) -> Any:
        return simulate("vllm", requests=requests, router={"router": name, "stale_after": 1.0}, **asked).run

    found = run(router)
    assert (found.finished_ns != NEVER).all()
    if router in {"least-kv", "vllm", "forecast"}:
        assert found.__reduce__() == run("power-of-two").__reduce__(), "without a fresh report"


@pytest.mark.parametrize(
    ("command", "wrong", "said"),
    [
        ("simulate", ["--router", "nearest"], "--router: invalid choice: 'nearest'"),
        ("compare", ["--routers", "random", "nearest"], "--routers: invalid choice: 'nearest'"),
        ("simulate", ["--replicas", "0"], "--replicas: '0' is not"),
        ("simulate", ["--decode-replicas", "0"], "--decode-replicas: '0' is not"),
        ("simulate", ["--replicas", "2", "--num-routers", "0"], "--num-routers: '0' is not"),
        ("compare", ["--replicas", "2", "--threads", "0"], "--threads: '0' is not"),
    ],
)
def test_the_commands_refuse_in_a_line(
    command: str, wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--dataset-name", "chat", "--request-rate", "20", *wrong]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.strip().splitlines()) == 1
