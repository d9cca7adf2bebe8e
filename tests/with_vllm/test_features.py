"""Nothing lost: vLLM's features under the adapter, with the tokens of stock; and what it cannot serve is refused."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Run

pytestmark = pytest.mark.filterwarnings("ignore")

WAIT = {"policy": "wait", "types": [{"prompt": 95, "output": 34, "rate": 1.0}]}
NESTED = {
    "policy": "nested-wait",
    "work_conserving": False,
    "watchdog_s": 0.05,
    "types": [{"prompt": 95, "output": 20, "rate": 1.0}, {"prompt": 95, "output": 60, "rate": 1.0}],
}
ASYNC = {"async_scheduling": True}
LORA = {"engine": {"enable_lora": True, "max_lora_rank": 8}}
DRAFTS = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
NGRAM = {"engine": {"speculative_config": DRAFTS}}


def serve(run: Run, **job: Any) -> dict[str, Any]:
    """Run ``features.py`` and check what holds of every engine, stock or not."""
    result = run(program="features.py", **job)
    assert result["free_blocks_at_end"] == result["usable_blocks"]
    return result


def assert_same(mine: dict[str, Any], stock: dict[str, Any]) -> None:
    """Every request got the tokens it gets from stock; aborted ones a beginning of them."""
    assert mine["scheduler"] == ("WaitScheduler" if mine["async_scheduling"] else "SyncWaitScheduler")
    assert mine["adapter"]["active"]
    assert mine["log"].count("wait-core failed") == 0
    left = {*mine["aborted"], *stock["aborted"]}
    assert {name for name in stock["received"] if name not in left} <= set(mine["received"])
    for name, samples in mine["received"].items():
        for index, tokens in samples.items():
            theirs = stock["received"].get(name, {}).get(index, [])
            if name in left:
                short = min(len(tokens), len(theirs))
                assert tokens[:short] == theirs[:short], name
            else:
                assert tokens == theirs, name


@pytest.mark.parametrize(
    "settings",
    [WAIT, NESTED, {"known_lengths": False}, {"policy": "vllm", "fast_decode": True}],
    ids=["wait", "nested-wait", "adaptive", "vllm-fast-decode"],
)
def test_features_side_by_side(run: Run, settings: dict[str, Any]) -> None:
    """Asynchronous scheduling; several samples; structured output; streaming; aborts; resets; pauses; sleep."""
    stock = serve(run, **ASYNC)
    mine = serve(run, **ASYNC, scheduler_cls="wait_core.vllm.WaitScheduler", wait_core=settings)
    assert_same(mine, stock)
    assert (mine["adapter"]["paused"] > 0) == (settings is NESTED), "residents pause and keep their KV"
    kinds = {name.partition("-")[0] for name in mine["received"]}
    assert kinds >= {"plain", "samples", "structured", "streaming"}
    assert set(mine["aborted"].values()) == {"waiting", "prefilling", "decoding", "preempted", "finished"}
    for name, samples in mine["received"].items():
        if name.startswith("samples"):
            assert set(samples) == {"0", "1", "2"}, name
        if name.startswith("streaming"):
            assert mine["streamed"][name] >= len(samples["0"]) // 2, "token by token"
        if name.startswith("structured"):
            assert re.fullmatch(r"[a-f]{5}[01]{9}z+", decoded(samples["0"])), name


def decoded(tokens: list[int]) -> str:
    """Return the text of byte-level `tokens`, without the end of the sequence."""
    from tokenizers import pre_tokenizers

    text = dict(enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=3))
    return "".join(text[token] for token in tokens if token != 2)


def test_lora(run: Run) -> None:
    stock, without = serve(run, **LORA), serve(run, **ASYNC)
    mine = serve(run, **LORA, scheduler_cls="wait_core.vllm.WaitScheduler", wait_core=WAIT)
    assert_same(mine, stock)
    assert stock["received"] != without["received"], "the adapter must matter"


@pytest.mark.parametrize("settings", [WAIT, {}], ids=["wait", "adaptive"])
def test_speculative_decoding(run: Run, settings: dict[str, Any]) -> None:
    stock = serve(run, **NGRAM)
    mine = serve(run, **NGRAM, scheduler_cls="wait_core.vllm.WaitScheduler", wait_core=settings)
    assert mine["spec"] == 3
    assert_same(mine, stock)


def refusal(scheduler: Any) -> str:
    """Return why this engine is refused; empty if it is served."""
    from wait_core.vllm import support
    from wait_core.vllm.config import ConfigError

    try:
        support.engine(scheduler)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("dcp_world_size", 2, "decode context parallelism: --decode-context-parallel-size 1; or start"),
    ],
)
def test_what_the_core_cannot_account_for_is_refused(attribute: str, value: object, message: str) -> None:
    from in_process import Setup, make_scheduler

    scheduler = make_scheduler(Setup())
    assert not refusal(scheduler)
    setattr(scheduler, attribute, value)
    assert message in refusal(scheduler)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("is_diffusion", True, "a diffusion model (it needs vLLM's own scheduler): start vLLM without"),
        ("pipeline_parallel_size", 2, "that does not: derive it from SyncWaitScheduler; or start vLLM without"),
    ],
)
def test_models_the_core_cannot_account_for_are_refused(attribute: str, value: object, message: str) -> None:
    from in_process import Setup, make_scheduler

    scheduler = make_scheduler(Setup())
    model = scheduler.vllm_config.model_config
    scheduler.vllm_config = SimpleNamespace(
        model_config=SimpleNamespace(is_diffusion=model.is_diffusion),
        parallel_config=SimpleNamespace(pipeline_parallel_size=1),
        scheduler_config=SimpleNamespace(async_scheduling=False),
        max_concurrent_batches=1,
    )
    assert not refusal(scheduler)
    owner = scheduler.vllm_config.parallel_config if "parallel" in attribute else scheduler.vllm_config.model_config
    setattr(owner, attribute, value)
    assert message in refusal(scheduler)


@pytest.mark.parametrize("setting", ["log_file", "step_log_file"])
def test_a_log_that_cannot_be_begun_is_refused_with_what_to_do(setting: str, tmp_path: Path) -> None:
    from in_process import Setup, make_scheduler

    from wait_core.vllm.config import ConfigError

    path = str(tmp_path / "absent" / "log.jsonl")
    with pytest.raises(ConfigError) as refused:
        make_scheduler(Setup(scheduler="WaitScheduler", wait_core={setting: path}))
    assert str(refused.value) == (
        f"wait_core.{setting} = {path!r}: No such file or directory: name a file in a folder that vLLM may write, or "
        "leave it out"
    )
