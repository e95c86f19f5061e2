"""``asrkd train``: train a teacher, a student alone, or a student under a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asrkd.cli.device import DeviceOption, choose_device
from asrkd.cli.progress import stages


def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML). It says whether a teacher or a student is trained.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to the recipe, e.g. training.epochs=3 workdir=exp/mine.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Train what RECIPE describes and save it as a model package.

    Killed at any moment, the same command continues; what is finished and valid is skipped. Under torchrun every rank takes
    its part: torchrun --nproc_per_node=2 -m asrkd train RECIPE.
    """
    from asrkd.training.recipe import load_recipe
    from asrkd.training.run import train as run_training

    checked = load_recipe(recipe, overrides or [])
    with stages() as stage:
        outcome = run_training(checked, device=choose_device(device), stage=stage)
        if outcome.skipped:
            stage(f"train {checked.name}: there already")(1, 1, "")
    typer.echo(f"{outcome.package}{' (already there)' if outcome.skipped else ''}")
