"""``asrkd sweep``: real small trainings, killed and continued, ended early, and the best recipe trained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from asrkd.training.recipe import RecipeError, load_recipe
from asrkd.training.run import train
from asrkd.training.sweep import Study, changed, epochs_of, labels, read_plan

pytest.importorskip("optuna", reason="the extra sweep is not installed")

RECIPE = """
name: tiny
workdir: {workdir}
output: {output}
data: {{train: [{corpus}/cuts_dev.jsonl.gz], valid: [{corpus}/cuts_test-clean.jsonl.gz], max_duration_s: 8, buckets: 2}}
tokenizer: {{kind: char}}
model: {{kind: streaming_conformer, d_model: 16, num_layers: 1, num_heads: 2, ffn_dim: 16, subsampling_channels: 4}}
losses: [{{loss: ctc}}, {{loss: nbest_ctc, weight: 0.5}}, {{loss: frame_kl, weight: 0.1}}]
teacher: teacher/package
targets: {{folder: targets, nbest: 1, beam: 1}}
training: {{epochs: 50, average: 1, optimiser: {{warmup_steps: 2}}, checkpoint_every_steps: 2}}
evaluate: {{parts: [{corpus}/cuts_test-clean.jsonl.gz]}}
sweep:
  trials: 2
  metric: loss
  startup_trials: 1
  warmup_epochs: 0
  changes: {{training.epochs: 3}}
  space:
    training.optimiser.peak_lr: {{low: 1.0e-6, high: 1.0e-2, log: true}}
    losses.2.weight: {{low: 0.0, high: 0.2}}
    losses.2.blank: {{choices: [keep, decouple]}}
    pairing:
      choices:
        narrow: {{model.ffn_dim: 16, model.chunk_frames: 8}}
        wide: {{model.ffn_dim: 32, teacher: {{kind: package, path: teacher/package, precision: bf16}}, targets.folder: targets_bf16}}
"""
TEACHER = """
name: teacher
workdir: {workdir}
output: teacher
data: {{train: [{corpus}/cuts_dev.jsonl.gz], max_duration_s: 8, buckets: 2}}
tokenizer: {{kind: char}}
model: {{kind: streaming_conformer, d_model: 16, num_layers: 1, num_heads: 2, ffn_dim: 16, subsampling_channels: 4}}
losses: [{{loss: ctc}}]
training: {{epochs: 1, average: 1}}
"""


def make_teacher(folder: Path, corpus: Path) -> None:
    path = folder / "teacher.yaml"
    path.write_text(TEACHER.format(workdir=folder, corpus=corpus), encoding="utf-8")
    train(load_recipe(path))


def write(folder: Path, corpus: Path, output: str) -> Path:
    path = folder / f"{output}.yaml"
    path.write_text(RECIPE.format(workdir=folder, output=output, corpus=corpus), encoding="utf-8")
    return path


def command(recipe: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "asrkd", "sweep", str(recipe), *words, "--device", "cpu"]


def rows(folder: Path, output: str) -> list[dict[str, object]]:
    return json.loads((folder / output / "sweep" / "trials.json").read_text(encoding="utf-8"))


@pytest.mark.timeout(1200)
def test_killed_and_continued_it_ends_as_uninterrupted(tmp_path: Path, prepared: Path) -> None:
    make_teacher(tmp_path, prepared)
    whole = write(tmp_path, prepared, "whole")
    answer = subprocess.run(command(whole), capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr

    broken = write(tmp_path, prepared, "broken")
    run = subprocess.Popen(
        command(broken), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    checkpoints = tmp_path / "broken" / "sweep" / "trial_001" / "checkpoints"
    while not list(checkpoints.glob("CKPT*")):
        assert run.poll() is None, "the sweep ended before it could be killed"
    os.killpg(run.pid, signal.SIGKILL)  # the sweep and the training that it watches, in the middle of the second trial
    run.wait()
    assert len(rows(tmp_path, "broken")) == 1
    answer = subprocess.run(command(broken), capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr

    expected, found = rows(tmp_path, "whole"), rows(tmp_path, "broken")
    assert len(expected) == 2 and found == expected
    assert len({json.dumps(row["values"]) for row in expected}) == 2
    assert {row["ended"] for row in expected} <= {"complete", "pruned"}
    best = min((row for row in expected if row["ended"] == "complete"), key=lambda row: row["loss"])
    assert len(best["epochs"]) == 3 and best["loss"] == min(best["epochs"].values())

    path = tmp_path / "whole" / "sweep" / "best.yaml"
    assert answer.stdout.strip() == str(tmp_path / "broken" / "sweep" / "best.yaml")
    plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert "sweep" not in plain and "extends" not in plain and plain["evaluate"]
    recipe = load_recipe(path)
    assert recipe.training.epochs == 50 and recipe.name == "tiny"  # the shorter schedule is that of trials alone
    assert recipe.training.optimiser.peak_lr == best["values"]["training.optimiser.peak_lr"]
    assert recipe.model["ffn_dim"] == {"narrow": 16, "wide": 32}[best["values"]["pairing"]]
    assert (
        subprocess.run(
            [sys.executable, "-m", "asrkd", "train", str(path), "training.epochs=1", "--device", "cpu"], check=False
        ).returncode
        == 0
    )

    again = subprocess.run(command(whole), capture_output=True, text=True, check=False)
    assert again.returncode == 0 and rows(tmp_path, "whole") == expected
    other = subprocess.run(command(whole, "sweep.metric=wer"), capture_output=True, text=True, check=False)
    assert other.returncode == 2 and "another recipe or space" in other.stderr and other.stderr.count("\n") == 1


def test_a_trial_that_falls_behind_is_ended(tmp_path: Path, prepared: Path) -> None:
    """Without learning (rate 1e-12) after a trial that learns."""
    recipe = write(tmp_path, prepared, "behind")
    text = recipe.read_text(encoding="utf-8").split("losses:")[0] + (
        "losses: [{loss: ctc}]\ntraining: {average: 1, optimiser: {warmup_steps: 2}}\n"
        "sweep: {trials: 2, metric: loss, startup_trials: 1, warmup_epochs: 0, changes: {training.epochs: 6},\n"
        "  space: {training.optimiser.peak_lr: {choices: [1.0e-2, 1.0e-12]}}, sampler: random}\n"
    )
    recipe.write_text(text, encoding="utf-8")
    for seed in range(20):  # a seed that tries the good value first
        plan = read_plan(recipe, [f"seed={seed}", f"output=draw{seed}"])
        study = Study(plan)
        first = study.begin()
        study.end(first, "complete", 1.0)
        if [first.values, study.begin().values] == [{"training.optimiser.peak_lr": rate} for rate in ("0.01", "1e-12")]:
            break
    answer = subprocess.run(command(recipe, f"seed={seed}"), capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    learnt, stopped = rows(tmp_path, "behind")
    assert learnt["ended"] == "complete" and len(learnt["epochs"]) == 6
    assert stopped["ended"] == "pruned" and len(stopped["epochs"]) == 1 and stopped["loss"] is None
    folder = tmp_path / "behind" / "sweep" / "trial_001"
    assert not (folder / "package").exists() and not (folder / "checkpoints").exists()


def test_trials_that_fail_end_the_sweep_with_their_reason(tmp_path: Path, prepared: Path) -> None:
    recipe = write(tmp_path, prepared, "gone")
    text = recipe.read_text(encoding="utf-8").replace("cuts_dev.", "cuts_nowhere.").replace("trials: 2", "trials: 5")
    recipe.write_text(text, encoding="utf-8")
    answer = subprocess.run(command(recipe), capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "the last 3 trials failed" in answer.stderr and "no such file or folder" in answer.stderr
    assert [row["ended"] for row in rows(tmp_path, "gone")] == ["failed"] * 3


def test_every_value_is_checked_before_anything_starts(tmp_path: Path, prepared: Path) -> None:
    recipe = write(tmp_path, prepared, "checked")
    space = yaml.safe_load(recipe.read_text(encoding="utf-8"))["sweep"]
    space["space"] |= {"losses.2.blank": {"choices": ["keep", "dropp"]}, "training.clip": {"low": 1, "high": 2}}
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({"sweep": space}), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        read_plan(recipe, [], path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith('sweep.space.losses.2.blank = "dropp": ') and "keep" in lines[0]
    assert "training.clip: unknown key (did you mean clip_norm?)" in lines[1]
    assert not (tmp_path / "checked").exists()
    for change, message in (
        ("data.valid=[]", r"data\.valid: expected development data"),
        ("sweep=null", "expected a section sweep"),
        ("sweep.space={seed: {low: 2, high: 1}}", "expected low below high"),
        ("sweep.space={seed: {low: 0, high: 1, log: true}}", "low above 0"),
    ):
        with pytest.raises(RecipeError, match=message):
            read_plan(recipe, [change])


def test_values_of_every_kind_reach_the_recipe(tmp_path: Path, prepared: Path) -> None:
    plan = read_plan(write(tmp_path, prepared, "values"))
    space = plan.config.space
    assert labels(space["pairing"]) == ["narrow", "wide"] and labels(space["losses.2.blank"]) == [
        '"keep"',
        '"decouple"',
    ]
    values = {"training.optimiser.peak_lr": 1e-5, "losses.2.blank": '"decouple"', "pairing": "wide"}
    content = changed(plan, values)
    assert content["training"]["optimiser"]["peak_lr"] == 1e-5 and content["losses"][2]["blank"] == "decouple"
    assert content["model"]["ffn_dim"] == 32 and content["training"]["epochs"] == 3 and "evaluate" not in content
    assert yaml.safe_load(yaml.safe_dump(content)) == content  # 1e-5 stays a number
    assert (
        plan.content["training"]["epochs"] == 50 and changed(plan, values, in_trial=False)["training"]["epochs"] == 50
    )


def test_epochs_are_read_while_they_are_written(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert epochs_of(log, "wer") == {}
    log.write_text(
        '{"kind": "train", "step": 1}\n{"kind": "valid", "epoch": 1, "wer": 0.5}\n{"kind": "va', encoding="utf-8"
    )
    assert epochs_of(log, "wer") == {1: 0.5}
