"""``fast_decode`` against stock, step by step: the same outputs, field by field, and the same state behind them."""

from __future__ import annotations

import random
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")

TIMES = {"events", "scheduler_stats", "timestamp"}  # when, not what


def flat(value: Any) -> Any:
    """Turn what vLLM's scheduler returns into plain lists and dicts that compare by content."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: flat(getattr(value, f.name)) for f in fields(value) if f.name not in TIMES}
    if hasattr(value, "__struct_fields__"):
        return {name: flat(getattr(value, name)) for name in value.__struct_fields__ if name not in TIMES}
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [flat(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return value if isinstance(value, (int, float, str, bytes, type(None))) else repr(value)


def state(scheduler: Any) -> dict[str, Any]:
    """Everything a later step depends on."""
    (group,) = scheduler.kv_cache_manager.coordinator.single_type_managers
    pool = scheduler.kv_cache_manager.block_pool
    requests = {
        name: {k: flat(v) for k, v in vars(r).items() if k not in {"sampling_params", "_block_hasher", "events"}}
        for name, r in scheduler.requests.items()
    }
    return {
        "requests": requests,
        "running": [r.request_id for r in scheduler.running],
        "waiting": [r.request_id for r in scheduler.waiting],
        "finished": sorted(scheduler.finished_req_ids),
        "reset": sorted(scheduler.reset_preempted_req_ids),
        "prefills": sorted(r.request_id for r in scheduler._inflight_prefills),
        "blocks": {name: [(b.block_id, b.ref_cnt) for b in blocks] for name, blocks in group.req_to_blocks.items()},
        "cached": dict(group.num_cached_block),
        "free": [b.block_id for b in pool.free_block_queue.get_all_free_blocks()],
        "hashes": {b.block_id: repr(b.block_hash) for b in pool.blocks},
        "placeholders": scheduler._spec_token_placeholders,
        "step": scheduler.current_step,
    }


SETUPS = [
    pytest.param({}, id="caching"),
    pytest.param({"prefix_caching": False}, id="no-caching"),
    pytest.param({"ahead": 0}, id="synchronous"),
    pytest.param({"policy": "priority"}, id="priority"),
    pytest.param({"block_size": 32, "max_num_batched_tokens": 64}, id="chunked"),
]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("extra", SETUPS)
def test_the_same_steps_as_stock(extra: dict[str, Any], seed: int) -> None:
    from in_process import Driver, Setup, random_prompt

    from wait_core.vllm import fast_decode

    setup = Setup(num_blocks=60, max_num_seqs=12, max_model_len=256, **({"max_num_batched_tokens": 300} | extra))
    stock, fast = Driver(setup), Driver(setup)
    asked: list[int] = []
    allocate = fast.scheduler.kv_cache_manager.allocate_slots

    def counted(*arguments: Any, **keywords: Any) -> Any:
        asked.append(1)
        return allocate(*arguments, **keywords)

    fast.scheduler.kv_cache_manager.allocate_slots = counted
    fast_decode.install(fast.scheduler)

    draw = random.Random(seed)
    prefix = random_prompt(draw, 40)
    added = scheduled = preempted = 0
    for i in range(300):
        for _ in range(draw.choice([0, 0, 0, 0, 1, 3])):
            prompt = (prefix if draw.random() < 0.5 else []) + random_prompt(draw, draw.randint(1, 120))
            sampling: dict[str, Any] = draw.choice(
                [{"ignore_eos": True}, {}, {"min_tokens": 3}, {"stop_token_ids": [7, 8, 9, 10]}]
            )
            job = (f"r{added}", prompt, draw.randint(3, 90), draw.randint(0, 2))
            stock.add(*job, **sampling)
            fast.add(*job, **sampling)
            added += 1
        if draw.random() < 0.05 and stock.scheduler.requests:
            name = draw.choice(sorted(stock.scheduler.requests))
            stock.abort(name)
            fast.abort(name)
        if draw.random() < 0.01:
            stock.scheduler.reset_prefix_cache(reset_running_requests=True)
            fast.scheduler.reset_prefix_cache(reset_running_requests=True)
        theirs, mine = stock.step(), fast.step()
        assert flat(mine.scheduled) == flat(theirs.scheduled), f"step {i}"
        assert flat(mine.outputs) == flat(theirs.outputs), f"step {i}"
        if i % 10 == 0 or i > 290:
            assert state(fast.scheduler) == state(stock.scheduler), f"step {i}"
        scheduled += len(theirs.scheduled.num_scheduled_tokens)
        preempted += len(theirs.scheduled.preempted_req_ids)
    assert preempted > 10, "memory must be scarce"
    assert len(asked) < 0.5 * scheduled, "stock's allocation was to be spared"


def test_what_it_does_not_cover_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from in_process import Driver, Setup, make_scheduler

    from wait_core.vllm import fast_decode
    from wait_core.vllm.config import ConfigError

    scheduler = Driver(Setup()).scheduler
    stock = scheduler.kv_cache_manager.allocate_slots
    scheduler.num_spec_tokens = 2
    with pytest.raises(ConfigError, match="speculative decoding"):
        fast_decode.install(scheduler)
    scheduler.num_spec_tokens = 0
    for more, message in (
        ({"kv_groups": ({"kind": "full"}, {"kind": "sliding_window", "window": 64})}, "several groups of the KV cache"),
        ({"connector": {}}, "a KV connector"),
        ({"scheduler": "Scheduler"}, "an engine without asynchronous scheduling"),
    ):
        with pytest.raises(ConfigError, match=message):
            fast_decode.install(make_scheduler(Setup(**more)))
    monkeypatch.setattr(fast_decode, "GUARDED", fast_decode.GUARDED[1:])
    with pytest.raises(ConfigError, match="code it restates has changed"):
        fast_decode.install(scheduler)
    monkeypatch.setattr(fast_decode, "GUARDED", (*fast_decode.GUARDED, "vllm.v1.request:Request.gone"))
    with pytest.raises(ConfigError, match=r"no Request\.gone"):
        fast_decode.install(scheduler)
    assert scheduler.kv_cache_manager.allocate_slots == stock, "nothing is installed by halves"
