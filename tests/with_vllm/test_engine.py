"""The adapter in the real engine: same tokens as stock vLLM, fewer preemptions, nothing lost, nothing stuck.

39 usable blocks of 32 tokens, at most 32 running, 200 requests with prompts of 8 to 150 tokens and 4 to 64 output
tokens: stock vLLM preempts dozens of times. All runs are fp32 and greedy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from engine import Job, workload

if TYPE_CHECKING:
    from conftest import Run

OURS = "wait_core.vllm.WaitScheduler"
# One type with the mean lengths; its threshold is the largest the memory allows.
WAIT = {"policy": "wait", "types": [{"prompt": 77, "output": 34, "rate": 1.0}]}
CACHING = {"engine": {"enable_prefix_caching": True}}


def ours(run: Run, **job: Any) -> dict[str, Any]:
    job.setdefault("async_scheduling", True)
    return run(scheduler_cls=OURS, wait_core=WAIT, **job)


def assert_complete(result: dict[str, Any]) -> None:
    """Every request that was not aborted got all its tokens, and every block came back."""
    job = result["job"]
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in job.items()}
    asked = workload(Job(**fields))
    for name, _, length in asked:
        if result["reasons"][name] != "abort":
            assert len(result["tokens"][name]) == length, name
    assert result["free_blocks_at_end"] == result["usable_blocks"]


@pytest.mark.parametrize("async_scheduling", [True, False], ids=["async", "sync"])
@pytest.mark.parametrize("extra", [{}, CACHING], ids=["plain", "prefix-caching"])
def test_same_tokens_fewer_preemptions(run: Run, extra: dict[str, Any], async_scheduling: bool) -> None:
    stock = run(**extra, async_scheduling=async_scheduling)
    mine = ours(run, **extra, async_scheduling=async_scheduling)
    print(
        f"steps {stock['steps']} stock, {mine['steps']} ours; "
        f"preemptions {stock['preemptions']} stock, {mine['preemptions']} ours"
    )
    # On the class that vLLM would take.
    assert mine["scheduler"] == ("WaitScheduler" if async_scheduling else "SyncWaitScheduler")
    assert mine["async_scheduling"] is async_scheduling
    assert mine["batch_queue_size"] == (2 if async_scheduling else 1)
    assert mine["adapter"]["active"]
    assert mine["adapter"]["steps"] >= mine["steps"]
    assert_complete(mine)
    assert mine["tokens"] == stock["tokens"]
    assert stock["preemptions"] > 20, "the scenario must be one in which stock vLLM preempts"
    assert mine["preemptions"] < stock["preemptions"]
    assert mine["steps"] <= 1.5 * stock["steps"]
    assert mine["empty_steps"] <= 5, "nothing may be held while the engine idles"


def test_the_model_reads_its_kv_cache(run: Run) -> None:
    """Tokens depend on the whole context, or comparing them would prove nothing about the KV cache."""
    one = run(requests=1, prompt_tokens=[60, 60], output_tokens=[40, 40])
    two = run(requests=1, prompt_tokens=[60, 60], output_tokens=[40, 40], shared_prefix=1)
    assert one["tokens"]["r0"] != two["tokens"]["r0"]
    assert len(set(one["tokens"]["r0"])) > 20


def test_a_shared_prefix(run: Run) -> None:
    """Blocks shared between requests: the core counts them for each, the reported free blocks set it right."""
    job: dict[str, Any] = CACHING | {"shared_prefix": 64, "prompt_tokens": [8, 100], "async_scheduling": True}
    stock, mine = run(**job), ours(run, **job)
    print(f"steps {stock['steps']} stock, {mine['steps']} ours")
    assert mine["adapter"]["active"]
    assert_complete(mine)
    assert mine["tokens"] == stock["tokens"]
    assert mine["preemptions"] < stock["preemptions"]


def test_aborts_are_honoured(run: Run) -> None:
    stock = run(async_scheduling=True)
    mine = ours(run, abort_every=5)
    aborted = [name for name, reason in mine["reasons"].items() if reason == "abort"]
    assert len(aborted) > 20
    assert_complete(mine)
    for name, tokens in mine["tokens"].items():
        assert tokens == stock["tokens"][name][: len(tokens)]
        assert name in aborted or tokens == stock["tokens"][name]


def test_prefix_cache_reset_while_running(run: Run) -> None:
    stock = run(async_scheduling=True)
    mine = ours(run, reset_prefix_cache_every=50, engine={"enable_prefix_caching": True})
    assert mine["preemptions"] > stock["preemptions"] // 4, "each reset preempts all that run"
    assert mine["adapter"]["active"]
    assert_complete(mine)
    assert mine["tokens"] == stock["tokens"]


def test_arrivals_while_serving(run: Run) -> None:
    stock = run(async_scheduling=True, arrivals_per_step=1)
    mine = ours(run, arrivals_per_step=1)
    assert_complete(mine)
    assert mine["tokens"] == stock["tokens"]


@pytest.mark.parametrize("hidden", [False, True])
def test_adaptive_needs_no_settings(run: Run, hidden: bool) -> None:
    """The default policy: lengths known from max_tokens and ignore_eos, or withheld from it altogether."""
    stock = run(async_scheduling=True)
    settings = {"known_lengths": False, "use_max_tokens": False} if hidden else {}
    mine = run(scheduler_cls="wait_core.vllm.WaitScheduler", wait_core=settings, async_scheduling=True)
    counts = [f"{r['steps']} steps, {r['preemptions']} preemptions" for r in (stock, mine)]
    print(f"stock {counts[0]}; adaptive {counts[1]}")
    assert mine["adapter"]["active"]
    assert mine["adapter"]["policy"] == "adaptive"
    assert_complete(mine)
    assert mine["tokens"] == stock["tokens"]
    # A preemption is accepted where idle memory would cost more: there are fewer than stock's, not next to none.
    assert mine["preemptions"] < stock["preemptions"]
    assert mine["steps"] <= 1.1 * stock["steps"]


@pytest.mark.parametrize("policy", ["adaptive", "vllm"])
def test_a_prefix_that_all_share_is_charged_once(run: Run, policy: str) -> None:
    """16 of the 39 blocks hold the shared system prompt: three whole prompts fit, but a dozen requests do."""
    job: dict[str, Any] = {"requests": 60, "shared_prefix": 512, "prompt_tokens": (8, 40), "async_scheduling": True}
    job |= {"engine": {"enable_prefix_caching": True, "max_model_len": 1024}}
    stock = run(**job)
    mine = run(scheduler_cls=OURS, wait_core={"policy": policy}, **job)
    counts = [[r[key] for key in ("steps", "max_running", "preemptions")] for r in (stock, mine)]
    print(f"stock {counts[0]}, {policy} {counts[1]} (steps, most running, preemptions)")
    assert mine["adapter"]["active"]
    assert_complete(mine)
    assert mine["tokens"] == stock["tokens"]
    assert stock["preemptions"] > 20
    if policy == "vllm":
        assert counts[1] == counts[0]
    # A burst whose prompts fit is admitted at once, as by stock, and some of it preempted later.
    assert mine["max_running"] >= stock["max_running"]
    assert mine["steps"] <= 1.02 * stock["steps"]
    assert mine["preemptions"] <= 1.05 * stock["preemptions"]


@pytest.mark.parametrize("kind", ["error", "panic"])
@pytest.mark.parametrize(("call", "after"), [("add", 100), ("plan", 0), ("plan", 100), ("complete", 100), ("abort", 5)])
def test_an_error_of_ours_leaves_stock_scheduling(run: Run, call: str, after: int, kind: str) -> None:
    stock = run(async_scheduling=True)
    mine = ours(run, fault={"call": call, "after": after, "kind": kind}, abort_every=9 if call == "abort" else 0)
    assert not mine["adapter"]["active"]
    assert mine["log"].count("wait-core failed") == 1
    assert f"injected into {call}" in mine["log"]
    assert_complete(mine)
    if call != "abort":
        assert mine["tokens"] == stock["tokens"]


def test_the_watchdog_opens_the_gates(run: Run) -> None:
    stock = run(async_scheduling=True, requests=60)
    fault = {"call": "plan", "after": 20, "kind": "stall"}
    mine = run(
        scheduler_cls=OURS, wait_core=WAIT | {"watchdog_s": 0.05}, async_scheduling=True, requests=60, fault=fault
    )
    assert mine["adapter"]["active"], "a stall is not an error"
    assert mine["adapter"]["watchdog"] > 0
    assert mine["log"].count("the gates open") == 1, "says why once"
    assert_complete(mine)
    assert mine["tokens"] == stock["tokens"]
