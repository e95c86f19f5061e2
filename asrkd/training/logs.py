"""What a run writes about itself while it runs: one JSON line a record, and the same scalars for TensorBoard."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

Progress = Callable[[int, int, str], None]
"""Called with what is done, the total, and a short text to show beside the bar."""


def no_progress(done: int, total: int, text: str) -> None:
    """Show nothing."""


class RunLog:
    """``log.jsonl`` and TensorBoard events in one folder.

    A resumed run drops the lines past the step it resumes from, so that the file reads as if it had never stopped.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.jsonl"
        self._tensorboard_dir = folder / "tensorboard"
        self._writer: SummaryWriter | None = None

    def resume_from(self, step: int) -> None:
        """Forget every record after optimiser step ``step``."""
        if self.path.exists():
            kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            staged = self.path.with_suffix(".writing")
            staged.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            os.replace(staged, self.path)
        self._writer = SummaryWriter(str(self._tensorboard_dir), purge_step=step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; its numbers go to TensorBoard at ``record["step"]``."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._writer is not None:
            kind = record.get("kind", "train")
            for name, value in record.items():
                if isinstance(value, int | float) and name != "step":
                    self._writer.add_scalar(f"{kind}/{name}", value, record["step"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut short by a kill
