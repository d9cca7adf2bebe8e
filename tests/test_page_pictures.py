"""What the charts of a report look like in a browser: tests/pictures/page-NAME.png, as test_pictures.py keeps pictures.

Letters are taken out, because every machine has fonts of its own: what is compared are lines, bars, axes and colours,
whose places the page itself states.

WAIT_CORE_GOLDEN=write python -m pytest tests/test_page_pictures.py    # where a change is meant; look at the difference
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from test_html_report import CHROMIUM, chromium
from test_pictures import difference, kept_like, small

from wait_core.cli import main

pytest.importorskip("jinja2", reason="pages of HTML need Jinja2: pip install '.[report]'")
pytest.importorskip("matplotlib", reason="pictures need the extra plot")


if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to look at the pages with")
TRAFFIC = ["--dataset-name", "p64d32", "--request-rate", "100", "--num-prompts", "200"]
PAGES = {
    "compare": ["compare", "--policies", "vllm", "wait", *TRAFFIC, "--set", "kv_blocks=60"],
    "plan": ["plan", "--type", "64:32:8", "--num-prompts", "300", "--runs", "2", "--kv-blocks", "600"],
}
OTHERWISE = {
    "a line is missing": (r"<polyline[^>]*/>", ""),
    "a line has another colour": (r'(<polyline[^>]*stroke=")#\w+', r"\1#d4b106"),
    "a line is elsewhere": (r'<polyline points="[^"]+"', '<polyline points="60,60 300,60"'),
}
"""One change to the charts of a page, which must be noticed."""
WIDTH = 760
MOST = 0.04
"""Largest difference of a channel, 0..1, between blurred pictures: nothing depends on fonts, and each of these changes
makes 0.08 and more."""


def charts(path: Path) -> str:
    """Return the charts of a page, below each other and without letters."""
    text = path.read_text(encoding="utf-8")
    (style,) = re.findall(r"<style>.*?</style>", text, re.DOTALL)
    drawn = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    body = "".join(f"<div style='width:{WIDTH}px'>{svg}</div>" for svg in drawn)
    body = re.sub(r"<text.*?</text>", "", body, flags=re.DOTALL)
    return f"<!DOCTYPE html><meta charset='utf-8'>{style}<body style='margin:0; max-width:none'>{body}</body>"


def seen(html: str, folder: Path) -> npt.NDArray[np.float64]:
    """Return what a browser shows, at an eighth of its size."""
    page, picture = folder / "charts.html", folder / "charts.png"
    page.write_text(html, encoding="utf-8")
    done = chromium(page, WIDTH, folder / "profile", f"--screenshot={picture}")
    assert picture.exists(), done.stderr
    return small(lambda _path: picture, picture)


@pytest.mark.parametrize("name", PAGES)
def test_the_charts_of_a_page_look_as_they_did(name: str, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    assert main([*PAGES[name], "--report", str(report)]) == 0
    html = charts(report)
    image = seen(html, tmp_path)
    kept = kept_like(image, f"page-{name}")
    assert difference(image, kept) <= MOST, name
    for change, (pattern, replacement) in OTHERWISE.items():
        other = seen(re.sub(pattern, replacement, html, count=1), tmp_path)
        assert difference(other, kept) > MOST, change
