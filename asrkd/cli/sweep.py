"""``asrkd sweep``: many trainings of one recipe, to find the values that do best on development data."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asrkd.cli.device import DeviceOption, choose_device
from asrkd.cli.processes import run_watched
from asrkd.cli.progress import Report, console, stages

if TYPE_CHECKING:
    from asrkd.training.sweep import Plan, Study, Trial

_FAILURES_IN_A_ROW = 3


def sweep(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML) with a section sweep, or without beside --space.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes, e.g. workdir=exp/mine sweep.trials=40.")
    ] = None,
    space: Annotated[
        Path | None, typer.Option(help="YAML file with what to try, in place of the section sweep.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Ranks of each training (torchrun), one a GPU.")] = 1,
    device: DeviceOption = "auto",
) -> None:
    """Try values of RECIPE's keys, each in a training of its own, and write the best recipe.

    Trainings that fall behind on the development data are ended early. Killed at any moment, the same command continues, the
    training under way too; more trials can be asked for later (sweep.trials). Everything is in OUTPUT/sweep: best.yaml (a plain
    recipe for asrkd train), trials.json, study.db (optuna), and a folder for each trial.
    """
    from filelock import FileLock, Timeout

    from asrkd.training.sweep import BEST, Study, read_plan

    plan = read_plan(recipe, overrides or [], space)
    chosen = choose_device(device)
    study = Study(plan)
    try:
        with FileLock(plan.folder / ".lock", timeout=0), stages() as stage:
            _try_all(plan, study, chosen, processes, stage)
    except Timeout:
        raise ValueError(f"{plan.folder}: another process sweeps here; wait for it or end it") from None
    _show(study)
    if study.best() is None:
        raise ValueError(f"{plan.folder}: no trial was trained to its end")
    typer.echo(plan.folder / BEST)


def _try_all(plan: Plan, study: Study, device: str, processes: int, stage: Callable[[str], Report]) -> None:
    report, metric = stage(f"sweep {plan.recipe.name}"), plan.config.metric
    ended = study.rows()
    while True:
        best = study.best()
        report(
            len(ended), max(plan.config.trials, len(ended)), "" if best is None else f"best {metric} {best[metric]:.4f}"
        )
        if len(ended) >= plan.config.trials:
            return
        trial = study.begin()
        _try(trial, plan, study, device, processes, stage)
        ended = study.rows()
        last = ended[-_FAILURES_IN_A_ROW:]
        if len(last) == _FAILURES_IN_A_ROW and all(row["ended"] == "failed" for row in last):
            raise ValueError(
                f"the last {_FAILURES_IN_A_ROW} trials failed; {_errors(trial)}: {_last_line(_errors(trial))}"
            )


def _try(trial: Trial, plan: Plan, study: Study, device: str, processes: int, stage: Callable[[str], Report]) -> None:
    """Train one trial, ending it early where it is hopeless."""
    from filelock import FileLock

    from asrkd.training.recipe import load_recipe
    from asrkd.training.sweep import epochs_of

    epochs, metric = load_recipe(trial.recipe).training.epochs, plan.config.metric
    seen: dict[int, float] = {}
    pruned = False

    def stop() -> bool:
        # Epoch by epoch and never by what else is there by now, so that it does not matter how quickly we look.
        nonlocal pruned
        for epoch, value in sorted(epochs_of(trial.folder / "log.jsonl", metric).items()):
            if epoch not in seen and not pruned:
                seen[epoch] = value
                pruned = study.hopeless(trial, epoch, value) and epoch < epochs
        return pruned

    with FileLock(trial.folder / ".lock"):
        pass  # what a killed sweep left behind may still be training here: it is waited for
    words = ["train", str(trial.recipe), "--device", device]
    status = run_watched(words, stage, stop, _errors(trial), processes)
    if stop():
        study.end(trial, "pruned")
    elif status == 0 and seen:
        study.end(trial, "complete", min(seen.values()))
    else:
        study.end(trial, "failed")


def _errors(trial: Trial) -> Path:
    return trial.folder / "stderr.txt"


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"


def _show(study: Study) -> None:
    from rich.table import Table

    metric = study.plan.config.metric
    table = Table("trial", "ended", metric, "epochs", "values")
    for row in sorted(study.rows(), key=lambda row: (row[metric] is None, row[metric] or 0.0)):
        value = "" if row[metric] is None else f"{row[metric]:.4f}"
        values = shlex.join(f"{name}={tried}" for name, tried in row["values"].items())
        table.add_row(str(row["trial"]), row["ended"], value, str(len(row["epochs"])), values)
    console().print(table)
