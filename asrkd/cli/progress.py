"""Progress for people and silence for pipes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Report = Callable[[int, int, str], None]
"""Called with what is done, the total, and a short text."""


def console() -> Console:
    """Where people read: standard error, so that results on standard output stay clean."""
    # A pipe or a log has no width of its own; tables need more than the usual 80 columns.
    return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 180)


@contextmanager
def stages() -> Iterator[Callable[[str], Report]]:
    """One bar a stage, each with its own ETA; in a pipe, one line when a stage ends.

    Yields:
        A function that begins a stage by its name and gives the callback that reports on it.
    """
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
