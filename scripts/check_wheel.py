"""Look into a wheel before it is installed or published: `python scripts/check_wheel.py [--released] WHEEL...`.

Every wheel: the extension is stripped and names no folder of its builder; without extras nothing is installed that only
draws or fits; the licence and the list of what is compiled in (SBOM) are there. A released one: where the project is,
and no link that leads nowhere.
"""

from __future__ import annotations

import argparse
import email
import re
import zipfile
from pathlib import Path

MOST_BYTES = 2_500_000
"""Size of the extension."""
BASE = {"numpy", "packaging", "tqdm"}
"""What is installed without extras."""
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PARTS = (
    r"wait_core/_core\..*so",
    r"wait_core/settings/schema\.json",
    r"wait_core/report/html/page\.html",
    r".*\.dist-info/METADATA",
    r".*/sboms/.*\.json",
    r".*/LICENSE",
)
"""Files of which a wheel has exactly one."""
FOLDERS = re.compile(rb"/(?:root|home|Users|tmp|work|github)/[\w./-]*")
RELATIVE_LINK = re.compile(r"\]\((?![a-z]+:|#)[^)\s]+\)")


def problems_of_extension(data: bytes) -> list[str]:
    """Return what is wrong with the compiled module."""
    found = [f"the extension has {len(data):,} bytes, more than {MOST_BYTES:,}"] if len(data) > MOST_BYTES else []
    folders = sorted({match.group().decode() for match in FOLDERS.finditer(data)})
    return found + [f"the extension names {folder}, a folder of its builder" for folder in folders[:5]]


def problems_of_metadata(text: str, *, released: bool) -> list[str]:
    """Return what is wrong with the metadata."""
    metadata = email.message_from_string(text)
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    names = {re.split(r"[^\w-]", line)[0].lower() for line in needed}
    found = [] if names == BASE else [f"without extras {sorted(names)} are installed, not {sorted(BASE)}"]
    classifiers = metadata.get_all("Classifier", [])
    found += [
        f"no classifier for Python {version}"
        for version in PYTHONS
        if f"Programming Language :: Python :: {version}" not in classifiers
    ]
    found += [f"{field} is missing" for field in ("Author", "Keywords", "Project-URL") if not metadata.get(field)]
    if released:
        urls = {line.split(",")[0] for line in metadata.get_all("Project-URL", [])}
        found += [f"no address under {name}" for name in ("Repository", "Issues", "Changelog") if name not in urls]
        links = RELATIVE_LINK.findall(metadata.get_payload())  # type: ignore[arg-type]  # the README
        found += [f"the README has a relative link {link}" for link in links[:5]]
    return found


def problems(wheel: Path, *, released: bool) -> list[str]:
    """Return all that is wrong with a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        found = []
        for pattern in PARTS:
            number = sum(re.fullmatch(pattern, name) is not None for name in names)
            if number != 1:
                found.append(f"{number} files are called {pattern}")
        for name in names:
            if re.fullmatch(r"wait_core/_core\..*so", name):
                found += problems_of_extension(archive.read(name))
            elif name.endswith(".dist-info/METADATA"):
                found += problems_of_metadata(archive.read(name).decode(), released=released)
    return found


def main() -> None:
    """Check the wheels that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL")
    parser.add_argument("--released", action="store_true", help="also what a release must have")
    arguments = parser.parse_args()
    failed = False
    for wheel in arguments.wheels:
        found = problems(wheel, released=arguments.released)
        failed |= bool(found)
        print(f"{wheel.name}: {'; '.join(found) or 'nothing is wrong with it'}")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
