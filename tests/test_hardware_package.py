"""Deployments made from the optional package of kernel times."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from wait_core import WaitCoreError, hardware
from wait_core._core import iteration_seconds
from wait_core.cli import main
from wait_core.hardware import assemble, catalogue, law, package, shipped_data

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("aiconfigurator_core", reason="needs the extra hardware")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAIT_CORE_CACHE", str(tmp_path / "cache"))


def test_a_shipped_deployment_is_made_again_from_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = hardware.shipped()["llama-3.1-8b-h100-sxm"]
    if package.version() != ready.source:
        pytest.skip(f"{package.version()} is installed, {ready.source} was used")
    monkeypatch.setattr(shipped_data, "find", lambda *_: None)
    made = hardware.engine("h100", "Meta-Llama-3.1-8B")
    assert made.kv_blocks == ready.kv_blocks
    shapes: list[dict[str, Any]] = [
        {"decodes": 64, "decode_kv": 65_536},
        {"decodes": 200, "decode_kv": 10**5, "chunks": [(500, 1000)]},
    ]
    for shape in shapes:
        assert iteration_seconds(made.iteration_time, **shape) == pytest.approx(
            iteration_seconds(ready.iteration_time, **shape), rel=1e-3
        )


def test_a_query_costs_what_the_package_says_of_the_whole_iteration() -> None:
    model = catalogue.find_model("Meta-Llama-3.1-8B", "h100_sxm", "vllm")
    kernels = package.kernels(model, "h100_sxm", "vllm", 1)
    handle = kernels.handle
    alone = law.Query(decodes=64, context=1025)
    assert law.seconds(kernels, alone, {}) == pytest.approx(handle.decode_step_latency(64, 1024, 2) * 1e-3)
    # Two whole prompts of 512 beside 64 decodes that read 513 tokens.
    mixed = law.Query(decodes=64, context=513, prompts=2, tokens=512)
    assert law.seconds(kernels, mixed, {}) == pytest.approx(handle.mixed_step_latency(1024, 64, 512, 2) * 1e-3)
    # The attention of a chunk after computed tokens is that of the package's prefill with a cached prefix.
    static, _ = handle.run_static_per_op(batch_size=1, isl=2560, osl=1, prefix=2048, mode="static_ctx")
    expected = sum(each[1] for each in static if "attention" in each[0]) * 1e-3
    assert sum(time for _, time, _ in kernels.prefill_attention(1, 512, 2048)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("model", "size", "gib"),
    # The memory that loading takes by vLLM's log, on each GPU.
    [
        ("meta-llama/Meta-Llama-3.1-8B", 1, 14.99),
        ("meta-llama/Meta-Llama-3.1-8B", 4, 3.77),
        ("Qwen/Qwen3-30B-A3B", 1, 56.88),
        ("openai/gpt-oss-120b", 1, 64.38),
        ("nvidia/Llama-3.1-70B-Instruct-FP8", 2, 33.88),
    ],
)
def test_weights_are_those_that_vllm_loads(model: str, size: int, gib: float) -> None:
    described = catalogue.find_model(model, "h100_sxm", "vllm")
    assert package.weights(described, "vllm", size) / 2**30 == pytest.approx(gib, rel=0.01)


def test_a_fit_is_cached_and_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = hardware.engine("h100", "Qwen/Qwen3-8B", gpu_memory_utilization=0.8)
    monkeypatch.setattr(law, "fit", lambda *_: pytest.fail("fitted again"))
    assert hardware.engine("h100", "qwen3-8b", gpu_memory_utilization=0.8) == first
    slower = hardware.engine("h100", "qwen3-8b", gpu_memory_utilization=0.8, host_s=0.005)
    assert slower.kv_blocks == first.kv_blocks
    assert (first.host_s, slower.host_s) == (assemble.HOST_S, 0.005)


def test_a_configuration_of_the_users_own(tmp_path: Path) -> None:
    config = package.configuration("Qwen/Qwen3-8B")
    file = tmp_path / "half" / "config.json"
    file.parent.mkdir()
    file.write_text(json.dumps(config | {"num_hidden_layers": config["num_hidden_layers"] // 2}), encoding="utf-8")
    whole, half = hardware.engine("h100", "Qwen/Qwen3-8B"), hardware.engine("h100", str(file))
    assert half.kv_bytes_per_token * 2 == whole.kv_bytes_per_token
    assert half.memory.weights < whole.memory.weights
    shape: dict[str, Any] = {"decodes": 128, "decode_kv": 131_072}
    assert iteration_seconds(half.iteration_time, **shape) < 0.65 * iteration_seconds(whole.iteration_time, **shape)
    assert half.iteration_time == hardware.engine("h100", str(file.parent)).iteration_time
    assert half.name == "half-h100-sxm"
    assert str(file) in half.notes[-1]


@pytest.mark.parametrize(
    "change",
    [
        {"num_key_value_heads": "eight"},
        {"num_attention_heads": 0},
        {"hidden_size": None},
        {"layer_types": ["sliding_attention"] * 36, "sliding_window": "long"},
        {"vocab_size": [1]},
        {"architectures": ["NobodyForCausalLM"]},
        {"architectures": []},
    ],
)
def test_a_configuration_that_makes_no_sense_is_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(package.configuration("Qwen/Qwen3-8B") | change), encoding="utf-8")
    with pytest.raises(WaitCoreError) as refused:
        hardware.engine("h100", str(file))
    assert "\n" not in str(refused.value)


def test_a_cached_file_that_is_cut_off_is_made_anew(tmp_path: Path) -> None:
    first = hardware.engine("h100", "Qwen/Qwen3-0.6B")
    (file,) = (tmp_path / "cache" / "hardware").glob("*.json")
    whole = file.read_text(encoding="utf-8")
    for bad in (whole[:500], "{}", '"x"', "[" * 100_000):
        file.write_text(bad, encoding="utf-8")
        assert hardware.engine("h100", "Qwen/Qwen3-0.6B") == first
    assert file.read_text(encoding="utf-8") == whole


def test_window_layers_are_a_group_of_their_own_and_it_is_said() -> None:
    made = hardware.engine("h100", "openai/gpt-oss-20b")
    assert [group.kind for group in made.cache_groups] == ["full", "sliding-window"]
    assert made.kv_bytes_per_token == 24 * 2 * 8 * 64 * 2
    assert [group["kind"] for group in made.settings()["kv_groups"]] == ["full", "sliding_window"]
    assert "12 sliding-window layers of 128 tokens keep that much in the KV cache" in made.notes[0]


def test_the_kv_cache_holds_what_the_checkpoint_says_or_what_is_asked_for() -> None:
    model = "nvidia/Llama-3.1-70B-Instruct-FP8"
    said = catalogue.find_model(model, "h100_sxm", "vllm")
    assert said.kv_cache_dtype == "fp8"
    assert catalogue.find_model("Qwen/Qwen3-32B-FP8", "h100_sxm", "vllm").kv_cache_dtype == "bfloat16"
    assert catalogue.find_model(model, "h100_sxm", "vllm", "bfloat16").kv_cache_dtype == "bfloat16"
    half, whole = (hardware.engine("h100", "Qwen/Qwen3-8B", kv_cache_dtype=dtype) for dtype in ("fp8", "auto"))
    assert 2 * half.kv_bytes_per_token == whole.kv_bytes_per_token
    assert half.kv_blocks // 2 in {whole.kv_blocks - 1, whole.kv_blocks}
    shape: dict[str, Any] = {"decodes": 100, "decode_kv": 300_000}
    assert iteration_seconds(half.iteration_time, **shape) < iteration_seconds(whole.iteration_time, **shape)
    assert "fp8" in half.notes[0]
    with pytest.raises(WaitCoreError, match="kv_cache_dtype = 'int4': auto, bfloat16 or fp8"):
        hardware.engine("h100", "Qwen/Qwen3-8B", kv_cache_dtype="int4")


def test_what_falls_back_on_other_engines_is_said_in_any_order() -> None:
    model = catalogue.find_model("deepseek-ai/DeepSeek-V3", "h200_sxm", "vllm")
    first = package.kernels(model, "h200_sxm", "vllm", 8).filled
    package.kernels(catalogue.find_model("openai/gpt-oss-20b", "h200_sxm", "vllm"), "h200_sxm", "vllm", 1)
    assert package.kernels(model, "h200_sxm", "vllm", 8).filled == first
    assert any(table.startswith("mla_context_module (trtllm/") for table in first)
    made = hardware.engine("h200", "deepseek-ai/DeepSeek-V3", tensor_parallel_size=8)
    assert any("low fidelity" in note and "mla_context_module" in note for note in made.notes)
    assert not any("low fidelity" in note for note in hardware.engine("h200", "openai/gpt-oss-20b").notes)


@pytest.mark.parametrize(
    ("gpu", "model", "size", "message"),
    [
        ("h1000", "Qwen/Qwen3-8B", 1, r"gpu = 'h1000': unknown .*nearest: h100_sxm"),
        ("h100", "Qwen/Qwen3-9B", 1, r"model = 'Qwen/Qwen3-9B': unknown .*nearest: Qwen/Qwen3-8B"),
        ("a100", "openai/gpt-oss-20b", 1, "not measured on a100_sxm with vllm; it is on b200_sxm"),
        ("h100", "Qwen/Qwen3-8B", 3, "has 32 attention heads and 8 KV heads, which divide by 1, 2, 4, 8"),
        ("h100", "meta-llama/Meta-Llama-3.1-70B", 1, r"does not fit on 1 x h100_sxm: 13\d\.\d GiB .*; it takes 2"),
        ("l40s", "Qwen/Qwen3-235B-A22B", 2, "does not fit on 2 x l40s.*it takes 16"),
        ("h100", "Qwen/Qwen3.5-27B", 1, "Mamba"),
        ("h100", "nothing/config.json", 1, "not a configuration"),
    ],
)
def test_what_is_refused(gpu: str, model: str, size: int, message: str) -> None:
    with pytest.raises(WaitCoreError, match=message) as refused:
        hardware.engine(gpu, model, tensor_parallel_size=size)
    assert "\n" not in str(refused.value)


def test_an_engine_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hardware", "--engine", "nope"]) == 2
    assert capsys.readouterr() == ("", f"wait-core: engine = 'nope': one of {', '.join(catalogue.engines())}\n")


def test_other_engines_and_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(catalogue.engines()) == {"sglang", "trtllm", "vllm"}
    with pytest.raises(WaitCoreError, match="engine = 'tgi': one of sglang, trtllm, vllm"):
        hardware.engine("h100", "Qwen/Qwen3-8B", engine="tgi")
    made = hardware.engine("h100", "Qwen/Qwen3-8B", engine="sglang")
    assert made.engine == "sglang"
    assert made.name == "qwen3-8b-h100-sxm-sglang"
    assert main(["hardware"]) == 0
    out = capsys.readouterr().out
    assert "h100_sxm" in out
    assert "llama-3.1-8b-l40s" in out
    assert main(["hardware", "--gpu", "l40s"]) == 0
    assert "Qwen/Qwen3-8B" in capsys.readouterr().out


def test_a_cache_that_cannot_be_written_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    monkeypatch.setenv("WAIT_CORE_CACHE", str(file))
    assert hardware.engine("h100", "Qwen/Qwen3-0.6B").kv_blocks > 0
    assert not file.read_text(encoding="utf-8")
