"""CITATION.cff: what the Citation File Format 1.2.0 requires of the fields that are used, and this version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

import wait_core

FILE = Path(__file__).resolve().parent.parent / "CITATION.cff"

# Of its schema: keys that may stand there, and those that must.
TOP = {
    "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords",
    "license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact",
    "repository-code", "title", "type", "url", "version",
}  # fmt: skip
REFERENCE = (TOP - {"cff-version", "message", "preferred-citation", "references"}) | {"year", "journal", "volume"}
PERSON = {
    "family-names",
    "given-names",
    "name-particle",
    "name-suffix",
    "alias",
    "orcid",
    "email",
    "affiliation",
    "website",
}
ENTITY = {"name", "address", "city", "country", "email", "orcid", "website", "alias"}


def check_authors(authors: Any) -> None:
    assert authors
    for author in authors:
        assert set(author) <= (ENTITY if "name" in author else PERSON), author
        assert all(isinstance(value, str) and value for value in author.values())


def check_reference(reference: dict[str, Any]) -> None:
    assert {"type", "title", "authors"} <= set(reference) <= REFERENCE, set(reference) - REFERENCE
    check_authors(reference["authors"])
    assert isinstance(reference["year"], int)
    for each in reference.get("identifiers", []):
        assert {"type", "value"} <= set(each) <= {"type", "value", "description"}
        assert each["type"] in {"doi", "url", "swh", "other"}


def test_the_file_is_valid() -> None:
    cff = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cff) <= TOP
    assert cff["cff-version"] == "1.2.0"
    assert cff["type"] in {"software", "dataset"}
    check_authors(cff["authors"])
    for reference in [*cff["references"], cff["preferred-citation"]]:
        check_reference(reference)


def test_it_is_of_this_version_and_names_the_paper() -> None:
    cff = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    assert str(cff["version"]) == wait_core.__version__ == str(cff["preferred-citation"]["version"])
    assert any("2504.11320" in reference["url"] for reference in cff["references"])
