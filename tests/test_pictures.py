"""What the pictures look like: tests/pictures/NAME.png, each the picture at an eighth of its size.

At that size letters are grey and lines are faint: another version of matplotlib, which draws a letter a pixel further
to the left, gives nearly the same, but a line that is missing, or has another colour, does not pass.

WAIT_CORE_GOLDEN=write python -m pytest tests/test_pictures.py    # where a change is meant; look at the difference
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from wait_core import hardware, report
from wait_core.cli import main
from wait_core.cli.demo import PICTURE
from wait_core.planning import FleetPlan, FleetTrial, Offer, PlannedEngine

pytest.importorskip("matplotlib", reason="pictures need the extra plot")

from matplotlib.image import imread, imsave

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

KEPT = Path(__file__).resolve().parent / "pictures"
SHRINK = 8
BLUR = 3
ROOM = 2
"""How far a picture may be shifted, in pixels of the small one: labels of another width move its axes."""
MOST = 0.11
"""Largest difference of a channel, 0..1, between blurred pictures: 0.07 between matplotlib 3.8, 3.10 and 3.11, 0.18 and
more where a thin line is missing."""

CAPACITY = 100_000
TIME = np.linspace(0.0, 60.0, 600)
KV = {"vllm": (TIME, CAPACITY * np.minimum(1.0, TIME / 20)), "adaptive": (TIME, 0.7 * CAPACITY * np.tanh(TIME / 9))}
LATENCY = {"vllm": np.linspace(2.0, 60.0, 80), "adaptive": np.linspace(1.0, 30.0, 80)}
RATE = [1.0, 2.0, 3.0, 4.0]
RUNS = {"vllm": [[1.0, 2.0, 6.0, 30.0], [1.2, 2.4, 8.0, 50.0]], "adaptive": [1.0, 1.8, 4.0, 12.0]}
BARS: dict[str, dict[str, Any]] = {
    "mean E2E": {"vllm": [4.0, 5.0], "adaptive": 3.0},
    "p99 E2E": {"vllm": 12.0, "adaptive": 7.0},
}
REGION = {"fluid": [2.0, 5.0, 8.0], "engine": [1.5, 4.0, 7.5], "bound": [2.5, 5.5, 9.0]}


def offered() -> list[Offer]:
    first, second = list(hardware.shipped().values())[:2]
    one = Offer(
        deployment=first, request_rate=40.0, saturated_rate=9.0, replicas=6, gpus=6, rate_each=6.7, utilisation=0.74,
        goodput=None, ttft_s=0.24, tpot_s=0.03, dollars_per_hour=9.6, dollars_per_million_output_tokens=0.35,
        dollars_per_million_tokens=0.05,
    )  # fmt: skip
    return [one, replace(one, deployment=second, gpus=None, replicas=None, dollars_per_million_output_tokens=None)]


def planned() -> FleetPlan:
    one = FleetTrial(
        prefill=0, decode=6, gpus=6, router="forecast", goodput=0.4, least_goodput=0.3, most_goodput=0.5,
        ttft_goodput=0.4, tpot_goodput=1.0, goodput_bound=0.9, ttft_s=2.0, p99_ttft_s=4.0, tpot_s=0.05,
        p99_tpot_s=0.08, growth=1.2, meets=False,
    )  # fmt: skip
    best = replace(one, decode=8, gpus=8, goodput=0.99, goodput_bound=1.0, meets=True)
    apart = [replace(one, prefill=3, decode=gpus - 3, gpus=gpus, goodput=0.1 * gpus) for gpus in (7, 9)]
    law: dict[str, Any] = {"law": "a100"}
    engine = PlannedEngine(policy="vllm", kv_blocks=7424, block_size=16, capacity=118_784, max_num_seqs=256,
                           token_budget=2048, iteration_time=law)  # fmt: skip
    return FleetPlan(
        workload="chat", request_rate=40.0, engine=engine, gpus_each=1, slo_ttft_ms=2000, slo_tpot_ms=100,
        attainment=0.95, fluid=None, trials=(one, best, *apart), found=(best, apart[1]), recommended=best,
        transfer=None, num_prompts=100, runs=1, simulated=400, span_s=60.0,
    )  # fmt: skip


def demonstrated(path: Path) -> None:
    """Draw what the demo saves."""
    with contextlib.chdir(path.parent):
        assert main(["demo", "--num-prompts", "300"]) == 0
    (path.parent / PICTURE).rename(path)


def plotted(path: Path) -> None:
    """Draw what a plan saves."""
    traffic = ["--type", "64:32:8", "--num-prompts", "300", "--runs", "2", "--kv-blocks", "600"]
    assert main(["plan", *traffic, "--policy", "clairvoyant", "--picture", str(path)]) == 0


PICTURES: dict[str, Callable[[Path], Any]] = {
    "kv": lambda path: report.kv_over_time(path, KV, capacity_tokens=CAPACITY),
    "cdf": lambda path: report.latency_cdf(path, LATENCY),
    "bars": lambda path: report.latency_bars(path, BARS),
    "rate": lambda path: report.latency_against_rate(path, RATE, RUNS, capacity_rate=3.5),
    "overview": lambda path: report.overview(path, KV, LATENCY, capacity_tokens=CAPACITY, title="both"),
    "region": lambda path: report.stability_region(path, [4e4, 1e5, 2e5], REGION, rate=3.0, capacity_tokens=1e5),
    "offers": lambda path: report.offers_picture(path, offered(), title="GPUs for 40 requests/s"),
    "fleet": lambda path: report.fleet_picture(path, planned()),
    "command-demo": demonstrated,
    "command-plan": plotted,
}
OTHERWISE: dict[str, Callable[[Path], Any]] = {
    "a line is missing": lambda path: report.latency_against_rate(path, RATE, {"vllm": RUNS["vllm"]}),
    "a line is another": lambda path: report.latency_against_rate(
        path, RATE, {"wait": RUNS["vllm"], "adaptive": RUNS["adaptive"]}, capacity_rate=3.5
    ),
    "the limit is missing": lambda path: report.latency_against_rate(path, RATE, RUNS),
    "values are others": lambda path: report.latency_against_rate(
        path, RATE, RUNS | {"adaptive": [1.0, 1.8, 6.0, 24.0]}, capacity_rate=3.5
    ),
}
"""Pictures that must be distinguished from "rate"."""


def small(draw: Callable[[Path], Any], path: Path) -> npt.NDArray[np.float64]:
    """Draw and return the picture at an eighth of its size, shape (height, width, 3)."""
    draw(path)
    image = np.asarray(imread(path), np.float64)[:, :, :3]
    height, width = (length // SHRINK for length in image.shape[:2])
    cut = image[: height * SHRINK, : width * SHRINK]
    return np.asarray(cut.reshape(height, SHRINK, width, SHRINK, 3).mean(axis=(1, 3)))


def blurred(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    windows = np.lib.stride_tricks.sliding_window_view(image, (BLUR, BLUR), axis=(0, 1))
    return np.asarray(windows.mean(axis=(-2, -1)))


def difference(image: npt.NDArray[np.float64], kept: npt.NDArray[np.float64]) -> float:
    """Return the largest difference, at the shift at which it is least."""
    height, width = (min(a, b) for a, b in zip(image.shape[:2], kept.shape[:2], strict=True))
    one, two = blurred(image[:height, :width]), blurred(kept[:height, :width])
    shifts = [(down, right) for down in range(-ROOM, ROOM + 1) for right in range(-ROOM, ROOM + 1)]
    inner = slice(ROOM, -ROOM)
    return min(float(np.abs(np.roll(one, shift, axis=(0, 1)) - two)[inner, inner].max()) for shift in shifts)


def kept_like(image: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
    """Return the picture kept under a name, which must have the size of `image`; it is written first where asked."""
    path = KEPT / f"{name}.png"
    if os.environ.get("WAIT_CORE_GOLDEN") == "write":
        imsave(path, image)
    kept = np.asarray(imread(path), np.float64)[:, :, :3]
    assert np.abs(np.subtract(image.shape, kept.shape)).max() <= ROOM, f"{path}: another size"
    return kept


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_looks_as_it_did(name: str, tmp_path: Path) -> None:
    image = small(PICTURES[name], tmp_path / "picture.png")
    assert difference(image, kept_like(image, name)) <= MOST, name


@pytest.mark.parametrize("change", OTHERWISE)
def test_another_picture_does_not_pass(change: str, tmp_path: Path) -> None:
    image = small(OTHERWISE[change], tmp_path / "picture.png")
    assert difference(image, np.asarray(imread(KEPT / "rate.png"), np.float64)[:, :, :3]) > MOST


def test_every_picture_of_the_package_is_looked_at() -> None:
    drawn = {name for name in report.__all__ if name not in {"bars", "table"}}  # these two print
    text = Path(__file__).read_text(encoding="utf-8")
    assert {name for name in drawn if f"report.{name}(" in text} == drawn
    assert {path.stem for path in KEPT.glob("*.png") if not path.stem.startswith("page-")} == set(PICTURES)
