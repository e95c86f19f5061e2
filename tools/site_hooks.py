"""Hooks of mkdocs: pages that lie outside ``docs/`` join the site, and links between files become links between pages.

In the repository every link is a path from the file that holds it, so that it works where the files are read as they are;
here the same links are turned to where the pages stand in the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()(?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?(?=\))")


def pages_outside_docs() -> dict[str, str]:
    """Page of the site by the file that it is made of, both with forward slashes."""
    pages = {"README.md": "index.md", "CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md"}
    for readme in sorted(ROOT.glob("recipes/*/README.md")):
        pages[readme.relative_to(ROOT).as_posix()] = f"results/{readme.parent.name}.md"
    return pages


def page_of(source: str) -> str | None:
    """Where a file of the repository stands in the site, or ``None``."""
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    return pages_outside_docs().get(source)


def relink(text: str, source: str) -> str:
    """``text`` of the file ``source`` with its links to files as links between pages."""
    page = page_of(source)
    assert page is not None

    def turned(link: re.Match[str]) -> str:
        target = page_of(posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"])))
        if target is None:
            return link[0]  # mkdocs warns of it, which ends a strict build
        return posixpath.relpath(target, posixpath.dirname(page) or ".") + (link["anchor"] or "")

    return LINK.sub(turned, text)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made of files outside ``docs/``."""
    for source, page in pages_outside_docs().items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Turn the links of a page."""
    sources = {made: source for source, made in pages_outside_docs().items()}
    return relink(markdown, sources.get(page.file.src_uri, f"docs/{page.file.src_uri}"))
