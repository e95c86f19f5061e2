"""Recipes are read, merged, overridden and checked whole before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from asrkd.training.recipe import Recipe, RecipeError, apply_overrides, load_recipe, merge, missing_files, read_yaml

GOOD = """
name: student
workdir: exp
output: student
data: {train: [cuts.jsonl.gz]}
model: {kind: streaming_conformer, size: tiny}
losses:
  - {loss: ctc}
"""


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_good_recipe_loads_with_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.training.optimiser.schedule == "cosine"
    assert recipe.output_dir == Path("exp/student")


def test_overrides_are_yaml_values_and_reach_into_lists(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    recipe = load_recipe(path, ["training.optimiser.peak_lr=3e-4", "data.train=[a.gz, b.gz]", "losses.0.weight=0.5"])
    assert recipe.training.optimiser.peak_lr == pytest.approx(3e-4)
    assert recipe.data.train == (Path("a.gz"), Path("b.gz"))
    assert recipe.losses[0]["weight"] == 0.5


def test_every_problem_is_named_at_once_with_path_and_known_names(tmp_path: Path) -> None:
    text = GOOD.replace("output: student\n", "") + "training: {epoch: 3, clip_norm: -1}\nsede: 4\n"
    text = text.replace("kind: streaming_conformer", "kind: streaming_confomer").replace("loss: ctc", "loss: ctcc")
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text))
    message = str(caught.value)
    assert "training.epoch: unknown key (did you mean epochs?)" in message
    assert "training.clip_norm" in message and "-1" in message
    assert "sede: unknown key (did you mean seed?)" in message
    assert "output: expected a value; found none" in message
    assert "model.kind: expected one of" in message and "streaming_conformer" in message
    assert "ctcc" in message and "frame_kl" in message


def test_a_loss_that_needs_a_teacher_is_refused_without_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"teacher: expected one, since losses need targets\.posteriors"):
        load_recipe(write(tmp_path, GOOD + "  - {loss: frame_kl}\n"))


def test_a_stored_teacher_needs_a_place(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"targets: expected a folder"):
        load_recipe(write(tmp_path, GOOD + "  - {loss: frame_kl}\nteacher: teacher\n"))


def test_extends_merges_maps_and_replaces_lists(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base.yaml")
    child = write(
        tmp_path, "extends: base.yaml\nname: child\ndata: {max_duration_s: 7}\nlosses: [{loss: ctc, weight: 2}]\n"
    )
    recipe = load_recipe(child)
    assert recipe.name == "child"
    assert recipe.data.train == (Path("cuts.jsonl.gz"),) and recipe.data.max_duration_s == 7
    assert len(recipe.losses) == 1


def test_another_kind_replaces_the_whole_mapping() -> None:
    assert merge({"m": {"kind": "a", "x": 1}}, {"m": {"kind": "b", "y": 2}}) == {"m": {"kind": "b", "y": 2}}


@pytest.mark.parametrize("below", ["teacher/package", None, 3, ["a"]])
def test_a_mapping_replaces_what_is_none(below: object) -> None:
    assert merge({"teacher": below}, {"teacher": {"kind": "onnx", "path": "p"}})["teacher"]["kind"] == "onnx"


def test_a_recipe_that_extends_itself_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "extends: b.yaml\n", "a.yaml")
    with pytest.raises(RecipeError, match="extends itself"):
        read_yaml(write(tmp_path, "extends: a.yaml\n", "b.yaml"))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [1,\n", "a: !!python/object/apply:os.system ['true']\n"])
def test_what_is_no_plain_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml: expected"):
        load_recipe(write(tmp_path, text))


@pytest.mark.parametrize("override", ["nothing", "=3", "name.sub=3", "losses.7.weight=1"])
def test_bad_overrides_are_one_line(tmp_path: Path, override: str) -> None:
    with pytest.raises(RecipeError) as caught:
        apply_overrides(read_yaml(write(tmp_path, GOOD)), [override])
    assert "\n" not in str(caught.value)


def test_missing_files_are_all_named(tmp_path: Path) -> None:
    recipe: Recipe = load_recipe(
        write(tmp_path, GOOD), [f"workdir={tmp_path}", "tokenizer.package=t", "data.valid=[v.gz]"]
    )
    assert [line.split(":")[0] for line in missing_files(recipe)] == [
        "data.train.0",
        "data.valid.0",
        "tokenizer.package",
    ]
