"""Where the recipes that come with asrkd lie: beside the code in a checkout, inside the package once installed."""

from __future__ import annotations

from pathlib import Path

import asrkd


def recipes_dir() -> Path:
    """The folder of the shipped recipes.

    Raises:
        OSError: If neither place holds them.
    """
    package = Path(asrkd.__file__).parent
    for place in (package / "_recipes", package.parent / "recipes"):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"{package}: expected the recipes in _recipes or ../recipes; found neither")
