"""Every setting of the core, described once: in the doc comments of rust/core/src/config.rs.

`scripts/settings.py` makes from them the files here (schema.json, which also describes a settings file to an editor,
and the types of keyword arguments), the text of `help(Scheduler)` and docs/settings.md. Deliberately absent: checking
values, which is the core's, and the settings of the vLLM adapter (`wait_core.vllm.config`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from wait_core.files import read_object

__all__ = ["POLICIES", "Setting", "schema", "settings"]

POLICIES = ("vllm", "wait", "nested-wait", "prefill-first", "sarathi", "clairvoyant", "adaptive")
"""Names of the policies, see docs/policies.md."""

SCHEMA = Path(__file__).with_name("schema.json")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of the core.

    Attributes
    ----------
    name : str
        The keyword of `wait_core.Scheduler`, and the key in a settings file.
    type : str
        "integer", "number or null", "list of numbers", ...; a choice lists its values.
    unit : str
        "tokens", "s", ...; empty where there is none.
    default : object
        The value where it is absent; None where nothing is set.
    absent : str
        What applies if it is absent, in words.
    range : str
        The values that the core accepts, in words; empty where the type says it all.
    meaning : str
        What it does.
    policies : tuple of str
        The policies that use it.

    """

    name: str
    type: str
    unit: str
    default: object
    absent: str
    range: str
    meaning: str
    policies: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as plain values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"policies": list(self.policies)}


@cache
def schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a settings file; do not change it."""
    return read_object(SCHEMA)


@cache
def settings() -> tuple[Setting, ...]:
    """Return all settings, in the order of rust/core/src/config.rs."""
    return tuple(
        Setting(
            name=name,
            type=each["x-type"],
            unit=each.get("x-unit", ""),
            default=each.get("default"),
            absent=each["x-absent"],
            range=each.get("x-range", ""),
            meaning=each["description"],
            policies=tuple(each.get("x-policies", POLICIES)),
        )
        for name, each in schema()["properties"].items()
    )
