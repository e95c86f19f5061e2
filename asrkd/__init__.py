"""asrkd: distil large speech recognisers into small streaming ones."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str, device: str = "cpu") -> Any:
    """Load a model package (see ``asrkd.models.package.load``); imported late so ``import asrkd.losses`` stays light."""
    from asrkd.models.package import load as load_package

    return load_package(path, device)
