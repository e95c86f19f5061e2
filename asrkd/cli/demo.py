"""``asrkd demo``: the whole main job on a small synthetic corpus, from nothing to a distilled streaming student."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asrkd.cli.device import DeviceOption, choose_device
from asrkd.cli.processes import run, run_side_by_side, usable_cores
from asrkd.cli.progress import Report, console, stages
from asrkd.cli.recipes import recipes_dir

if TYPE_CHECKING:
    from lhotse import CutSet

    from asrkd.evaluation.report import Entry
    from asrkd.training.recipe import Recipe

TEST_PARTS = ("test-clean", "test-other")
Stage = Callable[[str], Report]


@dataclass(frozen=True)
class Scale:
    """How big the demo is: minutes of speech, and what changes in the recipes."""

    train_minutes: float
    dev_minutes: float
    test_minutes: float
    teacher: tuple[str, ...] = ()
    student: tuple[str, ...] = ()
    speed_audio_s: float = 60.0


FULL = Scale(train_minutes=128.0, dev_minutes=4.0, test_minutes=15.0)
FAST = Scale(
    train_minutes=4.0,
    dev_minutes=0.5,
    test_minutes=0.7,
    teacher=("model.size=tiny", "training.epochs=2"),
    student=("training.epochs=2",),
    speed_audio_s=10.0,
)


def demo(
    out: Annotated[Path, typer.Option(help="Where everything goes; the same folder continues.")] = Path("exp/demo"),
    fast: Annotated[bool, typer.Option("--fast", help="The same path in under 90 s, without quality claims.")] = False,
    seed: Annotated[int, typer.Option(help="Of corpus, initial weights and batches.")] = 1,
    device: DeviceOption = "auto",
) -> None:
    """Synthesise a corpus, train a teacher, distil a streaming student, and measure what it cost and gained.

    Every step shows its progress, can be killed and continued by the same command, and is skipped when its result is there
    and valid. Nothing is downloaded. The speech is synthetic (espeak-ng) and so are the figures' meaning: they compare
    systems with each other, not with human speech.
    """
    from asrkd.training.recipe import load_recipe

    scale = FAST if fast else FULL
    chosen = choose_device(device)
    with stages() as stage:
        _corpus(out, scale, seed, stage)
    cores = min(2, usable_cores()) if chosen == "cpu" else 1
    commands = _commands(out, scale, seed)
    run(["train", *commands["teacher"], "--device", chosen])
    run(["label", *commands["distilled"], "--device", chosen], processes=cores)
    students = {role: ["train", *commands[role], "--device", chosen] for role in ("alone", "distilled")}
    if cores > 1:
        run_side_by_side(students)
    else:
        for words in students.values():
            run(words)
    recipes = {role: load_recipe(path, overrides) for role, (path, *overrides) in commands.items()}
    with stages() as stage:
        entries = _evaluate(recipes, out, scale, seed, chosen, stage)
        _report(entries, out, stage)
    _try_it(recipes["distilled"], out)


def _corpus(out: Path, scale: Scale, seed: int, stage: Stage) -> None:
    from asrkd.data.librispeech import prepare_librispeech
    from asrkd.data.spoken_numbers import synthesise

    report = stage("corpus spoken_numbers")
    synthesise(
        out / "audio",
        seed=seed,
        train_minutes=scale.train_minutes,
        dev_minutes=scale.dev_minutes,
        test_minutes=scale.test_minutes,
        progress=lambda done, total: report(done, total, "utterances"),
    )
    prepare_librispeech(out / "audio", out / "corpus")


def _commands(out: Path, scale: Scale, seed: int) -> dict[str, list[str]]:
    """For each system its recipe and what the demo changes in it, as `asrkd train` takes them."""
    folder = recipes_dir() / "spoken_numbers"
    place = [f"workdir={out}", f"seed={seed}"]
    return {
        "teacher": [str(folder / "teacher.yaml"), *place, *scale.teacher],
        "alone": [str(folder / "student_alone.yaml"), *place, *scale.student],
        "distilled": [str(folder / "student_distilled.yaml"), *place, *scale.student],
    }


def _evaluate(recipes: dict[str, Recipe], out: Path, scale: Scale, seed: int, device: str, stage: Stage) -> list[Entry]:
    from asrkd.evaluation.card import write_card
    from asrkd.evaluation.decode import DecodingOptions
    from asrkd.evaluation.evaluate import EvaluationOptions, evaluate
    from asrkd.evaluation.report import Entry
    from asrkd.training.run import package_dir

    parts = _test_parts(out)
    entries = []
    for role, recipe in recipes.items():
        # Each in the mode it is made for: the teacher by joint CTC/attention search, the students streaming, greedily.
        decoding = DecodingOptions(method="joint", beam=8) if role == "teacher" else DecodingOptions()
        options = EvaluationOptions(speed_audio_s=scale.speed_audio_s, decoding=decoding)
        result = evaluate(
            package_dir(recipe),
            parts,
            out / "evaluation" / recipe.name,
            options,
            name=recipe.name,
            device=device,
            report=stage(f"evaluate {recipe.name}"),
        )
        write_card(package_dir(recipe), result)
        entries.append(Entry(result, role=role, seed=seed))  # type: ignore[arg-type]  # the keys are the roles
    return entries


def _test_parts(out: Path) -> dict[str, CutSet]:
    from lhotse import CutSet

    return {part: CutSet.from_file(out / "corpus" / f"cuts_{part}.jsonl.gz") for part in TEST_PARTS}


def _report(entries: list[Entry], out: Path, stage: Stage) -> None:
    from asrkd.evaluation.html import diagnostics_of, write_page
    from asrkd.evaluation.report import comparisons_of, console_table, sentence
    from asrkd.evaluation.write import write_report

    report = stage("report")
    parts = _test_parts(out)
    comparisons = comparisons_of(entries)
    diagnostics = diagnostics_of(entries, parts)
    rows = write_report(entries, comparisons, out, diagnostics)
    page = write_page(entries, comparisons, out, parts, diagnostics)
    report(1, 1, "")
    console().print(console_table(rows))
    for comparison in comparisons:
        for part, test in comparison.tests.items():
            console().print(sentence(comparison, part, test))
    typer.echo(f"report: {page}")


def _try_it(recipe: Recipe, out: Path) -> None:
    """Run the very command that the user is told to try, on one test file."""
    from lhotse import CutSet

    from asrkd.training.run import package_dir

    cut = next(iter(CutSet.from_file(out / "corpus" / "cuts_test-clean.jsonl.gz")))
    audio = cut.recording.sources[0].source
    arguments = ["transcribe", str(package_dir(recipe)), audio]
    answer = subprocess.run([sys.executable, "-m", "asrkd", *arguments], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise ValueError(f"asrkd {shlex.join(arguments)}: {answer.stderr.strip()}")
    typer.echo(f"model package: {package_dir(recipe)}")
    typer.echo(f"try it:        asrkd {shlex.join(arguments)}")
    typer.echo(f"  reference:   {cut.supervisions[0].text}")
    typer.echo(f"  output:      {answer.stdout.rstrip().partition(chr(9))[2]}")
