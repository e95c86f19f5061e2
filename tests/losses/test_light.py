"""The room is light: people import it into other code."""

from __future__ import annotations

import subprocess
import sys

import torch

from asrkd.losses import relative_to_absolute


def test_import_takes_a_moment_and_torch_alone() -> None:
    code = (
        "import sys, time, torch; before = set(sys.modules); start = time.process_time(); import asrkd.losses; "
        "took = time.process_time() - start; new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "print(took, *sorted(new - {'asrkd', 'torch'} - set(sys.stdlib_module_names)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    took, *packages = answer.stdout.split()
    assert float(took) < 0.3
    assert packages == []


def test_relative_lengths_become_frames() -> None:
    relative = torch.tensor([1.0, 0.5, 0.334, 0.0])
    assert relative_to_absolute(relative, 90).tolist() == [90, 45, 30, 0]
