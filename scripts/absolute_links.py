"""Set the repository in the metadata of a release: run in a checkout that is built and then thrown away.

    python scripts/absolute_links.py https://github.com/OWNER/NAME v1.2.3

The page on PyPI shows README.md, where relative links are broken: each is made to point to the tag. The addresses of
the project go to pyproject.toml. Neither is kept in the repository, which does not know where it is hosted.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(!?)(\[[^\]]*\]\()(?![a-z]+:|#)([^)\s]+)\)")


def absolute(readme: str, repository: str, tag: str) -> str:
    """Return Markdown whose relative links lead to `tag` of `repository`; pictures to what can be shown."""

    def replaced(match: re.Match[str]) -> str:
        picture, text, target = match.groups()
        return f"{picture}{text}{repository}/{'raw' if picture else 'blob'}/{tag}/{target})"

    return LINK.sub(replaced, readme)


def with_urls(pyproject: str, repository: str, tag: str) -> str:
    """Return pyproject.toml with the addresses of the project."""
    urls = {
        "Repository": repository,
        "Issues": f"{repository}/issues",
        "Documentation": f"{repository}/tree/{tag}/docs",
        "Changelog": f"{repository}/blob/{tag}/CHANGELOG.md",
    }
    table = "[project.urls]\n"
    if table not in pyproject:
        raise SystemExit("pyproject.toml has no table [project.urls]")
    return pyproject.replace(table, table + "".join(f'{name} = "{url}"\n' for name, url in urls.items()))


def main(repository: str, tag: str) -> None:
    """Rewrite both files."""
    for name, rewrite in (("README.md", absolute), ("pyproject.toml", with_urls)):
        path = ROOT / name
        path.write_text(rewrite(path.read_text(encoding="utf-8"), repository.rstrip("/"), tag), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
