"""MkDocs hook: links from a page to a file of the repository outside docs/.

In the repository they are relative, such as `../schemas/signals.sql`. On the site they lead to the
file at `repo_url`; without a `repo_url` only their text stays. A file that does not exist is a
warning, which fails a strict build.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)")
log = logging.getLogger("mkdocs.hooks.site_links")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Return the page with each link out of docs/ as an absolute one, or as its text."""
    root = Path(config["docs_dir"]).parent
    address = (config["repo_url"] or "").rstrip("/")

    def absolute(match: re.Match[str]) -> str:
        text, path, fragment = match[1], match[2], match[3] or ""
        if not (root / path).exists():
            log.warning(
                f"Doc file '{page.file.src_uri}' contains a link '../{path}', "
                "but the repository has no such file."
            )
        if not address:
            return text
        kind = "tree" if (root / path).is_dir() else "blob"
        return f"[{text}]({address}/{kind}/main/{path}{fragment})"

    return LINK.sub(absolute, markdown)
