"""Make every description of the settings from one: the doc comments of rust/core/src/config.rs.

    python scripts/settings.py            # write them; build again afterwards, for help(Scheduler)
    python scripts/settings.py --check    # say which are out of date, and end with 1

Written are the JSON schemas of settings files (of the core, of the vLLM adapter), the types of the keyword arguments,
the text of `help(Scheduler)`, and docs/settings.md. Defaults are read from the core itself.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from wait_core import Scheduler
from wait_core.settings import POLICIES
from wait_core.vllm import config as adapter

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "rust" / "core" / "src"
DRAFT = "https://json-schema.org/draft/2020-12/schema"
SCALARS = {"bool": ("boolean", "bool"), "f64": ("number", "float"), "f32": ("number", "float")}
SCALARS |= dict.fromkeys(("u8", "u16", "u32", "u64", "usize", "i32", "i64"), ("integer", "int"))
NUMBER = r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?:\^\d+)?"
RANGE = re.compile(
    rf"(?P<each>each )?(?:(?P<least>at least|above)? ?(?P<low>{NUMBER}))?"
    rf"(?:(?:^|(?<=.) to )(?P<below>below )?(?P<high>{NUMBER})|at most (?P<most>{NUMBER}))?(?: (?P<unit>[a-z]+))?"
)


@dataclass
class Item:
    """A field of a Rust struct or a variant of an enum: its name, its type where it has one, and its doc comment."""

    name: str
    kind: str
    doc: str


@cache
def items(name: str) -> tuple[str, tuple[Item, ...]]:
    """Return "struct" or "enum" and what the Rust type of this name in the core has; "" where there is none."""
    for path in sorted(CORE.rglob("*.rs")):
        found = re.search(
            rf"^pub (struct|enum) {name} {{\n(.*?)^}}\n", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
        if found is None:
            continue
        doc: list[str] = []
        made = []
        hidden = False
        for line in map(str.strip, found[2].splitlines()):
            if line.startswith("///"):
                doc.append(line.removeprefix("///").strip())
            elif line == "#[serde(skip)]":  # what follows is no value of a setting
                hidden = True
            elif field := re.match(r"(?:pub )?(\w+)(?:: (.+?)|\(.*\)|\s*{.*)?,?$", line):
                label = field[1] if found[1] == "struct" else re.sub(r"(?<!^)(?=[A-Z])", "-", field[1]).lower()
                made += [] if hidden else [Item(label, field[2] or "", " ".join(doc))]
                doc, hidden = [], False
        return found[1], tuple(made)
    return "", ()


def described(item: Item) -> dict[str, Any]:
    """Return the schema of one setting.

    Raises
    ------
    ValueError
        If its doc comment does not have the form that `Config` states.

    """
    parts = re.fullmatch(
        r"(?P<meaning>.*) \((?P<absent>[^()]*(?:\([^()]*\)[^()]*)*)\)\.(?: \[(?P<facts>[^\]]*)\])?", item.doc
    )
    if parts is None:
        raise ValueError(f"{item.name}: {item.doc!r} is not of the form: meaning (default). [range; policies]")
    made: dict[str, Any] = {"description": f"{parts['meaning']}.".replace("`", ""), **typed(item.kind)}
    made["x-absent"] = parts["absent"].replace("`", "")
    for fact in filter(None, (parts["facts"] or "").split("; ")):
        names = fact.split(", ")
        if set(names) <= set(POLICIES):
            made["x-policies"] = names
        else:
            bound(made, item.name, fact)
    default = defaults()[item.name]
    if item.name != "kv_blocks":  # the one that is required
        made["default"] = default
        if isinstance(default, bool | int | float | str) and written(default) != made["x-absent"]:
            raise ValueError(f"{item.name}: the default is {default}, its doc comment says {made['x-absent']}")
    return made


def written(value: object) -> str:
    """Return a default as doc comments write it: false, 2,048, 0.05, fcfs."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def bound(made: dict[str, Any], name: str, fact: str) -> None:
    """Add the limits that `fact` states."""
    found = RANGE.fullmatch(fact)
    if found is None:
        raise ValueError(f"{name}: {fact!r} is no range")
    if found["unit"]:
        made["x-unit"] = found["unit"]
    made["x-range"] = fact.removesuffix(f" {found['unit']}")
    where = made["items"] if found["each"] else made
    if found["low"]:
        where["exclusiveMinimum" if found["least"] == "above" else "minimum"] = number(found["low"])
    if found["high"]:
        where["exclusiveMaximum" if found["below"] else "maximum"] = number(found["high"])
    if found["most"]:
        made["maxItems"] = number(found["most"])


def number(text: str) -> float:
    """Return the number that "65,536", "2^30" or "1e-6" is."""
    base, power, exponent = text.replace(",", "").partition("^")
    value = float(base) ** int(exponent) if power else float(base)
    return int(value) if value == int(value) and "e-" not in text else value


def typed(kind: str) -> dict[str, Any]:
    """Return what the schema says of a Rust type."""
    if inner := re.fullmatch(r"Option<(.+)>", kind):
        made = typed(inner[1])
        also = made["type"] if isinstance(made["type"], list) else [made["type"]]
        return made | {"type": [*also, "null"], "x-type": f"{made['x-type']} or null"}
    if inner := re.fullmatch(r"Vec<(.+)>", kind):
        each = typed(inner[1])
        name = each.pop("x-type")
        return {"type": "array", "items": each, "x-type": f"list of {name if ',' in name else name + 's'}"}
    if kind in SCALARS or kind == "KvGroup":
        return kv_group() if kind == "KvGroup" else {"type": SCALARS[kind][0], "x-type": SCALARS[kind][0]}
    what, parts = items(kind)
    if what == "enum" and not any(tag(kind)):
        choices = [{"const": each.name, "description": each.doc.replace("`", "")} for each in parts]
        return {"type": "string", "oneOf": choices, "x-type": ", ".join(each.name for each in parts)}
    if what == "enum":
        (key,) = tag(kind)
        choices = [{"const": each.name, "description": each.doc.replace("`", "")} for each in parts]
        return {"type": "object", "properties": {key: {"oneOf": choices}}, "required": [key], "x-type": "object"}
    if what == "struct":
        inside = {each.name: {"description": each.doc, **typed(each.kind)} for each in parts}
        for each in inside.values():
            each.pop("x-type")
        names = list(inside)
        return {"type": "object", "properties": inside, "required": names, "additionalProperties": False,
                "x-type": f"{{{', '.join(names)}}}"}  # fmt: skip
    raise ValueError(f"{kind}: not a type that a setting can have")


def kv_group() -> dict[str, Any]:
    """Return what the schema says of a KV cache group: its kind stands beside what the kind takes."""
    wanted = {"full": "", "sliding_window": "window", "chunked_local": "chunk", "state": "blocks"}
    said = {each.name.replace("-", "_"): each.doc.replace("`", "") for each in items("GroupKind")[1]}
    kinds = [{"const": name, "description": said[name]} for name in wanted]
    properties: dict[str, Any] = {"kind": {"type": "string", "oneOf": kinds}}
    for name in ("window", "chunk", "blocks"):
        properties[name] = {"type": "integer", "minimum": 1, "description": said[name]}
    properties["aligned"] = {"type": "boolean", "description": said["aligned"]}
    for each in items("KvGroup")[1]:
        if each.name != "kind":
            properties[each.name] = {"type": "integer", "minimum": 1, "description": each.doc.replace("`", "")}
    takes = [{"properties": {"kind": {"const": kind}}, "required": [name]} for kind, name in wanted.items() if name]
    takes.append({"properties": {"kind": {"const": "full"}}})
    return {"type": "object", "properties": properties, "required": ["kind"], "anyOf": takes,
            "additionalProperties": False,
            "x-type": "{kind, window, chunk, blocks, aligned, block_size, count}"}  # fmt: skip


@cache
def tag(kind: str) -> tuple[str, ...]:
    """Return the key that distinguishes the variants of an enum, if they hold fields."""
    for path in sorted(CORE.rglob("*.rs")):
        if found := re.search(rf'#\[serde\(tag = "(\w+)"[^\n]*\npub enum {kind} {{', path.read_text(encoding="utf-8")):
            return (found[1],)
    return ()


@cache
def defaults() -> dict[str, Any]:
    """Return the settings in force where only the required one is given."""
    return Scheduler(kv_blocks=1 << 20).settings


def core_schema() -> dict[str, Any]:
    """Return the schema of a settings file of the core."""
    made = {item.name: described(item) for item in items("Config")[1]}
    if set(made) != set(defaults()):
        raise ValueError(f"in config.rs or in the core built from it alone: {sorted(set(made) ^ set(defaults()))}")
    return {
        "$schema": DRAFT,
        "title": "Settings of wait-core",
        "description": "For --config, and the keyword arguments of wait_core.Scheduler.",
        "type": "object",
        "properties": made,
        "additionalProperties": False,
    }


def adapter_rows() -> list[tuple[str, str, object, str]]:
    """Return name, type, default and meaning of the adapter's own settings, from its docstring."""
    text = (inspect.getdoc(adapter.Settings) or "").split("----------\n")[1] + "\n"
    docs = dict(re.findall(r"^(\w+)\n((?:    .*\n?)+)", text, re.MULTILINE))
    rows = []
    for field in fields(adapter.Settings):
        if field.name in adapter.OWN:
            meaning = " ".join(docs[field.name].split()).replace("``", "")
            rows.append((field.name, str(field.type).replace("None", "null"), field.default, meaning))
    return rows


def adapter_schema(core: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the object under additional_config["wait_core"], and of its settings file."""
    names = {"str": "string", "bool": "boolean", "float": "number", "null": "null"}
    own: dict[str, Any] = {}
    for name, kind, default, meaning in adapter_rows():
        types = [names[each] for each in kind.split(" | ")]
        own[name] = {"description": meaning, "type": types if len(types) > 1 else types[0], "default": default}
        if types == ["number"]:
            own[name]["minimum"] = 0
    own["policy"] = {**core["properties"]["policy"], "default": own["policy"]["default"]}
    others = {name: each for name, each in core["properties"].items() if name not in {*own, *adapter.FROM_ENGINE}}
    about = 'Under additional_config["wait_core"], and in the file that config_file names.'
    return core | {"title": "Settings of wait-core in vLLM", "description": about, "properties": own | others}


def python_type(kind: str) -> str:
    """Return the annotation of a keyword argument of this Rust type."""
    if inner := re.fullmatch(r"Option<(.+)>", kind):
        return f"{python_type(inner[1])} | None"
    if inner := re.fullmatch(r"Vec<(.+)>", kind):
        return f"Sequence[{python_type(inner[1])}]"
    if kind in SCALARS:
        return SCALARS[kind][1]
    what, parts = items(kind)
    if what == "struct":
        return kind
    names = ", ".join(json.dumps(each.name) for each in parts)
    return "Mapping[str, Any]" if tag(kind) else f"Literal[{names}]"


def types() -> str:
    """Return the module of the keyword arguments' types."""
    config = items("Config")[1]
    structs = sorted({each for item in config for each in re.findall(r"\w+", item.kind) if items(each)[0] == "struct"})
    blocks = ['"""Types of the keyword arguments that are settings. Made by scripts/settings.py."""\n']
    blocks.append("from collections.abc import Mapping, Sequence\nfrom typing import Any, Literal, TypedDict\n")
    for name in structs:
        if name == "KvGroup":
            blocks.append(kv_group_types())
            continue
        rows = [f"    {each.name}: {python_type(each.kind)}\n" for each in items(name)[1]]
        blocks.append(f'\nclass {name}(TypedDict):\n    """See docs/settings.md."""\n\n{"".join(rows)}')
    apart = ("policy", "iteration_time")
    rows = [f"    {each.name}: {python_type(each.kind)}\n" for each in config if each.name not in apart]
    about = "Settings of the core but the policy and the law; see docs/settings.md."
    blocks.append(f'\nclass EngineSettings(TypedDict, total=False):\n    """{about}"""\n\n{"".join(rows)}')
    about = "Settings of the core but the policy; see docs/settings.md."
    law = next(python_type(each.kind) for each in config if each.name == "iteration_time")
    blocks.append(f'\nclass Settings(EngineSettings, total=False):\n    """{about}"""\n\n    iteration_time: {law}\n')
    text = "\n".join(blocks)
    done = subprocess.run(["ruff", "format", "-"], input=text, capture_output=True, text=True, check=True)  # noqa: S607
    return done.stdout


def kv_group_types() -> str:
    """Return the types of a group of the KV cache."""
    made = kv_group()["properties"]
    kinds = ", ".join(f'"{each["const"]}"' for each in made.pop("kind")["oneOf"])
    names = {"integer": "int", "boolean": "bool"}
    rows = "".join(f"    {name}: {names[each['type']]}\n" for name, each in made.items())
    return (
        f"\nclass _KvGroupKind(TypedDict):\n    kind: Literal[{kinds}]\n\n"
        f'\nclass KvGroup(_KvGroupKind, total=False):\n    """See docs/settings.md."""\n\n{rows}'
    )


def docstring(core: dict[str, Any]) -> str:
    """Return the part of `help(Scheduler)` that lists the settings."""
    lines = ["", "Parameters", "----------"]
    for name, each in core["properties"].items():
        lines.append(f"{name} : {facts(each)}")
        lines += textwrap.wrap(each["description"], 108, initial_indent="    ", subsequent_indent="    ")
        if "x-policies" in each:
            lines.append(f"    Used by {', '.join(each['x-policies'])}.")
    return "\n".join(lines) + "\n"


def facts(each: dict[str, Any]) -> str:
    """Return type, range, unit and default in one line."""
    within = " ".join(filter(None, (each.get("x-range"), each.get("x-unit"))))
    absent = "required" if "default" not in each else f"default: {each['x-absent']}"
    return ", ".join(filter(None, (each["x-type"], within, absent)))


def document(core: dict[str, Any]) -> str:
    """Return docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Made by `python scripts/settings.py` from the doc comments of `rust/core/src/config.rs`; `wait-core settings`",
        "prints the same, `wait-core settings --schema` the JSON schema of a settings file.",
        "",
        "## Of the core",
        "",
        "Keyword arguments of `wait_core.Scheduler` and `wait_core.simulate`, `--set NAME=VALUE` of a command,",
        "and keys of a `--config` file.",
        "",
        "| name | type | range, unit | where absent | used by | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for name, each in core["properties"].items():
        within = " ".join(filter(None, (each.get("x-range"), each.get("x-unit"))))
        used_by = ", ".join(each.get("x-policies", ["all"]))
        cells = (f"`{name}`", each["x-type"], within, each["x-absent"], used_by, each["description"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    for name, each in core["properties"].items():
        inner = each.get("items", each)
        if choices := inner.get("oneOf"):
            lines += ["", f"### `{name}`", ""]
            lines += [f"- `{choice['const']}`: {choice['description']}" for choice in choices]
        elif inner.get("properties"):
            lines += ["", f"### `{name}`", ""]
            for key, part in inner["properties"].items():
                if "oneOf" in part:
                    lines += [f"- `{key}` = `{choice['const']}`: {choice['description']}" for choice in part["oneOf"]]
                else:
                    lines.append(f"- `{key}`: {part['description']}")
    lines += [
        "",
        "## Of the vLLM adapter",
        "",
        'Under `additional_config["wait_core"]`, beside those of the core that do not follow the engine',
        f"({', '.join(f'`{name}`' for name in adapter.FROM_ENGINE)} do, or cannot be set);",
        "[vllm-settings.schema.json](vllm-settings.schema.json) describes both to an editor, [vllm.md](vllm.md) says",
        "more.",
        "",
        "| name | type | where absent | meaning |",
        "|---|---|---|---|",
    ]
    for name, kind, default, meaning in adapter_rows():
        lines.append(f"| `{name}` | {kind.replace('|', 'or')} | {json.dumps(default)} | {meaning} |")
    return "\n".join(lines) + "\n"


def plain(value: dict[str, Any]) -> str:
    """Return JSON as files have it."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def outputs() -> dict[Path, str]:
    """Return what each file should hold."""
    core = core_schema()
    return {
        ROOT / "python" / "wait_core" / "settings" / "schema.json": json.dumps(core, indent=1, ensure_ascii=False)
        + "\n",
        ROOT / "python" / "wait_core" / "settings" / "types.py": types(),
        ROOT / "rust" / "py" / "src" / "settings.txt": docstring(core),
        ROOT / "docs" / "settings.md": document(core),
        ROOT / "docs" / "vllm-settings.schema.json": json.dumps(adapter_schema(core), indent=1, ensure_ascii=False)
        + "\n",
    }


def main(arguments: list[str]) -> int:
    """Write or check them."""
    made = outputs()
    stale = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(path.relative_to(ROOT))
        if "--check" not in arguments:
            path.write_text(made[path], encoding="utf-8")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
