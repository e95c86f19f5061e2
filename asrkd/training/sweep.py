"""Search over a recipe's keys: which values are tried, which trainings are ended early, and the best recipe.

Every trial is a training of a recipe that stands in the trial's folder and can be run by hand. What has been tried is in one
SQLite file. What a trial tries depends on the seed, its number and what came out before, so that a sweep that was killed and
continued ends where an uninterrupted one does: the trial that was under way is asked for again and its training goes on.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from asrkd.data.files import write_atomically
from asrkd.training.recipe import Recipe, RecipeError, apply_overrides, check_content, load_recipe, read_yaml, set_key
from asrkd.training.sections import SweepChoices, SweepConfig, SweepRange

BEFORE_AND_AFTER = ("prepare", "teacher_recipes", "evaluate", "export")
"""Sections that a trial does without."""
STUDY, RECIPE, BEST, TRIALS = "study.db", "recipe.yaml", "best.yaml", "trials.json"

Ended = Literal["complete", "pruned", "failed"]
Values = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """A checked sweep.

    Args:
        content: The recipe as plain values, without ``sweep``.
        recipe: The same, checked.
        config: What is tried.
        source: The file that the recipe came of.
    """

    content: dict[str, Any]
    recipe: Recipe
    config: SweepConfig
    source: Path

    @property
    def folder(self) -> Path:
        return self.recipe.output_dir / "sweep"


@dataclass(frozen=True)
class Trial:
    """One training of a sweep: its number from 0 on, what it tries by name, and its recipe's file."""

    number: int
    values: Values
    recipe: Path
    handle: Any

    @property
    def folder(self) -> Path:
        return self.recipe.parent


def read_plan(path: Path, overrides: Sequence[str] = (), space: Path | None = None) -> Plan:
    """Read a recipe and what to try, and check every value that may be tried on its own.

    Args:
        path: Recipe.
        overrides: ``key.sub=value``.
        space: YAML file that holds the section ``sweep``, in place of the recipe's own.

    Raises:
        RecipeError: If the recipe is wrong, there is nothing to try, or a value that would be tried is refused.
    """
    content = read_yaml(path)
    if space is not None:
        other = read_yaml(space)
        content["sweep"] = other.get("sweep", other)
    recipe = check_content(apply_overrides(content, overrides), path)
    if recipe.sweep is None:
        raise RecipeError(f"{path}: expected a section sweep, or --space; found neither")
    if not recipe.data.valid:
        raise RecipeError("data.valid: expected development data, to tell trials apart; found none")
    content.pop("sweep")
    plan = Plan(content, recipe, recipe.sweep, path)
    problems = []
    for name, dimension in recipe.sweep.space.items():
        for label in labels(dimension):
            try:
                check_content(changed(plan, {name: label}), path)
            except RecipeError as error:
                problems.append(f"sweep.space.{name} = {label}: {' '.join(str(error).splitlines()[1:]) or error}")
    if problems:
        raise RecipeError("\n".join(problems))
    return plan


def labels(dimension: SweepRange | SweepChoices) -> list[Any]:
    """What stands for the values to be checked: both ends of a range, every choice."""
    if isinstance(dimension, SweepRange):
        return [dimension.low, dimension.high]
    if isinstance(dimension.choices, dict):
        return list(dimension.choices)
    return [json.dumps(choice) for choice in dimension.choices]


def changed(plan: Plan, values: Mapping[str, Any], *, in_trial: bool = True) -> dict[str, Any]:
    """The recipe with ``values``; in a trial also with ``sweep.changes``, and without what comes before and after.

    Args:
        plan: The sweep.
        values: Label by name of the space, as of :func:`labels`.
        in_trial: Otherwise for the recipe that is written out as the best.
    """
    content = copy.deepcopy(plan.content)
    changes: dict[str, Any] = dict(plan.config.changes) if in_trial else {}
    for name, label in values.items():
        dimension = plan.config.space[name]
        if isinstance(dimension, SweepRange):
            changes[name] = label
        elif isinstance(dimension.choices, dict):
            changes |= dimension.choices[label]
        else:
            changes[name] = json.loads(label)
    for key, value in changes.items():
        set_key(content, key, value)
    for section in BEFORE_AND_AFTER if in_trial else ():
        content.pop(section, None)
    return content


class Study:
    """What has been tried, in the sweep's folder.

    Args:
        plan: The sweep.

    Raises:
        ValueError: If optuna is missing.
        RecipeError: If the folder holds the sweep of another recipe or space.
    """

    def __init__(self, plan: Plan) -> None:
        try:
            import optuna
        except ImportError:
            raise ValueError("sweep: needs the extra: pip install 'asrkd[sweep]'") from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        self._optuna = optuna
        self.plan = plan
        plan.folder.mkdir(parents=True, exist_ok=True)
        storage = f"sqlite:///{(plan.folder / STUDY).resolve()}"
        self._study = optuna.create_study(
            storage=storage, study_name="sweep", load_if_exists=True, pruner=self._pruner()
        )
        identity = self._identity()
        before = self._study.user_attrs.setdefault("identity", identity)
        if before != identity:
            raise RecipeError(
                f"{plan.folder}: holds the sweep of another recipe or space; choose another output= or remove it"
            )
        self._study.set_user_attr("identity", identity)

    def _identity(self) -> str:
        """Of all but the number of trials, which may grow, and what comes before and after."""
        content = {key: value for key, value in self.plan.content.items() if key not in (*BEFORE_AND_AFTER, "workdir")}
        config = self.plan.config.model_dump(mode="json", exclude={"trials"})
        return hashlib.sha256(json.dumps([content, config], sort_keys=True, default=str).encode()).hexdigest()

    def _pruner(self) -> Any:
        config, pruners = self.plan.config, self._optuna.pruners
        if config.pruner == "median":
            return pruners.MedianPruner(n_startup_trials=config.startup_trials, n_warmup_steps=config.warmup_epochs)
        if config.pruner == "hyperband":
            epochs = check_content(changed(self.plan, {}), self.plan.source).training.epochs
            least = min(max(1, config.warmup_epochs), epochs)
            return pruners.HyperbandPruner(min_resource=least, max_resource=epochs, reduction_factor=3)
        return pruners.NopPruner()

    def _sampler(self, number: int) -> Any:
        """Seeded by the trial's number, so that a continued sweep draws as an uninterrupted one."""
        seed = int.from_bytes(hashlib.sha256(f"{self.plan.recipe.seed}/{number}".encode()).digest()[:4], "big")
        if self.plan.config.sampler == "random":
            return self._optuna.samplers.RandomSampler(seed=seed)
        return self._optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.plan.config.startup_trials)

    def ended(self) -> list[Any]:
        """optuna's records of the trials that came to an end by themselves, in order."""
        return [trial for trial in self._study.get_trials(deepcopy=False) if "ended" in trial.user_attrs]

    def begin(self) -> Trial:
        """The next trial, or the one that was under way when the sweep was killed, with its recipe written to its folder."""
        states = self._optuna.trial.TrialState
        for left_over in self._study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            if "ended" in left_over.user_attrs:  # killed between the two writes of :meth:`end`
                self._close(left_over.number, left_over.user_attrs["ended"], left_over.user_attrs["value"])
                continue
            if left_over.params.keys() == self.plan.config.space.keys():
                self._study.enqueue_trial(left_over.params)
            self._study.tell(left_over.number, state=states.FAIL)
        number = len(self.ended())
        self._study.sampler = self._sampler(number)
        handle = self._study.ask()
        values = {name: _suggest(handle, name, dimension) for name, dimension in self.plan.config.space.items()}
        name = f"trial_{number:03d}"
        content = changed(self.plan, values)
        content |= {"name": f"{self.plan.recipe.name}-{name}", "output": str(self.plan.recipe.output / "sweep" / name)}
        recipe = self.plan.folder / name / RECIPE
        recipe.parent.mkdir(exist_ok=True)
        write_atomically(recipe, yaml.safe_dump(content, sort_keys=False).encode())
        return Trial(number, values, recipe, handle)

    def hopeless(self, trial: Trial, epoch: int, value: float) -> bool:
        """Note what an epoch's development data gave; whether the trial is to be ended."""
        trial.handle.report(value, epoch)
        return bool(trial.handle.should_prune())

    def end(self, trial: Trial, how: Ended, value: float | None = None) -> None:
        """Close a trial, write the list of trials and the best recipe, and remove the trial's checkpoints."""
        trial.handle.set_user_attr("value", value if how == "complete" else None)
        trial.handle.set_user_attr("ended", how)
        self._close(trial.handle.number, how, value)
        self.write()
        shutil.rmtree(trial.folder / "checkpoints", ignore_errors=True)

    def _close(self, handle: int, how: Ended, value: float | None) -> None:
        states = self._optuna.trial.TrialState
        state = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[how]
        self._study.tell(handle, value if how == "complete" else None, state=state)

    def rows(self) -> list[dict[str, Any]]:
        """Every trial that has ended: number, how, value, what it tried, and what each epoch gave."""
        return [
            {
                "trial": place,
                "ended": trial.user_attrs["ended"],
                self.plan.config.metric: trial.user_attrs["value"],
                "values": {name: _shown(self.plan.config.space[name], v) for name, v in trial.params.items()},
                "epochs": {str(epoch): value for epoch, value in sorted(trial.intermediate_values.items())},
            }
            for place, trial in enumerate(self.ended())
        ]

    def best(self) -> dict[str, Any] | None:
        """The row of the trial with the least value that was trained to its end."""
        metric = self.plan.config.metric
        complete = [row for row in self.rows() if row["ended"] == "complete"]
        return min(complete, key=lambda row: (row[metric], row["trial"]), default=None)

    def write(self) -> None:
        """``trials.json``, and ``best.yaml`` where a trial was trained to its end."""
        write_atomically(self.plan.folder / TRIALS, json.dumps(self.rows(), indent=1).encode())
        best = self.best()
        if best is None:
            return
        content = changed(self.plan, self.ended()[best["trial"]].params, in_trial=False)
        folder = self.plan.folder.resolve()
        if "teacher_recipes" in content:  # relative to the file that names them
            content["teacher_recipes"] = [os.path.relpath(other, folder) for other in content["teacher_recipes"]]
        metric = self.plan.config.metric
        found = f"{metric} {best[metric]:.4f} in trial {best['trial']}"
        head = f"# Best of {len(self.rows())} trials of {self.plan.source.name}: {found}.\n"
        write_atomically(self.plan.folder / BEST, (head + yaml.safe_dump(content, sort_keys=False)).encode())
        load_recipe(self.plan.folder / BEST)


def _shown(dimension: SweepRange | SweepChoices, label: Any) -> Any:
    """The value behind a label; of a group its name."""
    if isinstance(dimension, SweepChoices) and not isinstance(dimension.choices, dict):
        return json.loads(label)
    return label


def _suggest(handle: Any, name: str, dimension: SweepRange | SweepChoices) -> Any:
    if isinstance(dimension, SweepChoices):
        return handle.suggest_categorical(name, labels(dimension))
    whole = isinstance(dimension.low, int) and isinstance(dimension.high, int)
    if whole and (dimension.step is None or isinstance(dimension.step, int)):
        return handle.suggest_int(name, dimension.low, dimension.high, log=dimension.log, step=dimension.step or 1)
    return handle.suggest_float(name, dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def epochs_of(log: Path, metric: str) -> dict[int, float]:
    """What the development data gave after each epoch, of a run's ``log.jsonl``; empty before there is one."""
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # being written
            continue
        if record.get("kind") == "valid":
            found[int(record["epoch"])] = float(record[metric])
    return found
