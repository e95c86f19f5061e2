"""The code blocks of the documentation, each with its page and its heading."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "recipes").glob("*/README.md")),
]
_PART = re.compile(r"^#+ (?P<title>[^\n]*)$|^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block. ``language`` is ``""`` for commands and their output."""

    page: str
    heading: str
    place: int
    language: str
    text: str

    @property
    def id(self) -> str:
        return f"{self.page}:{self.place}:{self.heading}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command line that runs asrkd, from ``asrkd`` on."""
        found = []
        for line in self.text.replace("\\\n", " ").splitlines():
            for command in line.split("&&"):
                if not re.match(r"\s*(asrkd|(torchrun|python) .*-m asrkd) ", command):
                    continue
                words = shlex.split(command, comments=True)
                found.append(words[words.index("asrkd") :])
        return found


def blocks(*languages: str) -> list[Block]:
    """All blocks in one of ``languages``, in the order of the pages."""
    found = []
    for path in PAGES:
        heading = ""
        for place, part in enumerate(_PART.finditer(path.read_text(encoding="utf-8"))):
            if part["title"] is not None:
                heading = part["title"]
            elif part["language"] in languages:
                page = path.relative_to(ROOT).as_posix()
                found.append(Block(page, heading, place, part["language"], part["text"]))
    return found
