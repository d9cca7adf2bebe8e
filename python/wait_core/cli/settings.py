"""`wait-core settings`: every setting of the core, from the single source of their descriptions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from wait_core.cli.output import definitions
from wait_core.settings import POLICIES, schema, settings

if TYPE_CHECKING:
    import argparse


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--policy", choices=POLICIES, help="only those that this policy uses")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a list of objects, one a setting")
    form.add_argument("--schema", action="store_true", help="the JSON schema of a settings file (--config)")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.schema:
        print(json.dumps(schema(), indent=1, ensure_ascii=False))
        return 0
    shown = [each for each in settings() if arguments.policy in {None, *each.policies}]
    if arguments.json:
        print(json.dumps([each.to_dict() for each in shown]))
        return 0
    entries = []
    for each in shown:
        required = each.name == "kv_blocks"
        within = " ".join(filter(None, (each.range, each.unit)))
        facts = [each.type, within, each.absent if required else f"default: {each.absent}"]
        if each.policies != POLICIES:
            facts.append(f"used by {', '.join(each.policies)}")
        entries.append((each.name, "; ".join(filter(None, facts)), each.meaning))
    print(definitions(entries))
    return 0
