"""What a page consists of, and how it is written out."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wait_core._core import WaitCoreError, __version__
from wait_core.extras import install
from wait_core.files import as_unicode
from wait_core.report.tables import cells
from wait_core.settings import settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST_CHARACTERS = 100
"""Of a value in a table."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: `header` and `rows` of text; the columns whose numbers are in `text` are aligned to the left."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    text: tuple[int, ...] = (0,)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart (`svg`), with what stands above and below it."""

    svg: str
    heading: str = ""
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page under a heading."""

    heading: str
    text: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    verbatim: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page: its title, a summary in a sentence, warnings, and its sections."""

    title: str
    summary: str
    sections: Sequence[Section]
    notes: Sequence[str] = field(default_factory=tuple)


def check_page() -> None:
    """Refuse a page before the work that it is to show, if it could not be written.

    Raises
    ------
    WaitCoreError
        If Jinja2 is not installed.

    """
    if find_spec("jinja2") is None:
        raise WaitCoreError(f"a report needs Jinja2: {install('report')}")


def rendered(page: Page) -> str:
    """Return the page as HTML.

    Raises
    ------
    WaitCoreError
        If Jinja2 is not installed.

    """
    check_page()
    import jinja2  # noqa: PLC0415  an extra

    source = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    # What comes from files and options is escaped; only the charts, whose texts are escaped when drawn, are not.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return as_unicode(environment.from_string(source).render(page=page, version=__version__)) + "\n"


def in_force(given: Mapping[str, Any]) -> Section:
    """Return the section of the settings in force, those that differ from the default first."""
    rows: list[tuple[bool, list[str]]] = []
    for each in settings():
        value = given.get(each.name, each.default)
        own = value != each.default
        unit = f" {each.unit}" if each.unit and isinstance(value, int | float) else ""
        rows.append((not own, [each.name, f"{shown(value)}{unit}", "" if own else "default", each.meaning]))
    table = Table(
        header=["setting", "value", "", "meaning"], rows=[row for _, row in sorted(rows, key=lambda row: row[0])],
        text=(0, 1, 2, 3),
    )  # fmt: skip
    return Section(heading="Settings in force", tables=[table])


def reproduction(command: str, extra: Sequence[str] = ()) -> Section:
    """Return the section that says how to reproduce this page."""
    where = f"wait-core {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    text = f"The same command gives the same figures, on any machine ({where})."
    return Section(heading="How to reproduce it", text=" ".join([text, *extra]), verbatim=[command])


def shown(value: object) -> str:
    """Return a value as a table shows it."""
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return cells([value])[0]
    text = json.dumps(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"
