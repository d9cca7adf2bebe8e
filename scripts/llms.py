"""Write llms.txt, the list of the documentation's pages for language models (llmstxt.org), when the site is built.

It is docs/index.md, whose links then lead to the built pages: `mkdocs.yml` names this file as a hook.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = re.compile(r"\]\((?![a-z]+:)([^)#]+)\.md(#[^)]+)?\)")


def llms_txt(index: str) -> str:
    """Return llms.txt, given the text of docs/index.md: the summary is a quotation, links are relative to the site."""
    title, summary, rest = index.split("\n\n", 2)
    quoted = "\n".join(f"> {line}" for line in summary.splitlines())
    return PAGE.sub(lambda found: f"]({found[1]}/{found[2] or ''})", f"{title}\n\n{quoted}\n\n{rest}")


def on_post_build(config: Any) -> None:
    """Write the file beside the pages; mkdocs calls it."""
    index = Path(config["docs_dir"], "index.md").read_text(encoding="utf-8")
    Path(config["site_dir"], "llms.txt").write_text(llms_txt(index), encoding="utf-8")
