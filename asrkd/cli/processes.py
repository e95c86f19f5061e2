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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

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
        running = [
            _Running(_command(words, 1), _environment(2), Path(folder) / name, stage)
            for name, words in commands.items()
        ]
        try:
            while True:
                statuses = [one.look() for one in running]
                failed = next((status for status in statuses if status), None)
                if failed is not None:
                    raise typer.Exit(failed)
                if None not in statuses:
                    return
                time.sleep(_LOOK_EVERY_S)
        finally:
            for one in running:
                one.end()


def run_watched(
    words: Sequence[str], stage: Callable[[str], Report], stop: Callable[[], bool], errors: Path, processes: int = 1
) -> int | None:
    """Run a verb while something looks at what it does.

    Args:
        words: After ``asrkd``.
        stage: Begins a progress bar, for the stages of the verb.
        stop: Asked again and again while the verb runs; it is ended as soon as the answer is yes.
        errors: File that its standard error is added to.
        processes: Ranks under torchrun, with a thread each.

    Returns:
        The verb's status, or ``None`` if it was ended.
    """
    with tempfile.TemporaryDirectory() as folder, errors.open("ab") as log:
        one = _Running(_command(words, processes), _environment(processes), Path(folder) / "relay", stage, log)
        try:
            while (status := one.look()) is None:
                if stop():
                    return None
                time.sleep(_LOOK_EVERY_S)
            return status
        finally:
            one.end()


class _Running:
    """A verb in a process of its own, and a progress bar for each of its stages."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        relay: Path,
        stage: Callable[[str], Report],
        errors: IO[bytes] | None = None,
    ) -> None:
        self._relay, self._stage = relay, stage
        self._bars: dict[str, Report] = {}
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors, env={**environment, RELAY: str(relay)}
        )

    def look(self) -> int | None:
        """Show how far it is; its status once it has ended."""
        status = self._process.poll()
        if (seen := relayed(self._relay)) is not None:
            title, done, total = seen
            if title not in self._bars:
                self._bars[title] = self._stage(title)
            self._bars[title](done, total, "")
        return status

    def end(self) -> None:
        """End it if it has not ended."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


def _command(words: Sequence[str], processes: int) -> list[str]:
    ranks = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"] if processes > 1 else []
    return [sys.executable, "-m", *ranks, "asrkd", *words]


def _environment(processes: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"} if processes > 1 else dict(os.environ)
