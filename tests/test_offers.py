"""GPUs compared for one traffic: how many, at what cost, with how much room."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from matplotlib.image import imread

from wait_core import WaitCoreError, hardware, plan, planning
from wait_core.cli import main
from wait_core.planning.offers import MOST
from wait_core.report import offers_picture

if TYPE_CHECKING:
    from pathlib import Path

H100 = hardware.shipped()["llama-3.1-8b-h100-sxm"]
A100 = hardware.shipped()["llama-3.1-8b-a100-sxm"]
SMALL: dict[str, Any] = {"dataset_name": "chat", "num_prompts": 400, "runs": 1}


def test_the_number_of_gpus_and_what_they_cost() -> None:
    a100, h100 = planning.offers([A100, H100], prices=[2.0, 3.0], request_rate=60.0, **SMALL)
    assert a100.replicas is not None
    assert h100.replicas is not None
    assert a100.replicas > h100.replicas > 1
    for offer, price in ((a100, 2.0), (h100, 3.0)):
        assert offer.replicas == offer.gpus == math.ceil(60.0 / (0.8 * offer.saturated_rate))
        assert offer.utilisation <= 0.8 < 60.0 / (offer.saturated_rate * (offer.replicas - 1))
        assert offer.headroom == pytest.approx(1 / offer.utilisation - 1)
        assert offer.dollars_per_hour == offer.gpus * price
    # 200 and 30 tokens in and out, 10 requests/s: 1.08 million output tokens an hour.
    (offer,) = planning.offers([H100], prices=[5.4], types=[(200, 30, 10.0)], num_prompts=400, runs=1)
    assert (offer.replicas, offer.dollars_per_hour) == (1, 5.4)
    assert offer.dollars_per_million_output_tokens == pytest.approx(5.0)
    assert offer.dollars_per_million_tokens == pytest.approx(5.4 / (10 * 230 * 3600 / 1e6))


def test_the_limit_is_that_of_the_plan() -> None:
    (offer,) = planning.offers([H100], request_rate=10.0, **SMALL)
    report = plan(request_rate=10.0, **SMALL, **H100.settings())
    assert offer.saturated_rate == pytest.approx(report.engine_limit.request_rate)
    assert (offer.dollars_per_hour, offer.goodput) == (None, None)


def test_a_replica_of_several_gpus_counts_them_all() -> None:
    pair = hardware.shipped()["qwen3-32b-h100-sxm-tp2"]
    (offer,) = planning.offers([pair], prices=[3.0], request_rate=40.0, **SMALL)
    assert offer.replicas is not None
    assert offer.gpus == 2 * offer.replicas
    assert offer.dollars_per_hour == 6.0 * offer.replicas


def test_an_objective_takes_more_gpus_or_cannot_be_met() -> None:
    loose, tight = (planning.offers([A100], request_rate=30.0, slo_tpot_ms=slo, **SMALL)[0] for slo in (1000.0, 25.0))
    assert loose.replicas is not None
    assert tight.replicas is not None
    assert loose.goodput == 1.0
    assert tight.replicas > loose.replicas
    assert tight.goodput is not None
    assert tight.goodput >= 0.95
    # No number of GPUs makes an iteration shorter than reading the weights.
    (never,) = planning.offers([A100], prices=[2.0], request_rate=30.0, slo_tpot_ms=5.0, **SMALL)
    assert (never.replicas, never.gpus, never.dollars_per_hour) == (None, None, None)
    assert never.goodput == 0.0
    assert never.utilisation <= 0.8
    assert MOST > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"utilisation": 1.0}, "utilisation = 1.0"),
        ({"attainment": 0.0}, "attainment = 0.0"),
        ({"prices": [1.0, 2.0]}, "prices: 2 for 1 deployments"),
        ({"prices": [-1.0]}, "price = -1.0"),
        ({"prices": [float("nan")]}, "price = nan"),
        ({"request_rate": float("inf")}, "finite rate"),
    ],
)
def test_what_is_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, Any] = {"request_rate": 10.0, **SMALL} | change
    with pytest.raises(WaitCoreError, match=message):
        planning.offers([H100], **arguments)


def test_the_picture_has_every_offer(tmp_path: Path) -> None:
    found = planning.offers([A100, H100], prices=[2.0, 3.0], request_rate=30.0, slo_tpot_ms=12.0, **SMALL)
    assert found[0].replicas is None
    path = offers_picture(tmp_path / "offers.png", found, title="two")
    wide = imread(path).shape[1]
    unpriced = planning.offers([H100], request_rate=30.0, **SMALL)
    narrow = imread(offers_picture(tmp_path / "one.png", unpriced, title="one")).shape[1]
    assert wide > narrow > 600
    again = offers_picture(tmp_path / "again.png", found, title="two")
    assert again.read_bytes() == path.read_bytes()
    with pytest.raises(WaitCoreError, match="none to draw"):
        offers_picture(path, [], title="none")


def test_the_command_compares_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "--gpu", "a100", "h100", "--model", "Meta-Llama-3.1-8B", "--dataset-name", "chat"]
    asked += ["--request-rate", "30", "--num-prompts", "300", "--runs", "1", "--price", "2", "3"]
    picture = tmp_path / "offers.png"
    assert main([*asked, "--slo-ttft", "2000", "--picture", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "1 x a100_sxm" in out
    assert "$/M output tokens" in out
    assert picture.stat().st_size > 1000
    assert main([*asked, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["offers"]
    assert (first["gpu"], second["gpu"]) == ("a100_sxm", "h100_sxm")
    assert first["dollars_per_hour"] == 2.0 * first["gpus"]
    assert main([*asked, "--kv-blocks", "100"]) == 2
    assert "GPUs are compared with their own" in capsys.readouterr().err
    assert main(["plan", "--type", "512:20:7", "--price", "2"]) == 2
    assert "need --gpu and --model" in capsys.readouterr().err
    assert main(["plan", "--type", "512:20:7", "--gpu", "h100:two", "--model", "Meta-Llama-3.1-8B"]) == 2
    assert "expected GPU or GPU:TP" in capsys.readouterr().err
