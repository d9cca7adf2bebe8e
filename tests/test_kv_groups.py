"""KV caches of several groups: how a model's layers are divided, and what the simulator counts of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from wait_core import WaitCoreError, hardware, plan, simulate
from wait_core.cli import main
from wait_core.hardware.cache_groups import cache_groups
from wait_core.hardware.kv_groups import context_tokens, division
from wait_core.planning import goodput_bound
from wait_core.workload import sampled

if TYPE_CHECKING:
    from pathlib import Path

MODEL = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "hidden_size": 4096}
FULL, WINDOW = "full_attention", "sliding_attention"
GPT_OSS = "gpt-oss-120b-h200-sxm"
ASKED = [
    "--gpu",
    "h200",
    "--model",
    "gpt-oss-120b",
    "--dataset-name",
    "chat",
    "--request-rate",
    "9",
    "--num-prompts",
    "99",
]


def layers(full: int, windows: int, **more: Any) -> dict[str, Any]:
    types = [FULL] * full + [WINDOW] * windows
    return MODEL | {"num_hidden_layers": full + windows, "layer_types": types, "sliding_window": 1024} | more


def full(count: int, block_size: int = 16) -> dict[str, Any]:
    return {"kind": "full", "block_size": block_size, "count": count}


def window(count: int, block_size: int = 16, tokens: int = 1024) -> dict[str, Any]:
    return {"kind": "sliding_window", "block_size": block_size, "count": count, "window": tokens}


@pytest.mark.parametrize(
    ("config", "expected", "layers_of_a_block"),
    [
        (layers(10, 20), [window(2), full(1)], 10),
        # The last group of windows is filled up.
        (layers(10, 52), [window(6), full(1)], 10),
        # So similar in number that one group of each wastes less than twelve full layers would.
        (layers(13, 12), [full(1), window(1)], 13),
        (layers(0, 32), [window(1)], 32),
        (
            MODEL | {"num_hidden_layers": 48, "attention_chunk_size": 8192},
            [{"kind": "chunked_local", "block_size": 16, "count": 3, "chunk": 8192}, full(1)],
            12,
        ),
        # A full layer with a quarter of the KV of the others has four times the tokens in a block.
        (
            layers(5, 25, global_head_dim=128, num_global_key_value_heads=2),
            [window(5), full(1, 64)],
            5,
        ),
    ],
)
def test_layers_are_divided_as_vllm_does(
    config: dict[str, Any], expected: list[dict[str, Any]], layers_of_a_block: int
) -> None:
    found = division(cache_groups(config, tensor_parallel_size=1, bytes_per_value=2), 16)
    assert found.groups == expected
    assert found.block_bytes == layers_of_a_block * 16 * 2 * 8 * 128 * 2


def test_the_pool_has_the_bytes_of_the_cache() -> None:
    for name, each in hardware.shipped().items():
        cache = each.kv_cache()
        kinds = [group.kind for group in each.cache_groups]
        assert each.kv_cache(as_full=True) == {"kv_blocks": each.kv_blocks}
        if kinds == ["full"]:
            assert cache == {"kv_blocks": each.kv_blocks}, name
            continue
        assert cache["kv_groups"] == [full(1), window(1, tokens=128)]
        block_bytes = division(each.cache_groups, each.block_size).block_bytes
        assert 0 <= each.memory.kv_cache - cache["kv_blocks"] * block_bytes < block_bytes
        # Where no window is exceeded, all groups together take what full layers would.
        assert sum(group["count"] for group in cache["kv_groups"]) * block_bytes == 16 * each.kv_bytes_per_token
        assert cache["kv_blocks"] // 2 == each.kv_blocks
    assert "gpt-oss" in "".join(hardware.shipped())


def test_windows_leave_room_for_more_requests() -> None:
    each = hardware.shipped()[GPT_OSS]
    offered: dict[str, Any] = {"dataset_name": "rag", "request_rate": float("inf"), "num_prompts": 600}
    whole = simulate("vllm", **offered, **each.settings(as_full=True))
    apart = simulate("vllm", **offered, **each.settings())
    assert apart.run.series[2].max() > 1.5 * whole.run.series[2].max()
    assert apart.summary()["duration"] < whole.summary()["duration"]
    assert "peak_kv_blocks_by_group" not in whole.summary()
    held = apart.summary()["peak_kv_blocks_by_group"]
    assert [kind for kind, _ in held] == ["full", "sliding_window"]
    assert sum(blocks for _, blocks in held) == apart.summary()["peak_kv_blocks"]
    # Prompts of 128 tokens and more: a window holds 9 blocks, and of a prefill in one piece all of them.
    assert held[1][1] < held[0][1] / 5
    by_name = simulate("vllm", **offered, iteration_time=GPT_OSS, max_num_seqs=1024, token_budget=8192)
    assert by_name.to_json() == apart.to_json()


def test_a_plan_counts_windows_as_the_simulator_does() -> None:
    each = hardware.shipped()[GPT_OSS]
    asked: dict[str, Any] = {"types": [(4000, 500, 4.0)], "num_prompts": 200, "runs": 1}
    whole, apart = (plan(**asked, **each.settings(as_full=as_full)) for as_full in (True, False))
    assert whole.engine.capacity == each.kv_blocks * 16
    assert 1.9 * whole.engine.capacity < apart.engine.capacity < 2 * whole.engine.capacity
    assert whole.engine_limit.request_rate < apart.engine_limit.request_rate <= apart.bound.request_rate
    requests = sampled("rag", request_rate=20.0, num_prompts=300, seed=1)
    objective: dict[str, Any] = {"slo_ttft_ms": 2e3, "slo_tpot_ms": 50.0, "iteration_time": GPT_OSS}
    blocks = each.kv_blocks
    assert goodput_bound(requests, **objective) >= goodput_bound(requests, **objective, kv_blocks=blocks)


def test_tokens_of_requests_that_a_pool_holds() -> None:
    assert context_tokens(7_424, 16, [{"kind": "full"}], 977) == 7_424 * 16
    # 60 tokens take 15 blocks of the full group, and of each window no less than 2: 19 for 60 tokens.
    groups: list[dict[str, Any]] = [{"kind": "full"}, {"kind": "sliding_window", "window": 8, "count": 2}]
    assert context_tokens(190, 4, groups, 60) == 600
    assert context_tokens(190, 4, groups, 8) == 190 * 4 // 3
    chunks: list[dict[str, Any]] = [{"kind": "full", "block_size": 8}, {"kind": "chunked_local", "chunk": 16}]
    assert context_tokens(100, 4, chunks, 16) == 100 * 16 // 6
    assert context_tokens(100, 4, chunks, 17) == 100 * 8


def test_groups_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups: Any = [{"kind": "full"}, {"kind": "sliding_window", "window": 256, "count": 5}]
    asked = ["simulate", "--policy", "vllm", *ASKED[4:], "--json"]

    def figures(*options: str) -> dict[str, Any]:
        assert main([*asked, *options]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    by_option = figures("--set", f"kv_groups={json.dumps(groups)}", "--set", "kv_blocks=40000")
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"kv_groups": groups, "kv_blocks": 40_000}), encoding="utf-8")
    assert figures("--config", str(file)) == by_option
    offered: dict[str, Any] = {"dataset_name": "chat", "request_rate": 9.0, "num_prompts": 99}
    report = simulate("vllm", **offered, kv_groups=groups, kv_blocks=40_000)
    assert json.loads(report.to_json()) == by_option
    assert [kind for kind, _ in by_option["peak_kv_blocks_by_group"]] == ["full", "sliding_window"]
    one = figures("--set", 'kv_groups=[{"kind": "full"}]', "--set", "kv_blocks=7424")
    assert one == figures()
    planned = plan(types=[(900, 100, 2.0)], num_prompts=200, runs=1, kv_groups=groups, kv_blocks=40_000)
    assert planned.engine.capacity == 40_000 * 16 * 1000 // (1000 + 5 * 256)
    with pytest.raises(WaitCoreError, match="kv_blocks is missing: how large the blocks of your kv_groups are"):
        simulate("vllm", **offered, kv_groups=groups)


def test_a_deployment_brings_its_groups(capsys: pytest.CaptureFixture[str]) -> None:
    each = hardware.shipped()[GPT_OSS]
    blocks = []
    for options in ([], ["--set", "prefix_caching=true"], ["--set", "kv_blocks=9000"]):
        assert main(["simulate", *ASKED, "--json", *options]) == 0
        found = json.loads(capsys.readouterr().out)
        blocks.append((found["kv_blocks"], "peak_kv_blocks_by_group" in found))
    assert blocks == [(each.kv_cache()["kv_blocks"], True)] * 2 + [(9000, True)]
    assert main(["compare", *ASKED, "--json", "--policies", "vllm", "adaptive"]) == 0
    assert all(json.loads(line)["peak_kv_blocks_by_group"] for line in capsys.readouterr().out.splitlines())
    assert main(["plan", *ASKED, "--json", "--runs", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"]["kv_blocks"] == each.kv_cache()["kv_blocks"]
    assert main(["simulate", *ASKED, "--set", 'kv_groups=[{"kind": "full"}]']) == 2
    assert "kv_blocks is missing" in capsys.readouterr().err
    assert main(["hardware", *ASKED[:4]]) == 0
    shown = capsys.readouterr().out
    assert "18 sliding-window layers of 128 tokens keep that much in the KV cache" in shown
    assert "108,099 blocks for the groups 1 x full, 1 x sliding_window" in shown


def test_conversations_find_their_turns_in_every_group() -> None:
    offered: dict[str, Any] = {"dataset_name": "multi-turn", "request_rate": 9.0, "num_prompts": 300}
    each = hardware.shipped()[GPT_OSS].settings()
    cold, warm = (simulate("vllm", **offered, **each, prefix_caching=caching).summary() for caching in (False, True))
    assert (cold["prefix_hit_rate"], warm["completed"]) == (0, 300)
    assert warm["prefill_tokens"] + warm["cached_tokens"] == cold["prefill_tokens"]
    # With memory for all of it, what is cached is what one full group would have: all that was said before.
    full = simulate("vllm", **offered, **hardware.shipped()[GPT_OSS].settings(as_full=True), prefix_caching=True)
    assert warm["prefix_hit_rate"] == pytest.approx(full.summary()["prefix_hit_rate"], abs=0.01)
    assert warm["prefix_hit_rate"] > 0.5
    # A window gives its blocks back, and they are reused first: the pool lasts for more conversations.
    scarce = {name: value for name, value in each.items() if name != "kv_blocks"} | {"kv_blocks": 6000}
    found = simulate("vllm", **offered, **scarce, prefix_caching=True).summary()
    assert 0 < found["prefix_hit_rate"] < warm["prefix_hit_rate"]
    assert found["completed"] == 300


def test_what_cannot_be_cached_is_refused_with_what_to_change() -> None:
    groups: Any = [{"kind": "full"}, {"kind": "state", "blocks": 1}]
    with pytest.raises(WaitCoreError, match=r"kv_groups\[1\].aligned = false: with prefix_caching must be true"):
        simulate(
            "vllm", dataset_name="multi-turn", request_rate=9, kv_groups=groups, kv_blocks=9000, prefix_caching=True
        )
