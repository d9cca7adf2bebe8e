"""Shipped deployments and the counting of caches and memory: what needs no optional package."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import wait_core
from wait_core import WaitCoreError, hardware
from wait_core._core import iteration_seconds
from wait_core.cli import main
from wait_core.hardware import cache_groups, iteration_time, kv_blocks_of, law, memory, package
from wait_core.hardware.deployment import Deployment

if TYPE_CHECKING:
    from pathlib import Path

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "model_type": "llama",
}  # fmt: skip
GPT_OSS = {
    "num_hidden_layers": 36, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "hidden_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 18, "sliding_window": 128,
}  # fmt: skip
NAME = "llama-3.1-8b-h100-sxm"


def groups(config: dict[str, Any], gpus: int = 1) -> list[tuple[str, int, int, int | None]]:
    found = cache_groups.cache_groups(config, tensor_parallel_size=gpus, bytes_per_value=2)
    return [(group.kind, group.layers, group.bytes_per_token, group.window) for group in found]


def test_shipped_deployments_plan_and_simulate_by_name() -> None:
    assert len(hardware.shipped()) >= 8
    assert {each.gpu for each in hardware.shipped().values()} >= {
        "a100_sxm",
        "h100_sxm",
        "h200_sxm",
        "b200_sxm",
        "l40s",
    }
    for name, each in hardware.shipped().items():
        assert iteration_time(name) == each.iteration_time
        assert kv_blocks_of(each.iteration_time, each.block_size) == each.kv_blocks
        assert each.kv_blocks == each.memory.kv_cache // (each.kv_bytes_per_token * each.block_size)
        assert abs(sum(each.sources.values()) - 1.0) < 1e-9
        for region in each.accuracy:
            assert region.median_error <= 0.03, (name, region)
            assert region.p95_error <= 0.10, (name, region)
            assert region.p95_error <= region.largest_error
    report = wait_core.simulate(iteration_time=NAME, dataset_name="chat", request_rate=5, num_prompts=50)
    assert report.settings["kv_blocks"] == hardware.shipped()[NAME].kv_blocks
    plan = wait_core.plan(types=[(512, 64, 2.0)], num_prompts=200, runs=1, **hardware.shipped()[NAME].settings())
    assert plan.engine.max_num_seqs == 1024
    assert plan.engine.token_budget == 8192


def test_a_deployment_is_read_as_it_was_written(tmp_path: Path) -> None:
    each = hardware.shipped()[NAME]
    assert Deployment.from_dict(json.loads(each.to_json())) == each
    file = tmp_path / "deployment.json"
    file.write_text(each.to_json(), encoding="utf-8")
    assert iteration_time(str(file)) == each.iteration_time
    for bad in ({}, each.to_dict() | {"version": 0}, {"format": "wait-core-deployment", "version": 1, "name": "x"}):
        with pytest.raises(WaitCoreError, match="not a deployment"):
            Deployment.from_dict(bad)


def test_the_host_time_is_in_every_iteration() -> None:
    each = hardware.shipped()[NAME]
    for shape in ({"decodes": 1, "decode_kv": 100}, {"decodes": 300, "decode_kv": 90_000, "chunks": [(700, 0)]}):
        kernels = iteration_seconds(each.with_host(0.0).iteration_time, **shape)
        assert iteration_seconds(each.iteration_time, **shape) == pytest.approx(kernels + each.host_s, abs=2e-9)
        assert iteration_seconds(each.with_host(0.004).iteration_time, **shape) == pytest.approx(
            kernels + 0.004, abs=2e-9
        )
    for bad in (-0.001, float("nan"), float("inf")):
        with pytest.raises(WaitCoreError, match="host_s"):
            each.with_host(bad)


def test_the_share_of_the_memory() -> None:
    each = hardware.shipped()[NAME]
    share = each.memory.usable / each.memory.total
    assert each.with_memory(share).kv_blocks in {each.kv_blocks - 1, each.kv_blocks}
    less = each.with_memory(share - 0.1)
    expected = 0.1 * each.memory.total / (each.kv_bytes_per_token * each.block_size)
    assert each.kv_blocks - less.kv_blocks == pytest.approx(expected, abs=2)
    with pytest.raises(WaitCoreError, match=r"leaves no room for the KV cache; 0\.2"):
        each.with_memory(0.1)
    for bad in (0.0, 1.01, float("nan")):
        with pytest.raises(WaitCoreError, match="gpu_memory_utilization"):
            each.with_memory(bad)


def test_memory_is_counted_as_vllm_counts_it() -> None:
    # vLLM 0.19 on an H100 at 0.95, as its start-up lines say it: 14.99 GiB of weights, 1.89 of activations, 58.11 left.
    found = memory.memory(
        LLAMA_8B, total=int(79.19 * memory.GIB), weights=int(14.99 * memory.GIB), share=0.95, gpus=1, seats=1024,
        budget=8192, engine_version="0.19.0",
    )  # fmt: skip
    assert found.activations / memory.GIB == pytest.approx(1.89, abs=0.03)
    assert found.kv_cache / memory.GIB == pytest.approx(58.11, abs=0.05)
    newer = memory.memory(
        LLAMA_8B, total=int(79.19 * memory.GIB), weights=int(14.99 * memory.GIB), share=0.95, gpus=1, seats=1024,
        budget=8192, engine_version="0.24.0",
    )  # fmt: skip
    assert found.kv_cache - newer.kv_cache == memory.GRAPHS
    assert (memory.utilization("0.19.0"), memory.utilization("0.24.0")) == (0.9, 0.92)
    assert memory.defaults("h100_sxm", 79 * memory.GIB) == (1024, 8192)
    assert memory.defaults("a100_sxm", 79 * memory.GIB) == memory.defaults("l40s", 44 * memory.GIB) == (256, 2048)


def test_cache_groups_of_a_configuration() -> None:
    assert groups(LLAMA_8B) == [("full", 32, 131_072, None)]
    assert groups(LLAMA_8B, 4) == [("full", 32, 32_768, None)]
    # A head is not divided: sixteen GPUs hold each of the eight twice.
    assert groups(LLAMA_8B, 16) == groups(LLAMA_8B, 8)
    assert groups(GPT_OSS) == [("full", 18, 36_864, None), ("sliding-window", 18, 36_864, 128)]
    latent = {"num_hidden_layers": 61, "num_attention_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert groups(latent, 8) == groups(latent) == [("full", 61, 70_272, None)]
    chunked = LLAMA_8B | {"attention_chunk_size": 8192}
    assert groups({"text_config": chunked}) == [
        ("chunked-local", 24, 98_304, 8192),
        ("full", 8, 32_768, None),
    ]
    gemma = LLAMA_8B | {
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"], "sliding_window": 1024, "head_dim": 256,
        "global_head_dim": 512, "num_global_key_value_heads": 2,
    }  # fmt: skip
    assert groups(gemma) == [("sliding-window", 5, 40_960, 1024), ("full", 1, 4096, None)]
    unused = LLAMA_8B | {"sliding_window": 4096, "use_sliding_window": False}
    assert groups(unused) == groups(LLAMA_8B)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ["linear_attention", "full_attention"]}, "Mamba"),
        ({"hybrid_override_pattern": "M-M*"}, "Mamba"),
        ({"compress_ratios": [0, 4]}, "sparse attention"),
        ({"layer_types": ["sliding_attention"]}, "not how long"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
    ],
)
def test_caches_that_are_not_supported_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(WaitCoreError, match=message):
        groups(LLAMA_8B | change)


def test_stairs_are_found_where_they_are() -> None:
    counts = np.arange(1.0, 1025.0)
    times = np.select(
        [counts <= 100, counts <= 300], [5e-3 + 1e-6 * counts, 7e-3 + 1e-6 * counts], 4e-3 + 2e-5 * counts
    )
    assert law.stairs(counts, times) == [100, 300, 1024]
    assert law.stairs(counts, 5e-3 + 1e-6 * counts) == [1024]


def test_the_grid_keeps_within_the_deployment() -> None:
    queries = law.grid(kv_tokens=50_000, seats=256, budget=2048, longest=8192)
    assert len({query.region for query in queries}) == 5
    for query in queries:
        assert query.decodes <= 256
        assert query.decodes * query.context <= 50_000
        assert query.decodes + query.prompts * query.tokens <= 2048
        assert query.before + query.tokens <= 8192
        assert query.decodes + query.prompts >= 1


def test_without_the_package_one_line_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    package.support.cache_clear()
    asked = ["--dataset-name", "chat", "--request-rate", "1", "--num-prompts", "20"]
    assert main(["simulate", "--gpu", "h100", "--model", "Qwen/Qwen3-8B", *asked]) == 2
    assert capsys.readouterr().err == (
        "wait-core: this needs the kernel times of aiconfigurator-core: pip install '.[hardware]'"
        " in the repository of wait-core\n"
    )
    # What ships is planned for all the same.
    assert main(["simulate", "--gpu", "h100", "--model", "Meta-Llama-3.1-8B", *asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kv_blocks"] == hardware.shipped()[NAME].kv_blocks
    assert main(["hardware"]) == 0
    assert "pip install '.[hardware]'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu", "h100"], "go together"),
        (["--model", "Qwen/Qwen3-8B"], "go together"),
        (["--gpu", "h100", "--model", "Meta-Llama-3.1-8B", "--iteration-time", "a100"], "one law only"),
        (["--gpu", "h100", "--model", "Meta-Llama-3.1-8B", "-tp", "0"], "--tensor-parallel-size/-tp: '0'"),
        (["--gpu", "h100", "--model", "Meta-Llama-3.1-8B", "--gpu-memory-utilization", "0.1"], "no room"),
        (["--gpu", "h100", "--model", "Meta-Llama-3.1-8B", "--gpu-memory-utilization", "2"], "at most 1"),
        (["--gpu", "h100", "--model", "Meta-Llama-3.1-8B", "--host-time", "-1"], "--host-time: '-1'"),
        (["--iteration-time", "llama-9b"], NAME),
    ],
)
def test_options_that_do_not_fit(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--dataset-name", "chat", "--request-rate", "1", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_neither_wait_core_nor_a_shipped_law_imports_the_package() -> None:
    program = (
        "import sys, wait_core;"
        f"wait_core.simulate(iteration_time={NAME!r}, dataset_name='chat', request_rate=1, num_prompts=5);"
        "assert not any(name.startswith(('aiconfigurator', 'pandas', 'pyarrow')) for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_options_of_a_deployment_reach_plan_simulate_and_compare(capsys: pytest.CaptureFixture[str]) -> None:
    each = hardware.shipped()[NAME]
    asked = ["--gpu", "h100", "--model", "Meta-Llama-3.1-8B", "--dataset-name", "chat", "--request-rate", "2", "--json"]
    assert main(["plan", *asked, "--num-prompts", "200", "--runs", "1", "--token-budget", "2048"]) == 0
    engine = json.loads(capsys.readouterr().out)["engine"]
    assert (engine["kv_blocks"], engine["max_num_seqs"], engine["token_budget"]) == (each.kv_blocks, 1024, 2048)
    assert engine["iteration_time"] == each.iteration_time
    assert main(["compare", *asked, "--num-prompts", "50", "--policies", "vllm", "adaptive"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["kv_blocks"] for row in rows] == [each.kv_blocks] * 2
    assert main(["simulate", *asked, "--num-prompts", "50", "--set", "kv_blocks=4000"]) == 0
    assert json.loads(capsys.readouterr().out)["kv_blocks"] == 4000
    assert main(["hardware", *asked[:4], "--json"]) == 0
    assert Deployment.from_dict(json.loads(capsys.readouterr().out)) == each
