"""``asrkd label``: let the recipe's teacher hear the training data once and keep what it says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from asrkd.cli.device import DeviceOption, choose_device
from asrkd.cli.progress import stages


def label(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML) with a teacher and targets.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes, e.g. targets.nbest=8 workdir=exp/mine.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Store the teacher's frame posteriors and N-best lists for every training utterance of RECIPE.

    Killed at any moment, the same command continues; shards that are whole are not made again. `asrkd train` does this by
    itself when it finds targets missing. With several GPUs or machines: torchrun --nproc_per_node=N -m asrkd label RECIPE
    shares the shards out.
    """
    from asrkd.training.recipe import RecipeError, load_recipe, missing_files
    from asrkd.training.run import make_targets, training_cuts

    checked = load_recipe(recipe, overrides or [])
    if checked.teacher is None or checked.targets is None:
        raise RecipeError(f"{recipe}: expected teacher and targets; found a recipe that learns from transcripts alone")
    if problems := missing_files(checked):
        raise RecipeError("\n".join(problems))
    place, rank = choose_device(device), os.environ.get("LOCAL_RANK")
    if rank is not None and place == "cuda":
        place = f"cuda:{rank}"
    with stages() as stage:
        store = make_targets(checked, training_cuts(checked), place, stage)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(store.describe())
