"""``asrkd run``: all stages in order, in real processes; done ones are skipped, a dry run does nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from asrkd.training.pipeline import chosen, plan
from asrkd.training.recipe import RecipeError

BASE = """
workdir: {workdir}
prepare: {{corpus: librispeech, root: {audio}}}
data: {{train: [corpus/cuts_dev.jsonl.gz], valid: [corpus/cuts_test-clean.jsonl.gz], buckets: 2, max_duration_s: 8}}
training: {{epochs: 1, average: 1}}
"""
TEACHER = """
extends: base.yaml
name: teacher
output: teacher
tokenizer: {kind: char}
model: {kind: speechbrain_conformer, d_model: 16, num_layers: 1, num_heads: 2, ffn_dim: 16, decoder_layers: 1, subsampling_channels: 4}
losses: [{loss: ctc}, {loss: attention_ce}]
evaluate: {parts: [corpus/cuts_test-clean.jsonl.gz], speed: false}
"""
STUDENT = """
extends: base.yaml
name: student
output: student
teacher_recipes: [teacher.yaml]
tokenizer: {package: teacher/package}
model: {kind: streaming_conformer, d_model: 16, num_layers: 1, num_heads: 2, ffn_dim: 16, subsampling_channels: 4, chunk_frames: 8}
losses: [{loss: ctc}, {loss: frame_kl}]
teacher: teacher/package
targets: {folder: targets, nbest: 2, beam: 2}
evaluate: {parts: [corpus/cuts_test-clean.jsonl.gz], speed: false, against: [teacher=evaluation/teacher]}
"""


@pytest.fixture
def recipe(tmp_path: Path, spoken: Path) -> Path:
    """A student's recipe beside its teacher's."""
    (tmp_path / "base.yaml").write_text(BASE.format(workdir=tmp_path / "exp", audio=spoken), encoding="utf-8")
    (tmp_path / "teacher.yaml").write_text(TEACHER, encoding="utf-8")
    path = tmp_path / "student.yaml"
    path.write_text(STUDENT, encoding="utf-8")
    return path


def asrkd(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "asrkd", "run", *words], capture_output=True, text=True, check=False)


def test_from_audio_to_a_compared_student_and_nothing_twice(recipe: Path, tmp_path: Path) -> None:
    answer = asrkd(str(recipe), "--device", "cpu")
    assert answer.returncode == 0, answer.stderr
    begun = [line.split(":")[0] for line in answer.stderr.splitlines() if ": asrkd " in line]
    assert begun == ["prepare", "teacher", "teacher", "label", "train", "evaluate", "evaluate"]
    exp = tmp_path / "exp"
    assert (exp / "student" / "package" / "model.safetensors").exists()
    names = [row["name"] for row in json.loads((exp / "report" / "student" / "metrics.json").read_text())["rows"]]
    assert names == ["teacher", "distilled"]
    again = asrkd(str(recipe), "--device", "cpu")
    assert again.returncode == 0 and again.stderr.count("already there") == 7 and ": asrkd " not in again.stderr


def test_a_dry_run_measures_and_does_nothing(recipe: Path, tmp_path: Path, prepared: Path) -> None:
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "corpus").symlink_to(prepared)
    answer = asrkd(str(recipe), "--dry-run", "--device", "cpu")
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        "prepare",
        "teacher",
        "teacher",
        "label",
        "train",
        "evaluate",
        "evaluate",
        "all:",
    ]
    assert "done" in lines[0] and " min, disk " in lines[4] and "GB of memory" in lines[-1]
    assert [p.name for p in (tmp_path / "exp").iterdir()] == ["corpus"]


def test_stages_can_be_chosen_and_overrides_are_handed_down(recipe: Path, tmp_path: Path) -> None:
    steps = plan(recipe, [f"workdir={tmp_path / 'other'}", "seed=4", "training.epochs=9"])
    teacher = next(s for s in steps if s.stage == "teacher")
    assert teacher.recipe.seed == 4 and teacher.recipe.training.epochs == 1
    assert teacher.recipe.workdir == tmp_path / "other"
    assert [s.stage for s in chosen(steps, ["label", "train"])] == ["label", "train"]
    with pytest.raises(ValueError, match=r"--stages: expected some of prepare, .*found lable"):
        chosen(steps, ["lable"])


def test_what_cannot_be_planned_is_said(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "teacher.yaml").write_text(TEACHER + "teacher_recipes: [student.yaml]\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="teacher_recipes go in a circle"):
        plan(recipe)
    with pytest.raises(RecipeError, match=r"no such file: .*cuts_dev.*no prepare section"):
        plan(recipe, ["prepare=null"])


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("{corpus: spoken_numbers, train_minutes: 2}", "prepare spoken_numbers --out {out} --seed 1 --train-minutes 2"),
        (
            "{corpus: lhotse, name: yesno, root: d, options: {x: 1}}",
            "prepare lhotse yesno --root d --out {out} --option x=1",
        ),
        ("{corpus: table, files: [a.tsv, b.tsv]}", "prepare table a.tsv b.tsv --out {out}"),
        ("{corpus: librispeech, root: d, parts: [dev-clean], download: true}", "--parts dev-clean --download"),
    ],
)
def test_every_corpus_becomes_its_command(section: str, words: str, recipe: Path, tmp_path: Path) -> None:
    steps = plan(recipe, ["prepare=null", f"prepare={section}"])
    assert words.format(out=tmp_path / "exp" / "corpus") in " ".join(steps[0].command)
