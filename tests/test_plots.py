"""Figures: a file is written, the data are in it, bad input is named."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from matplotlib.image import imread

from wait_core import WaitCoreError, report
from wait_core.report import plot_style, time_series

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CAPACITY = 118_784
TIME = np.linspace(0.0, 100.0, 9_000)
KV = {
    "vllm": (TIME, CAPACITY * np.abs(np.sin(TIME))),
    "wait": (TIME, np.full(len(TIME), 0.9 * CAPACITY)),
}
LATENCY = {"vllm": [5.0, 9.0, 30.0], "wait": [4.0, 6.0, 7.0]}
RATE = [10.0, 20.0, 30.0]
RUNS = {"vllm": [[1.0, 2.0, 9.0], [1.1, 2.2, 8.0]], "a policy of mine": [1.0, 1.5, float("nan")]}

FIGURES: dict[str, Callable[[Path], Path]] = {
    "kv": lambda path: report.kv_over_time(path, KV, capacity_tokens=CAPACITY),
    "cdf": lambda path: report.latency_cdf(path, LATENCY),
    "cdf-log": lambda path: report.latency_cdf(path, LATENCY, log=True),
    "bars": lambda path: report.latency_bars(path, {"mean E2E": {"vllm": [4, 5], "wait": 3.0}, "p99": {"wait": 9}}),
    "rate": lambda path: report.latency_against_rate(path, RATE, RUNS, capacity_rate=25.0),
    "rate-linear": lambda path: report.latency_against_rate(path, RATE, RUNS, log=False),
    "overview": lambda path: report.overview(path, KV, LATENCY, capacity_tokens=CAPACITY, title="both"),
}


def near_colour(image: Any, colour: str) -> int:
    """Return how many pixels have (nearly) this colour."""
    wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return int(np.all(np.abs(image[:, :, :3] - wanted) < 0.12, axis=2).sum())


@pytest.mark.parametrize("name", FIGURES)
def test_a_png_is_written_with_every_policy_in_its_colour(name: str, tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    assert FIGURES[name](path) == path
    image = imread(path)
    assert image.shape[0] > 250
    assert image.shape[1] > 600
    policies = RUNS if name.startswith("rate") else KV
    for colour, _, _ in plot_style.styles(policies).values():
        assert near_colour(image, colour) > 100


def test_the_same_data_give_the_same_file(tmp_path: Path) -> None:
    one, two = FIGURES["overview"](tmp_path / "1.png"), FIGURES["overview"](tmp_path / "2.png")
    assert one.read_bytes() == two.read_bytes()


def test_long_series_keep_their_peaks() -> None:
    time = np.arange(200_000, dtype=np.float64)
    tokens = np.zeros(len(time))
    tokens[123_457], tokens[50_001] = 1_000.0, -1_000.0
    low, high, at = time_series._envelope(time, tokens)
    assert len(at) <= 4_000
    assert (high.max(), low.min()) == (1_000.0, -1_000.0)


def test_policies_in_one_figure_differ() -> None:
    names = ["vllm", "wait", "nested-wait", "adaptive", "sarathi", "prefill-first", "clairvoyant"]
    names += [f"vllm, watermark {share}" for share in (0.01, 0.02, 0.05, 0.1, 0.2)]
    given = plot_style.styles(names)
    assert list(given) == names
    assert len({(colour, line) for colour, line, _ in given.values()}) == len(names)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda p: report.kv_over_time(p, {}, capacity_tokens=1), "kv: {}"),
        (lambda p: report.kv_over_time(p, KV, capacity_tokens=0), "capacity_tokens: 0"),
        (lambda p: report.kv_over_time(p, {"a": ([0, 1], [1])}, capacity_tokens=1), "a: kv_tokens"),
        (lambda p: report.kv_over_time(p, {"a": ([1, 0], [1, 1])}, capacity_tokens=1), "a: time_s"),
        (lambda p: report.latency_cdf(p, {"a": []}), "a: "),
        (lambda p: report.latency_cdf(p, {"a": [float("nan")]}), "a: "),
        (lambda p: report.latency_bars(p, {}), "metrics: {}"),
        (lambda p: report.latency_against_rate(p, [2, 1], RUNS), "rate: "),
        (lambda p: report.latency_against_rate(p, [1, 2], RUNS), r"latency_s\['vllm'\]"),
        (lambda p: report.latency_against_rate(p, RATE, {"a": [float("nan")] * 3}), r"latency_s\['a'\]"),
    ],
)
def test_bad_input_is_named_and_writes_nothing(call: Callable[[Path], Path], match: str, tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    with pytest.raises(WaitCoreError, match=match):
        call(path)
    assert not path.exists()


def test_matplotlib_is_imported_only_to_draw_and_its_settings_are_left_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from wait_core import report\n"
        "assert 'matplotlib' not in sys.modules, 'imported too early'\n"
        f"report.latency_cdf({str(tmp_path / 'f.png')!r}, {{'vllm': [1.0]}})\n"
        "import matplotlib\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert matplotlib.rcParams['axes.spines.top']\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
