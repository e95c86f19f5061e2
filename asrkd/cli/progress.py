"""Progress for people and silence for pipes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Report = Callable[[int, int, str], None]
"""Called with what is done, the total, and a short text."""


def console() -> Console:
    """Where people read: standard error, so that results on standard output stay clean."""
    # A pipe or a log has no width of its own; tables need more than the usual 80 columns.
    return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 180)


RELAY = "ASRKD_PROGRESS_FILE"
_RELAY_EVERY_S = 0.5


def _silent(done: int, total: int, text: str = "") -> None:
    """Show nothing."""


def _relayed(path: Path, name: str) -> Report:
    """Write how far a stage is to a file, twice a second at most."""
    written = 0.0

    def report(done: int, total: int, text: str = "") -> None:
        nonlocal written
        if done < total and time.monotonic() - written < _RELAY_EVERY_S:
            return
        written = time.monotonic()
        staged = path.with_suffix(".writing")
        staged.write_text(json.dumps({"stage": name, "done": done, "total": total}), encoding="utf-8")
        os.replace(staged, path)

    return report


def relayed(path: Path) -> tuple[str, int, int] | None:
    """Stage, what is done and the total that another process wrote last; ``None`` before it began."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return None
    return found["stage"], found["done"], found["total"]


@contextmanager
def stages() -> Iterator[Callable[[str], Report]]:
    """One bar a stage, each with its own ETA; in a pipe, one line when a stage ends.

    Only the first rank of several shows anything. Where the environment names a file as ``RELAY``, what would be shown goes
    there, for another process to show.

    Yields:
        A function that begins a stage by its name and gives the callback that reports on it.
    """
    if os.environ.get("RANK", "0") != "0":
        yield lambda name: _silent
        return
    if relay := os.environ.get(RELAY):
        yield lambda name: _relayed(Path(relay), name)
        return
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=console(),
        disable=not sys.stderr.isatty(),
    )

    def begin(name: str) -> Report:
        task = bars.add_task(name, total=None, text="")
        started = time.monotonic()
        ended = False

        def report(done: int, total: int, text: str = "") -> None:
            nonlocal ended
            bars.update(task, completed=done, total=total, text=text)
            if done >= total and not ended and bars.disable:
                ended = True
                sys.stderr.write(f"{name}: {done}/{total} in {time.monotonic() - started:.1f} s\n")

        return report

    with bars:
        yield begin
