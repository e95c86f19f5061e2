"""Every shipped recipe is found and valid, and runs a few steps end to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from asrkd.cli.recipes import recipes_dir
from asrkd.training.recipe import load_recipe, read_yaml
from asrkd.training.run import train

RECIPES = sorted(path for path in recipes_dir().rglob("*.yaml") if "output" in read_yaml(path))
SMALL_MODEL = {
    "speechbrain_conformer": "{kind: speechbrain_conformer, d_model: 16, num_layers: 1, num_heads: 2, ffn_dim: 16, "
    "decoder_layers: 1, subsampling_channels: 4}",
    "streaming_conformer": "{kind: streaming_conformer, d_model: 16, num_layers: 1, num_heads: 2, ffn_dim: 16, "
    "subsampling_channels: 4}",
}


def test_there_are_recipes() -> None:
    assert {path.parent.name for path in RECIPES} >= {"spoken_numbers", "librispeech"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_is_valid_and_says_its_command(path: Path) -> None:
    load_recipe(path)
    assert f"asrkd train recipes/{path.parent.name}/{path.name}" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_trains_a_few_steps(path: Path, prepared: Path, tmp_path: Path) -> None:
    """The recipe itself with a small model on a small corpus; its teacher, where it has one, is trained first."""
    recipe = load_recipe(path)
    if recipe.teacher is not None or recipe.tokenizer.package is not None:
        named = next(iter(recipe.teacher_packages.values()), recipe.tokenizer.package)
        assert named is not None
        teacher = next(p for p in RECIPES if load_recipe(p).output == named.parent and p.parent == path.parent)
        train(load_recipe(teacher, small(teacher, prepared, tmp_path)))
    outcome = train(load_recipe(path, small(path, prepared, tmp_path)))
    assert (outcome.package / "model.safetensors").exists() and not outcome.skipped


def small(path: Path, corpus: Path, workdir: Path) -> list[str]:
    kind = load_recipe(path).model["kind"]
    changes = [
        f"workdir={workdir}",
        f"model={SMALL_MODEL[kind]}",
        f"data.train=[{corpus}/cuts_dev.jsonl.gz]",
        f"data.valid=[{corpus}/cuts_test-clean.jsonl.gz]",
        "training.epochs=1",
        "training.max_steps=2",
        "training.precision=fp32",
        "data.buckets=2",
    ]
    recipe = load_recipe(path)
    if recipe.tokenizer.package is None and recipe.tokenizer.kind == "sentencepiece":
        changes.append("tokenizer.size=40")
    if recipe.targets is not None:
        changes += ["targets.beam=3", "targets.nbest=2"]
    return changes
