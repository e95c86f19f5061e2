"""What the tests of corpora made here share: comparing folders, and killing a making in its midst."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def digest(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file, by its path in ``folder``."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def killed_midway(code: str, out: Path) -> dict[Path, int]:
    """Runs Python ``code``, kills it once the first training chapter is in ``out``; gives the chapters' transcripts and times."""
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, cwd=Path(__file__).parents[2])
    for _ in range(600):
        if list(out.glob("train/*/[0-9]*/*.trans.txt")) or process.poll() is not None:
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return {path: path.stat().st_mtime_ns for path in out.glob("*/*/[0-9]*/*.trans.txt")}
