"""``asrkd run``: every stage of an experiment in one go, skipping what is done."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asrkd.cli.device import DeviceOption

if TYPE_CHECKING:
    from asrkd.training.pipeline import Step


def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML), with what comes before and after its training.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Changes, e.g. workdir=exp/mine seed=2; workdir, seed, prepare and data also for teachers."
        ),
    ] = None,
    stages: Annotated[
        str | None, typer.Option(help="Only these, by commas: prepare, teacher, label, train, evaluate, export.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the steps, and what they need by a short measurement; do nothing.")
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Prepare, train the teacher, label, train, evaluate and export what RECIPE describes.

    Each step is an asrkd command, printed as it begins; killed at any moment, the same command continues.
    """
    from asrkd.training.pipeline import chosen, plan

    steps = chosen(plan(recipe, overrides or [], device=device), [s for s in (stages or "").split(",") if s])
    if dry_run:
        _print_plan(steps, device)
        return
    for step in steps:
        if step.done:
            typer.echo(f"{step.stage}: {step.recipe.name}: already there", err=True)
            continue
        typer.echo(f"{step.stage}: asrkd {shlex.join(step.command)}", err=True)
        status = subprocess.run([sys.executable, "-m", "asrkd", *step.command], check=False).returncode
        if status:
            raise typer.Exit(status)


def _print_plan(steps: list[Step], device: str) -> None:
    from asrkd.cli.device import choose_device
    from asrkd.training.estimate import estimate

    needs = estimate(steps, choose_device(device))
    for step, need in zip(steps, needs, strict=True):
        state = "done" if step.done else str(need)
        typer.echo(f"{step.stage:9} {state:45} asrkd {shlex.join(step.command)}")
    left = [need for step, need in zip(steps, needs, strict=True) if not step.done]
    known = [need.seconds for need in left if need.seconds is not None]
    unknown = len(left) - len(known)
    typer.echo(
        f"all: about {sum(known) / 3600:.2f} h"
        + (f" and {unknown} steps of unknown length" if unknown else "")
        + f", {sum(need.disk_mb for need in left) / 1000:.2f} GB of disk, "
        f"{max((need.memory_mb for need in left), default=0) / 1000:.1f} GB of memory"
    )
