"""The page of HTML that --report writes: complete, escaped, readable without colour, and as a browser renders
it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from wait_core import Scheduler, simulate
from wait_core.cli import main
from wait_core.logs.decision_log import DecisionLog, LoggedCore
from wait_core.report.html import Page, Section, Table, page_of_simulations, rendered
from wait_core.report.html.simulations import preempted_at, tpot_s
from wait_core.report.html.svg import Axis, Line, bars, chart, number

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytest.importorskip("jinja2", reason="pages of HTML need Jinja2: pip install '.[report]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OVERLOAD = ["--dataset-name", "p64d32", "--request-rate", "100", "--num-prompts", "200", "--set", "kv_blocks=60"]


class Outline(HTMLParser):
    """Headings, text, and whatever a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside = tag
        self.loads += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "xlink:href"}]

    def handle_data(self, data: str) -> None:
        if self._inside in {"h1", "h2"} and data.strip():
            self.headings.append(data.strip())
        self._inside = ""


def outline(path: Path) -> tuple[str, Outline]:
    text = path.read_text(encoding="utf-8")
    found = Outline()
    found.feed(text)
    return text, found


def decision_log(path: Path) -> None:
    log = DecisionLog(path, max_bytes=10**7)
    core = LoggedCore(Scheduler("vllm", kv_blocks=30, max_num_seqs=8, token_budget=64), log)
    for request in range(12):
        core.add(request, 40, 40, now_ns=request)
    for step in range(60):
        core.plan(10**7 * step)
        core.complete()
    log.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    log = folder / "log.jsonl"
    decision_log(log)
    commands: dict[str, list[str]] = {
        "simulate": ["simulate", "--policy", "vllm", *OVERLOAD],
        "compare": ["compare", "--policies", "vllm", "wait", "adaptive", *OVERLOAD, "--goodput", "ttft:500"],
        "sweep": ["sweep", "--dataset-name", "p64d32", "--num-prompts", "100", "--request-rates", "10", "40", "80",
                  "--kv-blocks", "60", "--goodput", "ttft:200"],
        "plan": ["plan", "--type", "64:32:8", "--num-prompts", "300", "--runs", "2", "--kv-blocks", "600"],
        "gpus": ["plan", "--gpu", "a100_sxm", "h100_sxm", "--model", "meta-llama/Meta-Llama-3.1-8B",
                 "--num-prompts", "300", "--runs", "1", "--type", "512:64:20", "--price", "2", "3",
                 "--goodput", "ttft:500"],
        "fleet": ["plan", "--type", "64:32:80", "--num-prompts", "300", "--runs", "1", "--kv-blocks", "600",
                  "--replicas", "auto", "--goodput", "ttft:500", "tpot:50"],
        "replay": ["replay", str(log)],
    }  # fmt: skip
    made = {}
    for name, command in commands.items():
        made[name] = folder / f"{name}.html"
        assert main([*command, "--report", str(made[name])]) == 0
    return made


@pytest.mark.parametrize(
    ("name", "headings"),
    [
        ("simulate", ["Figures", "The KV cache over time", "Latency", "Holds by reason"]),
        ("compare", ["Figures", "The KV cache over time", "Latency", "Holds by reason"]),
        ("sweep", ["Against the rate", "All figures"]),
        ("plan", ["How much it can carry", "The stability region", "What to expect", "WAIT's thresholds"]),
        ("gpus", ["What each takes", "All figures"]),
        ("fleet", ["Share in time", "The smallest of each kind", "All fleets simulated"]),
        ("replay", ["The KV cache over time", "Holds by reason"]),
    ],
)
def test_a_page_is_complete_in_itself(name: str, headings: list[str], pages: dict[str, Path]) -> None:
    text, found = outline(pages[name])
    in_force = [] if name in {"sweep", "gpus"} else ["Settings in force"]
    assert found.headings[1:] == [*headings, *in_force, "How to reproduce it"]
    assert [load for load in found.loads if not load.startswith(("data:", "#"))] == []
    assert not {"script", "img", "link rel=stylesheet", "iframe"} & set(found.tags)
    assert re.findall(r"https?://", text) == []
    assert f"wait-core {'plan' if name in {'fleet', 'gpus'} else name} " in text
    drawn = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert drawn
    for svg in drawn:
        root = ET.fromstring(svg)  # noqa: S314  our own
        assert root.attrib["aria-label"] == root.findtext("title")
        assert "nan" not in svg.lower().replace("tenant", "")


def test_a_page_says_what_the_run_gave(pages: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--policy", "vllm", *OVERLOAD, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    text, _ = outline(pages["simulate"])
    assert f'<td class="text">preemptions</td><td>{summary["preemptions"]:,}</td>' in text
    assert f'<td class="text">mean E2E, ms</td><td>{number(summary["mean_e2el_ms"])}</td>' in text
    held = {reason: count for reason, count in summary["holds"].items() if count}
    assert held
    for reason, count in held.items():
        assert f">{reason}</text>" in text
        assert f">{number(count)}</text>" in text
    for setting, value in (("kv_blocks", "60 blocks"), ("policy", "vllm")):
        assert f'<td class="text">{setting}</td><td class="text">{value}</td><td class="text"></td>' in text
    assert '<td class="text">skip_ahead</td><td class="text">0 requests</td><td class="text">default</td>' in text


def test_what_comes_from_outside_is_escaped(tmp_path: Path) -> None:
    trace = tmp_path / "<script>alert(1)<&script>.csv"
    trace.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,10,5\n0.1,0,5\n0.2,9,3\n", encoding="utf-8")
    page = tmp_path / "page.html"
    assert main(["simulate", "--dataset-path", str(trace), "--report", str(page)]) == 0
    text, found = outline(page)
    assert "script" not in found.tags
    assert "&lt;script&gt;alert(1)&lt;&amp;script&gt;.csv" in text
    assert "1 row left out: prompt length 0" in text
    tables = [Table(header=["<"], rows=[["<b>"]])]
    hostile = Page(title="<b>", summary="&", sections=[Section(heading="</h2>", tables=tables, verbatim=["<b>"])])
    assert "<b>" not in rendered(hostile)
    assert "<i>" not in chart(
        [Line(name="<i>", x=[0, 1], y=[0, 1])] * 2, Axis(label="<i>"), Axis(label="y"), title="<i>"
    )
    assert "<i>" not in bars({"<i>": {"<i>": 1.0, "b": 2.0}}, title="<i>", unit="<i>")


def test_lines_are_distinguished_without_colour(pages: dict[str, Path]) -> None:
    text, _ = outline(pages["compare"])
    plain = re.sub(r'(stroke|fill)="#\w+"', "", text)
    svg = next(each for each in re.findall(r"<svg.*?</svg>", plain, re.DOTALL) if "Share of the requests" in each)
    lines = re.findall(r'<polyline[^>]*stroke-dasharray="([^"]*)"', svg)
    assert len(lines) == len(set(lines)) == 3
    for name in ("vllm", "wait", "adaptive"):
        assert f">{name}</text>" in svg


def test_preemptions_are_marked_where_residents_lost_memory() -> None:
    common: dict[str, Any] = {"dataset_name": "p64d32", "request_rate": 100.0, "num_prompts": 200}
    calm = simulate("vllm", **common, kv_blocks=7000)
    assert calm.run.counts["preemptions"] == 0
    assert len(preempted_at(calm)) == 0
    full = simulate("vllm", **common, kv_blocks=60)
    marks = preempted_at(full)
    assert 0 < len(marks) <= full.run.counts["preemptions"]
    assert 0 < marks.min() <= marks.max() <= full.run.finished_ns.max() * 1e-9
    times, tokens = full.kv_over_time
    assert (tokens[np.searchsorted(times, marks) - 1] > 0.9 * 60 * 16).all(), "where memory was full"


def test_tpot_is_that_of_the_summary() -> None:
    report = simulate("vllm", dataset_name="chat", request_rate=3.0, num_prompts=300)
    assert tpot_s(report).mean() * 1e3 == pytest.approx(report.summary()["mean_tpot_ms"])


def test_charts_put_values_where_they_belong() -> None:
    svg = chart(
        [Line(name="a", x=[0.0, 5.0, 10.0], y=[0.0, 50.0, 100.0])],
        Axis(label="x"), Axis(label="y"), title="t", limit=("most", 100.0), marks=[5.0],
    )  # fmt: skip
    (points,) = re.findall(r'<polyline points="([^"]+)"', svg)
    places = [tuple(map(float, pair.split(","))) for pair in points.split()]
    assert places[1][0] == pytest.approx((places[0][0] + places[2][0]) / 2)
    assert places[1][1] == pytest.approx((places[0][1] + places[2][1]) / 2)
    assert places[0][1] > places[2][1], "up is less in SVG"
    assert re.search(rf'<line x1="{places[1][0]:.1f}"[^>]*class="mark"', svg)
    assert f'y1="{places[2][1]:.1f}"' in svg
    steps = chart([Line(name="a", x=[0.0, 1.0], y=[1.0, 3.0], steps=True)], Axis(label="x"), Axis(label="y"), title="t")
    assert len(re.findall(r'<polyline points="([^"]+)"', steps)[0].split()) == 3
    gap = chart([Line(name="a", x=[0, 1, 2, 3], y=[1, np.nan, 2, 3])], Axis(label="x"), Axis(label="y"), title="t")
    assert gap.count("<polyline") == 2
    log = chart([Line(name="a", x=[1, 10, 100], y=[1, 2, 3])], Axis(label="x", log=True), Axis(label="y"), title="t")
    (points,) = re.findall(r'<polyline points="([^"]+)"', log)
    at = [float(pair.split(",")[0]) for pair in points.split()]
    assert at[1] == pytest.approx((at[0] + at[2]) / 2, abs=0.2)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_the_names_of_a_legend_do_not_overlap(count: int) -> None:
    names = [f"prefill apart, power-of-two {index}" for index in range(count)]
    at = np.array([1.0, 2.0])
    drawn = [
        chart([Line(name=name, x=at, y=at) for name in names], Axis(label="x"), Axis(label="y"), title="lines"),
        bars({"a": dict.fromkeys(names, 1.0)}, title="bars", unit=""),
    ]
    for svg in drawn:
        places = [
            (float(y), float(x), text)
            for x, y, text in re.findall(r'<text x="([\d.]+)" y="([\d.]+)">(prefill[^<]*)</text>', svg)
        ]
        assert [text for _, _, text in places] == (names if count > 1 else [])
        for (row, left, text), (next_row, following, _) in pairwise([*places, (-1.0, 720.0, "")]):
            assert left + 7 * len(text) <= (following if next_row == row else 720)
        highest = min(float(y) for y in re.findall(r'<(?:polyline points="[\d.]+,|rect x="190" y=")([\d.]+)', svg))
        assert all(row < highest for row, _, _ in places)


def test_a_report_without_anything_served(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["simulate", *OVERLOAD[:-1], "kv_blocks=5", "--report", str(page)]) == 1
    assert "Nothing was held" in page.read_text(encoding="utf-8")


def test_a_report_that_cannot_be_made_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *OVERLOAD, "--report", str(tmp_path / "no" / "page.html")]) == 2
    assert "page.html" in capsys.readouterr().err
    kept = tmp_path / "kept.html"
    kept.write_text("as it was", encoding="utf-8")
    assert main(["replay", "/nowhere", "--report", str(kept)]) == 2
    assert kept.read_text(encoding="utf-8") == "as it was"
    monkeypatch.setattr("wait_core.report.html.page.find_spec", lambda _name: None)
    assert main(["simulate", *OVERLOAD, "--report", str(kept)]) == 2
    assert "pip install '.[report]'" in capsys.readouterr().err


def test_the_same_runs_give_the_same_page() -> None:
    report = simulate("vllm", dataset_name="p64d32", request_rate=50.0, num_prompts=100, kv_blocks=60)
    first, second = (rendered(page_of_simulations([report], command="c")) for _ in range(2))
    assert first == second


def chromium(page: Path, width: int, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    flags: Sequence[str] = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
    )
    return subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={folder}", f"--window-size={width},1600", *options, page.as_uri()],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to look at the pages with")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_it(width: int, pages: dict[str, Path], tmp_path: Path) -> None:
    """No error on its console, no page wider than its window, and a screenshot that is not empty."""
    for name, page in pages.items():
        measured = tmp_path / f"{name}.html"
        probe = (
            "<script>document.title = [document.documentElement.scrollWidth, innerWidth].join(' of ')</script></body>"
        )
        measured.write_text(page.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
        done = chromium(measured, width, tmp_path / "profile", "--dump-dom")
        assert "CONSOLE" not in done.stderr
        across = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout)
        assert across is not None, done.stderr
        assert int(across[1]) <= int(across[2]), f"{name} is {across[0]} wide"
    picture = tmp_path / "page.png"
    done = chromium(pages["compare"], width, tmp_path / "profile", f"--screenshot={picture}")
    assert "CONSOLE" not in done.stderr
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20], "big") == width
    assert len(data) > 20_000, "an empty page compresses to a few kilobytes"
