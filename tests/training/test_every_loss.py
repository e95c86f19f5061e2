"""Every loss of the catalogue trains a student from a recipe, under a real (small, random) teacher, live and stored."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from lhotse import CutSet

from asrkd.data.text import train_tokenizer
from asrkd.losses.catalogue import LOSSES
from asrkd.models import package
from asrkd.training.recipe import RecipeError, load_recipe
from asrkd.training.run import train

LAYERS = {"student_layer": "layer.0", "teacher_layer": "layer.0"}
OPTIONS: dict[str, dict[str, object]] = {
    "hidden_mse": {**LAYERS, "student_dim": 16, "teacher_dim": 24},
    "hidden_l1_cosine": {**LAYERS, "student_dim": 16, "teacher_dim": 24},
    "hidden_cka": LAYERS,
    "similarity_preserving": LAYERS,
    "relation_kl": LAYERS,
}
TRANSDUCER = {"rnnt", "collapsed_kl", "one_best_kl"}
"""Need a joint network; test_transducer.py trains one on them."""
STORED = {"mvq"}
"""Predicts codes that labelling fits; has a test of its own."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    """SpeechBrain's Conformer, small, with random weights that are sure of something, and the characters of the corpus."""
    torch.manual_seed(0)
    cuts = CutSet.from_file(prepared / "cuts_dev.jsonl.gz")
    tokenizer = train_tokenizer([s.text for cut in cuts for s in cut.supervisions], kind="char")
    size = {"d_model": 24, "num_layers": 1, "num_heads": 2, "ffn_dim": 16, "decoder_layers": 1}
    model = package.build({"kind": "speechbrain_conformer", **size, "subsampling_channels": 4}, tokenizer)
    with torch.no_grad():
        model.ctc_head.weight.mul_(60)  # type: ignore[union-attr,operator]
        model.ctc_head.bias.zero_()  # type: ignore[union-attr,operator]
    folder = tmp_path_factory.mktemp("teacher") / "package"
    package.save(model, folder, licence="Apache-2.0")
    return folder


def recipe_of(place: Path, corpus: Path, teacher: Path, losses: list[dict[str, object]], **targets: object) -> Path:
    needs_decoder = any(LOSSES[str(term["loss"])].needs & {"decoder_logits", "decode"} for term in losses)
    model = {"kind": "streaming_conformer", "d_model": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 16}
    model |= {"subsampling_channels": 4, "chunk_frames": 8}
    if needs_decoder:
        model |= {"decoder_layers": 1, "decoder_heads": 2, "decoder_dim": 16, "decoder_ffn_dim": 16}
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
        "tokenizer": {"kind": "char", "package": str(teacher)},
        "model": model,
        "losses": losses,
        "teacher": str(teacher),
        "targets": {"nbest": 4, "beam": 4, **targets},
        "training": {"epochs": 10, "max_steps": 20, "log_gradient_shares": True, "optimiser": {"warmup_steps": 2}},
    }
    path = place / "recipe.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return path


def records(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "student" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "train"]


@pytest.mark.parametrize("loss", sorted(LOSSES.keys() - TRANSDUCER - STORED))
def test_trains_from_a_recipe(loss: str, tmp_path: Path, prepared: Path, teacher: Path) -> None:
    losses: list[dict[str, object]] = [{"loss": loss, **OPTIONS.get(loss, {})}]
    if loss != "ctc":
        losses.append({"loss": "ctc", "weight": 0.1})
    path = recipe_of(tmp_path, prepared, teacher, losses, live=True)
    outcome = train(load_recipe(path))
    (line,) = records(tmp_path)
    assert math.isfinite(line[loss]) and line["grad_norm"] > 0
    shares = {name: share for name, share in line.items() if name.startswith("gradient_share.")}
    assert sum(shares.values()) == pytest.approx(1)
    # Shares are taken by the first view's encoder output, which a loss on the second view alone does not touch.
    assert (shares[f"gradient_share.{loss}"] > 0) == (loss != "other_view_ctc")
    assert {"spike_offset_ms", "teacher_blank", "spike_agreement"} <= line.keys()
    assert package.load(outcome.package).frame_shift_s == pytest.approx(0.04)


def test_a_learned_projection_is_trained_and_resumed(tmp_path: Path, prepared: Path, teacher: Path) -> None:
    """Hidden states from the store; the projection is part of the checkpoint."""
    losses: list[dict[str, object]] = [{"loss": "hidden_mse", **OPTIONS["hidden_mse"]}, {"loss": "ctc"}]
    path = recipe_of(tmp_path, prepared, teacher, losses, folder="targets")
    train(load_recipe(path))
    kept = sorted((tmp_path / "student" / "checkpoints").glob("CKPT*/objective.ckpt"))
    assert kept
    state = torch.load(kept[-1], weights_only=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(load_recipe(path).seed)
        start = torch.nn.Linear(16, 24)
    assert state["heads.hidden_mse.weight"].shape == (24, 16)
    assert not torch.equal(state["heads.hidden_mse.weight"], start.weight)


def test_codes_are_fitted_stored_and_predicted(tmp_path: Path, prepared: Path, teacher: Path) -> None:
    mvq = {"loss": "mvq", **LAYERS, "student_dim": 16, "num_codebooks": 2, "codebook_size": 8}
    path = recipe_of(tmp_path, prepared, teacher, [mvq, {"loss": "ctc"}], folder="targets", nbest=0)
    train(load_recipe(path))
    assert (tmp_path / "targets" / "quantisers.safetensors").exists()
    (line,) = records(tmp_path)
    assert 0 < line["mvq"] <= 1.5 * 2 * math.log(8)
    with pytest.raises(RecipeError, match=r"targets\.live: expected false, since mvq"):
        load_recipe(path, ["targets.live=true"])
    both = [mvq, {"loss": "hidden_cka", **LAYERS, "teacher_layer": "layer.1"}]
    with pytest.raises(RecipeError, match="expected mvq alone on inner layers"):
        load_recipe(path, [f"losses={json.dumps(both)}"])


@pytest.mark.parametrize("loss", sorted(TRANSDUCER))
def test_a_loss_without_a_student_for_it_is_refused(loss: str, tmp_path: Path, prepared: Path, teacher: Path) -> None:
    path = recipe_of(tmp_path, prepared, teacher, [{"loss": loss}], live=True)
    with pytest.raises(RecipeError, match=r"losses: expected a transducer as model.*found kind streaming_conformer"):
        load_recipe(path)


def test_what_only_a_live_or_package_teacher_has_is_refused(tmp_path: Path, prepared: Path, teacher: Path) -> None:
    path = recipe_of(tmp_path, prepared, teacher, [{"loss": "decoder_kl"}], folder="targets")
    with pytest.raises(RecipeError, match=r"targets\.live: expected true"):
        load_recipe(path)
    with pytest.raises(RecipeError, match=r"teacher\.kind: expected package or huggingface, .*found torchaudio"):
        load_recipe(path, ["teacher=torchaudio:HUBERT_ASR_LARGE", "targets.live=true"])
