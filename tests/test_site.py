"""The documentation site: every page is in its navigation and in llms.txt, and every public name on a page."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import wait_core
from wait_core.simulation import Disaggregated, Transfer

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "scripts"))

import llms  # noqa: E402

PARTS = ["workload", "simulation", "planning", "fleet", "logs", "hardware", "report"]
MODULES = ["wait_core", *(f"wait_core.{part}" for part in PARTS)]


def titles(nav: list[Any]) -> dict[str, str]:
    """Return the titles of the pages in a navigation, in its order."""
    found: dict[str, str] = {}
    for entry in nav:
        for title, under in entry.items():
            found |= titles(under) if isinstance(under, list) else {under: title}
    return found


NAV = titles(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
INDEX = (DOCS / "index.md").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation() -> None:
    assert set(NAV) == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


def test_llms_txt_says_one_line_of_every_page() -> None:
    listed = re.findall(r"^- \[(.+)\]\((.+)/\): \S.*\.$", llms.llms_txt(INDEX), re.MULTILINE)
    assert [(f"{page}.md", title) for title, page in listed] == [each for each in NAV.items() if each[0] != "index.md"]


def test_llms_txt_leads_to_built_pages() -> None:
    text = llms.llms_txt("# a\n\nb [c](https://d.md)\ne\n\n- [f](g/h.md#i): j\n- [k](l.md): m\n")
    assert text == "# a\n\n> b [c](https://d.md)\n> e\n\n- [f](g/h/#i): j\n- [k](l/): m\n"


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_described(name: str) -> None:
    """A module hides an object of its name from the page of the package, so that page lists it separately."""
    page = (DOCS / "api" / f"{name.rpartition('.')[2]}.md").read_text(encoding="utf-8")
    described = re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    module = importlib.import_module(name)
    hidden = [each for each in module.__all__ if importlib.util.find_spec(f"{name}.{each}")]
    assert described == [name, *(f"{name}.{each}.{each}" for each in hidden)]


@pytest.mark.parametrize("objective", [{}, {"slo_ttft_ms": 2000.0}])
def test_result_keys_are_those_of_a_run(objective: dict[str, float]) -> None:
    page = (DOCS / "results.md").read_text(encoding="utf-8").split("## One row a request")[0]
    tables = "\n".join(line.split("|")[1] for line in page.splitlines() if line[:1] == "|")
    keys: set[str] = set()
    apart = Disaggregated(prefill=1, decode=1, transfer=Transfer.of())
    for replicas in (None, 2, apart):
        report = wait_core.simulate("vllm", dataset_name="chat", request_rate=4, num_prompts=20, replicas=replicas)
        keys |= set(report.summary(**objective))
    goodput = {"goodput", "request_goodput"}
    assert set(re.findall(r"`(\w+)`", tables)) - (set() if objective else goodput) == keys
