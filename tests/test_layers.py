"""Imports point down: a room may import only rooms of earlier levels, and itself. No exceptions list."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import asrkd

LEVELS = [
    {"types"},
    {"losses", "data", "decoding"},
    {"models"},
    {"teachers", "targets", "streaming"},
    {"training", "evaluation"},
    {"export", "serving"},
    {"cli"},
]
ROOT = Path(asrkd.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def level_of(room: str) -> int:
    return next(i for i, rooms in enumerate(LEVELS) if room in rooms)


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names = [
                f"{node.module}.{alias.name}" if node.module == "asrkd" else str(node.module) for alias in node.names
            ]
        found |= {name.split(".")[1] for name in names if name.startswith("asrkd.")}
    return found


@pytest.mark.parametrize("path", [f for f in FILES if f.parent != ROOT], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    for other in imported_rooms(path) - {room, "__version__", "load"}:
        assert level_of(other) < level_of(room), f"{room} may not import {other}"


def test_every_room_has_a_level() -> None:
    rooms = {p.name for p in ROOT.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert rooms <= set().union(*LEVELS)


def test_losses_stay_light() -> None:
    """`import asrkd.losses` pulls in torch and nothing else that is heavy."""
    code = (
        "import sys, torch; before = set(sys.modules); import asrkd.losses; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "heavy = {'speechbrain', 'lhotse', 'librosa', 'numba', 'scipy', 'pydantic', 'matplotlib', 'torchaudio', 'typer', 'rich'}; "
        "print(sorted(new & heavy))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
