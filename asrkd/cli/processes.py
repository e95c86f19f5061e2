"""Verbs of asrkd in processes of their own: on every core, and side by side.

Two processes with a thread each do half as much again on two cores as one process with two threads; and what a process
took, it gives back when it ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from asrkd.cli.progress import RELAY, Report, relayed, stages

_LOOK_EVERY_S = 0.5


def usable_cores() -> int:
    """Cores for processes that talk to each other; one where torchrun cannot be relied on."""
    if sys.platform == "win32":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(words: Sequence[str], processes: int = 1) -> None:
    """Run a verb as a user would; its progress is shown as it comes.

    Args:
        words: After ``asrkd``.
        processes: Ranks under torchrun, with a thread each.

    Raises:
        typer.Exit: With the status of a verb that failed.
    """
    status = subprocess.run(
        _command(words, processes), stdout=subprocess.DEVNULL, env=_environment(processes)
    ).returncode
    if status:
        raise typer.Exit(status)


def run_side_by_side(commands: Mapping[str, Sequence[str]]) -> None:
    """Run several verbs at once, with a thread each and a progress bar for every stage of each.

    Args:
        commands: Words after ``asrkd``, by a name.

    Raises:
        typer.Exit: With the status of one that failed; the others are ended first.
    """
    with tempfile.TemporaryDirectory() as folder, stages() as stage:
        files = {name: Path(folder) / name for name in commands}
        running = {
            name: subprocess.Popen(
                _command(words, 1), stdout=subprocess.DEVNULL, env={**_environment(2), RELAY: str(files[name])}
            )
            for name, words in commands.items()
        }
        bars: dict[tuple[str, str], Report] = {}
        try:
            while True:
                ended = [process.poll() is not None for process in running.values()]
                for name, file in files.items():
                    if (seen := relayed(file)) is not None:
                        title, done, total = seen
                        if (name, title) not in bars:
                            bars[name, title] = stage(title)
                        bars[name, title](done, total, "")
                failed = next((p.returncode for p in running.values() if p.poll() not in (None, 0)), None)
                if failed is not None:
                    raise typer.Exit(failed)
                if all(ended):
                    return
                time.sleep(_LOOK_EVERY_S)
        finally:
            for process in running.values():
                if process.poll() is None:
                    process.terminate()
                    process.wait()


def _command(words: Sequence[str], processes: int) -> list[str]:
    ranks = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"] if processes > 1 else []
    return [sys.executable, "-m", *ranks, "asrkd", *words]


def _environment(processes: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"} if processes > 1 else dict(os.environ)
