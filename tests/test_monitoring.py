"""The dashboard and the alert rules use existing metrics, and the troubleshooting page covers every alert."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).resolve().parent.parent / "docs"
DASHBOARD = json.loads((DOCS / "monitoring" / "grafana.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((DOCS / "monitoring" / "alerts.yml").read_text(encoding="utf-8"))
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]

# What the exporter makes of a counter and a histogram: tests/with_vllm compares the table with the metrics themselves.
TABLE = (DOCS / "vllm.md").read_text(encoding="utf-8").split("\n## Seen from outside\n")[1].split("\n## ")[0]
DOCUMENTED = set(re.findall(r"`(wait_core_\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", TABLE, re.MULTILINE))))


def asked(expressions: list[str]) -> set[str]:
    """Return the metrics that PromQL asks for; a histogram for its parts."""
    names = re.findall(r"\b(?:wait_core_|vllm:)\w+", " ".join(expressions))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def unbalanced(expression: str) -> bool:
    """Whether a bracket of `expression` has no other half."""
    stack: list[str] = []
    for sign in re.sub(r'"[^"]*"', "", expression):
        if sign in "([{":
            stack.append(")]}"["([{".index(sign)])
        elif sign in ")]}" and (not stack or stack.pop() != sign):
            return True
    return bool(stack)


def test_every_metric_asked_for_exists() -> None:
    ours = {name for name in asked([*EXPRESSIONS, *(rule["expr"] for rule in RULES)]) if name.startswith("wait_core_")}
    assert ours <= DOCUMENTED
    assert len(DOCUMENTED) > 15
    variables = {each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"}
    assert asked(list(variables)) == {"wait_core_active"}


def test_every_metric_is_on_the_dashboard() -> None:
    assert {name for name in asked(EXPRESSIONS) if name.startswith("wait_core_")} == DOCUMENTED


def test_expressions_are_whole() -> None:
    assert unbalanced("sum(rate(a[5m])")
    assert unbalanced("a{b='c')")
    for expression in [*EXPRESSIONS, *(rule["expr"] for rule in RULES)]:
        assert not unbalanced(expression), expression
        for counter in re.findall(r"\bwait_core_\w+_(?:total|bucket)\b(?!\S*\[)", expression):
            raise AssertionError(f"{counter} without a range in {expression}")


def test_the_panels_fill_the_page_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["description"].endswith("."), "every panel is described"
    assert len(taken) == 24 * (1 + max(y for _, y in taken))
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_alert_says_what_to_do() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    names: list[Any] = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names) > 5
    assert set(re.findall(r"`(WaitCore\w+)`", page)) == set(names)
    for rule in RULES:
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
