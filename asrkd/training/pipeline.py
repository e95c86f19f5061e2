"""All stages of an experiment as the commands that do them: prepare, teacher, label, train, evaluate, export.

Nothing here does work itself: each step is an ``asrkd`` command that a user could type, continues when killed and skips what
is done. Running a recipe is running its steps in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from asrkd.models import package
from asrkd.training.recipe import Recipe, RecipeError, load_recipe
from asrkd.training.run import package_dir
from asrkd.training.sections import (
    PrepareConfig,
    PrepareLhotse,
    PrepareLibriSpeech,
    PrepareReadSpeech,
    PrepareSpokenDigits,
    PrepareSpokenNumbers,
    PrepareSyntheticDigits,
)

StageName = Literal["prepare", "teacher", "label", "train", "evaluate", "export"]
STAGES: tuple[StageName, ...] = get_args(StageName)
HANDED_DOWN = ("workdir", "seed", "prepare", "data")
"""Keys of overrides that go to the recipes of the teachers too."""


@dataclass(frozen=True)
class Step:
    """One command of an experiment.

    Args:
        stage: Which stage it belongs to; everything for a teacher is ``teacher``.
        recipe: Whose step it is.
        command: Words after ``asrkd``.
        done: Whether its result is there.
    """

    stage: StageName
    recipe: Recipe
    command: tuple[str, ...]
    done: bool


def plan(path: str | Path, overrides: Sequence[str] = (), *, device: str = "auto") -> list[Step]:
    """The steps of a recipe, those of its teachers' recipes first.

    Args:
        path: Recipe.
        overrides: ``key.sub=value``; those of ``HANDED_DOWN`` hold for the teachers' recipes too.
        device: Handed to the commands.

    Raises:
        RecipeError: If a recipe is wrong, data are missing that no ``prepare`` section makes, or recipes go in a circle.
    """
    return _plan(Path(path), list(overrides), device, seen=())


def chosen(steps: Iterable[Step], stages: Sequence[str]) -> list[Step]:
    """The steps of some stages; of all if ``stages`` is empty.

    Raises:
        ValueError: For an unknown stage.
    """
    if unknown := [name for name in stages if name not in STAGES]:
        raise ValueError(f"--stages: expected some of {', '.join(STAGES)}; found {', '.join(unknown)}")
    return [step for step in steps if not stages or step.stage in stages]


def _plan(path: Path, overrides: list[str], device: str, seen: tuple[Path, ...]) -> list[Step]:
    if path.resolve() in seen:
        raise RecipeError(f"{path}: teacher_recipes go in a circle: {' -> '.join(p.name for p in seen)} -> {path.name}")
    recipe = load_recipe(path, overrides)
    words = (str(path), *overrides, "--device", device)
    steps = _prepare(path, recipe)
    handed = [text for text in overrides if text.split("=")[0].split(".")[0] in HANDED_DOWN]
    for other in recipe.teacher_recipes:
        for step in _plan(other, handed, device, (*seen, path.resolve())):
            if step.command in [known.command for known in steps]:
                continue
            stage: StageName = "prepare" if step.stage == "prepare" else "teacher"
            steps.append(Step(stage, step.recipe, step.command, step.done))
    trained = (package_dir(recipe) / package.CONFIG).exists()
    if recipe.teacher is not None and recipe.targets is not None and not recipe.targets.live:
        steps.append(Step("label", recipe, ("label", *words), trained))
    steps.append(Step("train", recipe, ("train", *words), trained))
    return steps + _evaluate(recipe, device, trained) + _export(recipe)


def _prepare(path: Path, recipe: Recipe) -> list[Step]:
    wanted = (*recipe.data.train, *recipe.data.valid, *recipe.data.unlabelled)
    wanted += recipe.evaluate.parts if recipe.evaluate else ()
    missing = [str(recipe.path(p)) for p in wanted if not recipe.path(p).exists()]
    settings = recipe.prepare
    if settings is None:
        if missing:
            raise RecipeError(f"{path}: no such file: {missing[0]}, and no prepare section to make it")
        return []
    out = str(recipe.path(recipe.data.train[0]).parent)
    command = ["prepare", settings.corpus]
    if isinstance(settings, PrepareLibriSpeech):
        command += ["--root", str(settings.root), "--out", out]
        command += ["--parts", ",".join(settings.parts)] if settings.parts else []
        command += ["--download"] if settings.download else []
    elif isinstance(settings, PrepareSpokenNumbers):
        command += ["--out", out, "--seed", str(recipe.seed)]
        command += _options(settings, "train_minutes", "dev_minutes", "test_minutes")
    elif isinstance(settings, PrepareReadSpeech):
        command += ["--text", str(settings.text), "--out", out, "--seed", str(recipe.seed)]
        command += _options(settings, "hours", "dev_minutes", "test_minutes")
    elif isinstance(settings, PrepareSpokenDigits):
        command += ["--root", str(settings.root), "--out", out, "--left-out", settings.left_out]
        command += ["--seed", str(recipe.seed)]
    elif isinstance(settings, PrepareSyntheticDigits):
        command += ["--out", out, "--seed", str(recipe.seed), *_options(settings, "train_minutes", "dev_minutes")]
    elif isinstance(settings, PrepareLhotse):
        command += [settings.name, "--root", str(settings.root), "--out", out]
        command += [word for key, value in settings.options.items() for word in ("--option", f"{key}={value}")]
    else:
        command += [*map(str, settings.files), "--out", out]
    return [Step("prepare", recipe, tuple(command), not missing)]


def _options(settings: PrepareConfig, *names: str) -> list[str]:
    """Sizes as options of the command that goes by the same names."""
    return [word for name in names for word in (f"--{name.replace('_', '-')}", f"{getattr(settings, name):g}")]


def _evaluate(recipe: Recipe, device: str, trained: bool) -> list[Step]:
    settings = recipe.evaluate
    if settings is None:
        return []
    out = recipe.workdir / "evaluation" / recipe.name
    command = ["evaluate", str(package_dir(recipe)), "--out", str(out), "--name", recipe.name]
    command += [word for part in settings.parts for word in ("--data", str(recipe.path(part)))]
    command += ["--normaliser", recipe.normaliser, "--device", device]
    command += [f"--{settings.decoding}"] if settings.decoding != "greedy" else []
    command += ["--chunk-frames", str(settings.chunk_frames)] if settings.chunk_frames is not None else []
    command += [] if settings.speed else ["--no-speed"]
    steps = [Step("evaluate", recipe, tuple(command), trained and (out / "metrics.json").exists())]
    if settings.against:
        against = [_placed(recipe, given) for given in settings.against]
        own = f"distilled={out}" if recipe.teacher is not None else str(out)
        folder = recipe.workdir / "report" / recipe.name
        compare = ("compare", *against, own, "--out", str(folder))
        steps.append(Step("evaluate", recipe, compare, steps[0].done and (folder / "metrics.json").exists()))
    return steps


def _placed(recipe: Recipe, given: str) -> str:
    """``ROLE=FOLDER`` with the folder against ``workdir``."""
    role, equals, folder = given.rpartition("=")
    return f"{role}{equals}{recipe.path(Path(folder))}"


def _export(recipe: Recipe) -> list[Step]:
    settings = recipe.export
    if settings is None:
        return []
    out = recipe.output_dir / settings.to
    command = ["export", str(package_dir(recipe)), "--to", settings.to, "--out", str(out)]
    if settings.int8:
        parts = recipe.evaluate.parts if recipe.evaluate else ()
        command += ["--int8", "--normaliser", recipe.normaliser]
        command += [word for part in parts for word in ("--data", str(recipe.path(part)))]
    done = out.is_dir() and any(out.glob("*.onnx"))
    return [Step("export", recipe, tuple(command), done)]
