"""The ``--device`` option that every verb shares."""

from __future__ import annotations

from typing import Annotated

import typer

DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; auto takes a GPU where there is one.")]


def choose_device(name: str) -> str:
    """``name`` checked and resolved.

    Raises:
        ValueError: If the device is not known or not there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    if name == "cuda" or (name.startswith("cuda:") and name[5:].isdigit()):
        count = torch.cuda.device_count()
        if int(name[5:] or 0) >= count:
            raise ValueError(f"--device: expected one that is there ({count} CUDA devices here); found {name}")
        return name
    raise ValueError(f"--device: expected auto, cpu, cuda or cuda:N; found {name!r}")
