"""A streaming transducer through the whole chain: trained alone and under a teacher, evaluated, transcribed; and refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lhotse import CutSet

from asrkd.data.text import train_tokenizer
from asrkd.models import package
from asrkd.training.recipe import RecipeError, load_recipe
from asrkd.training.run import train

MODEL = {
    "kind": "streaming_transducer",
    "d_model": 16,
    "num_layers": 1,
    "num_heads": 2,
    "ffn_dim": 16,
    "subsampling_channels": 4,
    "chunk_frames": 8,
    "predictor_dim": 8,
    "joiner_dim": 12,
    "dropout": 0.0,
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    """A transducer with random weights that are sure of something, and the characters of the corpus."""
    torch.manual_seed(0)
    cuts = CutSet.from_file(prepared / "cuts_dev.jsonl.gz")
    tokenizer = train_tokenizer([s.text for cut in cuts for s in cut.supervisions], kind="char")
    model = package.build(MODEL, tokenizer)
    with torch.no_grad():
        model.joiner.weight.mul_(60)  # type: ignore[union-attr,operator]
    model.set_feature_statistics(torch.full((80,), 6.0), torch.full((80,), 4.0))
    folder = tmp_path_factory.mktemp("transducer") / "teacher" / "package"
    package.save(model, folder, licence="Apache-2.0")
    return folder


def recipe_of(place: Path, corpus: Path, taught_by: Path, losses: list[dict[str, Any]], **more: Any) -> Path:
    content = {
        "name": "student",
        "workdir": str(place),
        "output": "student",
        "data": {
            "train": [f"{corpus}/cuts_dev.jsonl.gz"],
            "valid": [f"{corpus}/cuts_test-clean.jsonl.gz"],
            "max_duration_s": 6,
            "buckets": 2,
        },
        "tokenizer": {"kind": "char", "package": str(taught_by)},
        "model": MODEL,
        "losses": losses,
        "teacher": str(taught_by),
        "targets": {"live": True, "nbest": 0},
        "augment": {"spec": None},
        "training": {"epochs": 10, "max_steps": 20, "log_gradient_shares": True, "optimiser": {"warmup_steps": 2}},
    }
    path = place / "recipe.yaml"
    path.write_text(json.dumps({**content, **more}), encoding="utf-8")  # JSON is YAML
    return path


def records(folder: Path, kind: str = "train") -> list[dict[str, float]]:
    lines = (folder / "student" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


@pytest.mark.parametrize("loss", ["rnnt", "collapsed_kl", "one_best_kl"])
def test_trains_from_a_recipe_beside_ctc_and_fastemit(loss: str, tmp_path: Path, prepared: Path, teacher: Path) -> None:
    losses: list[dict[str, Any]] = [{"loss": "rnnt", "fastemit": 0.01}, {"loss": "ctc", "weight": 0.3}]
    if loss != "rnnt":
        losses.append({"loss": loss, "weight": 0.1})
    outcome = train(load_recipe(recipe_of(tmp_path, prepared, teacher, losses, model={**MODEL, "ctc_head": True})))
    (line,) = records(tmp_path)
    for term in losses:
        assert line[term["loss"]] > 0 and line[f"gradient_share.{term['loss']}"] > 0
    (valid,) = records(tmp_path, "valid")[-1:]
    assert valid["loss"] > 0 and valid["wer"] > 0
    assert package.load(outcome.package).kind == "streaming_transducer"


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tmp_path: Path, prepared: Path, teacher: Path) -> None:
    """The same weights with full context, no dropout, no augmentation: both divergences are zero; else they are not."""
    losses: list[dict[str, Any]] = [{"loss": "collapsed_kl"}, {"loss": "one_best_kl"}]
    still = {"max_steps": 20, "optimiser": {"peak_lr": 1e-12, "warmup_steps": 0}}
    for name, more in (("same", {"init_from": str(teacher), "chunk_frames": [0]}), ("other", {})):
        (tmp_path / name).mkdir()
        path = recipe_of(tmp_path / name, prepared, teacher, losses, training={"epochs": 10, **still, **more})
        train(load_recipe(path))
        (line,) = records(tmp_path / name)
        for term in ("collapsed_kl", "one_best_kl"):
            assert line[term] == pytest.approx(0, abs=1e-4) if name == "same" else line[term] > 1e-2


@pytest.mark.parametrize(
    ("losses", "changes", "message"),
    [
        (
            ["ctc"],
            [],
            r"losses: expected one on the joint network \(rnnt\), which model\.kind streaming_transducer has",
        ),
        (["rnnt", "ctc"], [], r"model\.ctc_head: expected true, since losses need CTC posteriors; found false"),
        (["rnnt"], ["model.ctc_head=true"], r"model\.ctc_head: expected false, since no loss trains it; found true"),
        (["rnnt", "attention_ce"], [], r"losses: expected none on an attention decoder"),
        (
            ["collapsed_kl"],
            ["targets={folder: targets}"],
            r"targets\.live: expected true, since a transducer's lattice",
        ),
        (["collapsed_kl"], ["teacher=null"], r"teacher: expected one, since losses need targets\.lattice; found none"),
        (["one_best_kl"], ["teacher=torchaudio:X"], r"teacher\.kind: expected package, .*lattice; found torchaudio"),
        (["rnnt"], ["export={to: onnx}"], r"export: expected none \(null\), since a streaming_transducer cannot be"),
        (["rnnt"], ["evaluate={parts: [x], decoding: joint}"], r"evaluate\.decoding: expected greedy or streaming"),
        (["collapsed_kl"], ["data.unlabelled=[x]"], r"data\.unlabelled: expected a loss .* without a reference"),
    ],
)
def test_what_cannot_work_is_refused_in_the_recipe(
    losses: list[str], changes: list[str], message: str, tmp_path: Path, prepared: Path, teacher: Path
) -> None:
    path = recipe_of(tmp_path, prepared, teacher, [{"loss": loss} for loss in losses])
    with pytest.raises(RecipeError, match=message):
        load_recipe(path, changes)


def test_what_shows_with_the_teacher_open_is_refused_before_the_first_step(
    tmp_path: Path, prepared: Path, teacher: Path
) -> None:
    path = recipe_of(tmp_path, prepared, teacher, [{"loss": "collapsed_kl"}])
    with pytest.raises(RecipeError, match=r"tokenizer\.package: expected the teacher's, since a transducer's lattice"):
        train(load_recipe(path, ["tokenizer={kind: sentencepiece, size: 40}", "output=a", "targets.nbest=1"]))
    with pytest.raises(RecipeError, match=r"model\.subsampling_factor: expected frames of 40 ms .*; found 80 ms"):
        train(load_recipe(path, ["model.subsampling_factor=8", "output=b"]))
    with pytest.raises(ValueError, match="nbest: expected 0 or 1 of a streaming_transducer, whose search is greedy"):
        train(load_recipe(path, ["targets={live: true, nbest: 4}", "output=c"]))
    ctc = package.build({"kind": "streaming_conformer", "size": "tiny"}, package.load(teacher).tokenizer)
    package.save(ctc, tmp_path / "ctc")
    with pytest.raises(
        ValueError, match=r"expected a transducer, since losses need its lattice; found a streaming_conf"
    ):
        train(load_recipe(path, [f"teacher={tmp_path / 'ctc'}", "output=d"]))


def asrkd(*words: object) -> str:
    command = [sys.executable, "-m", "asrkd", *map(str, words)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_learns_its_training_utterances_and_recognises_them_in_every_way(tmp_path: Path, prepared: Path) -> None:
    everything = sorted(CutSet.from_file(prepared / "cuts_train.jsonl.gz"), key=lambda cut: cut.duration)
    cuts = everything[:3]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts_few.jsonl.gz")
    repeated = CutSet.from_cuts(cuts).repeat(times=60, preserve_id=False).to_eager()
    repeated.to_file(tmp_path / "cuts_repeated.jsonl.gz")
    size = {"d_model": 48, "num_layers": 2, "num_heads": 4, "ffn_dim": 96, "subsampling_channels": 8}
    path = recipe_of(
        tmp_path,
        prepared,
        tmp_path,
        [{"loss": "rnnt"}],
        teacher=None,
        targets=None,
        tokenizer={"kind": "char"},
        model={**MODEL, **size, "predictor_dim": 32, "joiner_dim": 48, "left_context_frames": 32},
        data={
            "train": [str(tmp_path / "cuts_repeated.jsonl.gz")],
            "valid": [str(tmp_path / "cuts_few.jsonl.gz")],
            "max_duration_s": 3.5 * cuts[-1].duration,
            "buckets": 1,
        },
        training={"epochs": 8, "average": 1, "optimiser": {"peak_lr": 4e-3, "warmup_steps": 10}},
    )
    outcome = train(load_recipe(path))
    lines = records(tmp_path)
    assert lines[-1]["rnnt"] < 0.05 * lines[0]["rnnt"]
    texts = {cut.id: cut.supervisions[0].text for cut in cuts}
    data = ("--data", tmp_path / "cuts_few.jsonl.gz", "--device", "cpu")
    for way in ((), ("--streaming",)):
        out = tmp_path / f"evaluation{len(way)}"
        asrkd("evaluate", outcome.package, *data, *way, "--no-speed", "--out", out)
        found = [json.loads(line) for line in (out / "utterances.jsonl").read_text().splitlines()]
        assert len(found) == 3 and all(one["hypothesis"] == texts[one["id"]] for one in found)
    audio = [cut.recording.sources[0].source for cut in cuts]
    for way in ((), ("--streaming",)):
        written = asrkd("transcribe", outcome.package, *audio, *way, "--format", "json", "--device", "cpu")
        assert all(text in written for text in texts.values())
