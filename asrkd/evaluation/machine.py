"""What a measurement was made on: without it a time says nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

import asrkd


class Machine(BaseModel):
    """The machine and the software of a measurement.

    Attributes:
        platform: Operating system and architecture.
        cpu: Name of the processor.
        cpu_cores: Logical cores that this process may use.
        memory_bytes: Host memory.
        gpu: Name of the GPU, where the measurement used one.
        gpu_clock_mhz: Its maximum and its current SM clock as the driver tells them, where known.
        python: Version.
        torch: Version.
        asrkd: Version.
        git_commit: Of the checkout that asrkd runs from, ``+`` at its end where files differ from it; ``None``
            outside a checkout.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    platform: str
    cpu: str
    cpu_cores: int
    memory_bytes: int
    gpu: str | None = None
    gpu_clock_mhz: tuple[int, int] | None = None
    python: str
    torch: str
    asrkd: str
    git_commit: str | None = None


def describe(device: torch.device | str = "cpu") -> Machine:
    """The machine that this process runs on.

    Args:
        device: Where the model runs; a CUDA device is described too.
    """
    import psutil

    device = torch.device(device)
    cuda = device.type == "cuda"
    return Machine(
        platform=platform.platform(terse=True) + " " + platform.machine(),
        cpu=_cpu_name(),
        cpu_cores=_usable_cores(),
        memory_bytes=int(psutil.virtual_memory().total),
        gpu=torch.cuda.get_device_name(device) if cuda else None,
        gpu_clock_mhz=_gpu_clocks(device) if cuda else None,
        python=platform.python_version(),
        torch=str(torch.__version__),
        asrkd=asrkd.__version__,
        git_commit=_git_commit(),
    )


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu_clocks(device: torch.device) -> tuple[int, int] | None:
    command = ["nvidia-smi", "--query-gpu=clocks.max.sm,clocks.sm", "--format=csv,noheader,nounits"]
    found = _output([*command, f"--id={device.index or 0}"])
    try:
        highest, current = (int(value) for value in (found or "").split(","))
    except ValueError:
        return None
    return highest, current


def _git_commit() -> str | None:
    root = Path(asrkd.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    commit = _output(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"])
    if commit is None:
        return None
    changed = _output(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return commit + ("+" if changed else "")


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
