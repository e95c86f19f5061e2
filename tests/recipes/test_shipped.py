"""Every shipped recipe is found and valid, and runs a few steps end to end under its own (small) teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

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
    assert {path.parent.name for path in RECIPES} >= {"spoken_numbers", "librispeech"}


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Callable[[Path], Path]:
    """Trains a recipe in its small form once, its teachers first; gives the working folder of its recipes' folder."""
    folders: dict[str, Path] = {}
    done: dict[Path, Path] = {}

    def make(path: Path) -> Path:
        path = path.resolve()
        if path not in done:
            for other in load_recipe(path).teacher_recipes:
                make(other)
            workdir = folders.setdefault(path.parent.name, tmp_path_factory.mktemp(path.parent.name))
            if not load_recipe(path).teacher_recipes and (package := load_recipe(path).tokenizer.package) is not None:
                make(next(p for p in RECIPES if p.parent == path.parent and load_recipe(p).output == package.parent))
            changes = small(load_recipe(path), prepared, workdir)
            if load_recipe(path).teacher is not None and not load_recipe(path).teacher_packages:
                changes.append(f"teacher={local_teacher(load_recipe(path), workdir)}")
            train(load_recipe(path, changes))
            done[path] = workdir
        return done[path]

    return make


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
