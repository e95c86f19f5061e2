"""Every shipped recipe is found and valid, and runs a few steps end to end under its own (small) teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from asrkd.cli.prepare import prepare
from asrkd.cli.recipes import recipes_dir
from asrkd.training.pipeline import plan
from asrkd.training.recipe import Recipe, load_recipe, read_yaml
from asrkd.training.run import train
from tests.teachers.small import small_ctc

RECIPES = sorted(path for path in recipes_dir().rglob("*.yaml") if "output" in read_yaml(path))
SMALL = {
    "speechbrain_conformer": {"d_model": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 16, "subsampling_channels": 4},
    "streaming_conformer": {"d_model": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 16, "subsampling_channels": 4},
}
SMALL["streaming_transducer"] = {**SMALL["streaming_conformer"], "predictor_dim": 8, "joiner_dim": 8}
DECODER = {
    "speechbrain_conformer": {"decoder_layers": 1},
    "streaming_conformer": {"decoder_layers": 1, "decoder_heads": 2, "decoder_dim": 16, "decoder_ffn_dim": 16},
}


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def test_there_are_recipes() -> None:
    assert {path.parent.name for path in RECIPES} >= {"spoken_numbers", "librispeech", "read_speech", "spoken_digits"}


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_is_valid_and_says_its_command(path: Path) -> None:
    recipe = load_recipe(path)
    text = path.read_text(encoding="utf-8")
    assert (
        f"asrkd run recipes/{path.parent.name}/{path.name}" in text
        or f"asrkd train recipes/{name_of(path)}.yaml" in text
    )
    assert recipe.name == recipe.output.name == path.stem


@pytest.mark.parametrize("path", [p for p in RECIPES if load_recipe(p).prepare is not None], ids=name_of)
def test_all_its_stages_can_be_planned(path: Path, tmp_path: Path) -> None:
    """What it compares with is a result that some recipe beside it makes."""
    steps = plan(path, [f"workdir={tmp_path}"])
    assert steps[0].stage == "prepare" and steps[-1].stage in ("evaluate", "export")
    recipe = load_recipe(path)
    beside = {load_recipe(p).name for p in RECIPES if p.parent == path.parent}
    against = recipe.evaluate.against if recipe.evaluate else ()
    assert {Path(given.rpartition("=")[2]).name for given in against} <= beside


@pytest.mark.parametrize(
    ("path", "sizes"),
    [
        ("read_speech/teacher", ["prepare.hours=0.01", "prepare.dev_minutes=0.2", "prepare.test_minutes=0.2"]),
        ("read_speech/small_teacher", ["prepare.hours=0.01", "prepare.dev_minutes=0.2", "prepare.test_minutes=0.2"]),
        ("spoken_digits/pretrained_teacher", ["prepare.train_minutes=0.2", "prepare.dev_minutes=0.2"]),
        ("spoken_digits/teacher", ["prepare.left_out=ann"]),
    ],
)
def test_its_first_step_makes_the_manifests_that_it_names(path: str, sizes: list[str], tmp_path: Path) -> None:
    text, digits = tmp_path / "text.txt", tmp_path / "digits"
    text.write_text("\n".join(f"This is sentence number {i} of a small text" for i in range(200)))
    digits.mkdir()
    for name in (f"{digit}_{speaker}_{i}" for digit in range(10) for speaker in ("ann", "bob") for i in range(2)):
        soundfile.write(digits / f"{name}.wav", np.random.default_rng(0).normal(0, 0.1, 1600), 8000)
    place = {"read_speech": [f"prepare.text={text}"], "spoken_digits/teacher": [f"prepare.root={digits}"]}
    mine = [word for key, words in place.items() if path.startswith(key) for word in words]
    recipe_path = recipes_dir() / f"{path}.yaml"
    step = plan(recipe_path, [f"workdir={tmp_path / 'work'}", *sizes, *mine])[0]
    result = CliRunner().invoke(prepare, list(step.command[1:]))
    assert result.exit_code == 0, result.output
    recipe = load_recipe(recipe_path, [f"workdir={tmp_path / 'work'}"])
    parts = (*recipe.data.train, *recipe.data.valid, *(recipe.evaluate.parts if recipe.evaluate else ()))
    assert all(recipe.path(part).is_file() for part in parts)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Callable[[Path], Path]:
    """Trains a recipe in its small form once, its teachers first; gives the working folder of its recipes' folder."""
    folders: dict[str, Path] = {}
    done: dict[Path, Path] = {}

    def make(path: Path) -> Path:
        path = path.resolve()
        if path not in done:
            recipe = load_recipe(path)
            for other in (*recipe.teacher_recipes, *makers(path)):
                make(other)
            folder = folders.setdefault(path.parent.name, tmp_path_factory.mktemp(path.parent.name))
            workdir = folder / recipe.workdir.name  # beside each other as in the recipes: some name their neighbour
            changes = small(recipe, prepared, workdir)
            if recipe.teacher is not None and not recipe.teacher_packages:
                workdir.mkdir(exist_ok=True)
                changes.append(f"teacher={local_teacher(recipe, workdir)}")
            train(load_recipe(path, changes))
            done[path] = workdir
        return done[path]

    return make


def makers(path: Path) -> list[Path]:
    """The recipes beside this one that make the packages from which it takes its tokenizer and its first weights."""
    recipe = load_recipe(path)
    wanted = [recipe.path(p).parent for p in (recipe.tokenizer.package, recipe.training.init_from) if p is not None]
    beside = {load_recipe(p).output_dir: p for p in RECIPES if p.parent == path.parent}
    return [beside[folder] for folder in wanted]


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_trains_a_few_steps(path: Path, trained: Callable[[Path], Path]) -> None:
    output = trained(path) / load_recipe(path).output
    assert (output / "package" / "model.safetensors").exists()


def small(recipe: Recipe, corpus: Path, workdir: Path) -> list[str]:
    """Changes that keep what makes the recipe itself: losses, teacher, targets, kinds of model."""
    kind = recipe.model["kind"]
    model = {"kind": kind, **SMALL[kind]}
    if kind in DECODER:
        model |= DECODER[kind] if recipe_has_decoder(recipe) else {"decoder_layers": 0}
    for key in ("subsampling_factor", "chunk_frames", "ctc_head"):
        if key in recipe.model:
            model[key] = recipe.model[key]
    changes = [
        f"workdir={workdir}",
        f"model={json.dumps(model)}",
        f"data.train=[{corpus}/cuts_dev.jsonl.gz]",
        f"data.valid=[{corpus}/cuts_test-clean.jsonl.gz]",
        "training.epochs=1",
        "training.max_steps=2",
        "training.precision=fp32",
        "data.max_duration_s=8",
        "data.buckets=2",
        "data.workers=0",
    ]
    if recipe.data.unlabelled:
        changes.append(f"data.unlabelled=[{corpus}/cuts_test-other.jsonl.gz]")
    if recipe.tokenizer.package is None and recipe.tokenizer.kind == "sentencepiece":
        changes.append("tokenizer.size=40")
    if recipe.targets is not None:
        changes += ["targets.beam=3", f"targets.nbest={min(2, recipe.targets.nbest)}"]
    for place, term in enumerate(recipe.losses):
        changes += [f"losses.{place}.{key}=layer.0" for key in ("student_layer", "teacher_layer") if key in term]
        changes += [f"losses.{place}.{key}=16" for key in ("student_dim", "teacher_dim") if key in term]
    return changes


def local_teacher(recipe: Recipe, workdir: Path) -> str:
    """In place of a pretrained teacher, which tests cannot download: a small random one of Hugging Face, opened for real.

    The adapters of the other libraries are tested with small models of their own in tests/teachers.
    """
    pytest.importorskip("transformers", reason="the extra hf is not installed")
    folder = workdir / "small_ctc"
    if not folder.exists():
        small_ctc(folder)
    one = {"kind": "huggingface", "source": str(folder)}
    assert recipe.teacher is not None
    return json.dumps({"kind": "ensemble", "members": [one, one]} if recipe.teacher.kind == "ensemble" else one)


def recipe_has_decoder(recipe: Recipe) -> bool:
    default = 0 if recipe.model["kind"] == "streaming_conformer" else 1
    return bool(recipe.model.get("decoder_layers", default))
