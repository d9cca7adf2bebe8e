"""Figures of the documentation are those of today's data files: bench/figures.py draws them nearly as they are kept.

Compared as in test_pictures.py, because another version of matplotlib draws letters a little differently.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_pictures import MOST, ROOM, difference, small

pytest.importorskip("matplotlib", reason="pictures need the extra plot")

from wait_core.cli import main
from wait_core.report.plot_style import new_figure

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "docs" / "figures"

sys.path.insert(0, str(ROOT / "bench"))

import figures  # noqa: E402
import pages  # noqa: E402


def drawn(name: str, path: Path) -> Any:
    draw, size = figures.FIGURES[name]

    def picture(to: Path) -> None:
        with new_figure(to, size) as figure:
            draw(figure)

    return small(picture, path)


def kept(name: str) -> Any:
    return small(lambda _path: None, KEPT / f"{name}.png")


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_figure_shows_its_data_and_a_page_shows_the_figure(name: str, tmp_path: Path) -> None:
    image = drawn(name, tmp_path / "figure.png")
    assert np.abs(np.subtract(image.shape, kept(name).shape)).max() <= ROOM, "another size"
    assert difference(image, kept(name)) <= MOST, f"python bench/figures.py {name}"
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")]
    assert any(f"(figures/{name}.png)" in text for text in texts)


def test_the_picture_of_the_readme_is_that_of_its_command(tmp_path: Path) -> None:
    assert "(docs/figures/demo.png)" in (ROOT / "README.md").read_text(encoding="utf-8")
    picture = tmp_path / "demo.png"
    assert main(["demo", "--output", str(picture)]) == 0
    assert difference(small(lambda _path: None, picture), kept("demo")) <= MOST, (
        "wait-core demo --output docs/figures/demo.png"
    )


def test_the_readme_has_the_figures_of_the_data_file() -> None:
    (row,) = [row for row in pages.read("deadlines") if (row["workload"], row["load"]) == ("chat", "1.2")]
    names = ("goodput, park", "goodput, stock", "bound")
    park, stock, bound = (f"{100 * float(row[name]):.0f} %" for name in names)
    said = f"{park} of the requests in time, stock {stock}, no scheduler above {bound}"
    assert said in (ROOT / "README.md").read_text(encoding="utf-8")


def test_other_data_give_another_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row | {"goodput, park": str(0.5 * float(row["goodput, park"]))} for row in pages.read("deadlines")]

    monkeypatch.setattr(figures, "read", lambda _name: rows)
    assert difference(drawn("deadlines", tmp_path / "figure.png"), kept("deadlines")) > MOST
