"""The site builds without a warning, holds every page, and asks no other host for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT

pytest.importorskip("material", reason="mkdocs-material (extra docs) is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "true"}  # an advertisement of the theme, not about our pages
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "WARNING" not in answer.stderr, answer.stderr
    return out


def test_every_page_is_there(site: Path) -> None:
    made = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    expected = {f"{path.stem}.html" for path in PAGES if path.parent == ROOT / "docs"}
    expected |= {f"results/{path.parent.name}.html" for path in PAGES if path.parent.parent == ROOT / "recipes"}
    assert expected | {"index.html", "contributing.html", "changes.html"} <= made


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:link|script|img|iframe)\b[^>]*?(?:href|src)=\"?(https?://[^\"\s>]+)", text)
        assert not loaded, f"{page.name}: {loaded}"
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\(\"?https?://", sheet.read_text(encoding="utf-8")), sheet.name
