"""One optimiser step: how the batch is cut into micro-batches does not change the gradient; compiled is not compiled."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from asrkd.data.batching import load_batch
from asrkd.data.corpora import load_cuts
from asrkd.models import package
from asrkd.training.distiller import Distiller
from asrkd.training.recipe import load_recipe
from asrkd.training.run import make_model, make_tokenizer
from asrkd.types import SpeechBatch

RECIPE = """
name: step
workdir: {workdir}
output: {output}
data: {{train: [{corpus}/cuts_train.jsonl.gz]}}
tokenizer: {{kind: char}}
model: {{kind: streaming_conformer, d_model: 16, num_layers: 1, num_heads: 2, ffn_dim: 16, subsampling_channels: 4, dropout: 0.0}}
losses: [{{loss: ctc}}]
augment: {{spec: null}}
training: {{clip_norm: 1.0e6, compile: {compiled}}}
"""
Stepped = Callable[..., dict[str, torch.Tensor]]


@pytest.fixture
def stepped(tmp_path: Path, prepared: Path) -> Stepped:
    """Makes one step of a fresh model over groups of utterances (by their places); gives the gradient of each parameter."""

    def step(*groups: list[int], compiled: bool = False) -> dict[str, torch.Tensor]:
        output = f"run{len(list(tmp_path.iterdir()))}"
        text = RECIPE.format(workdir=tmp_path, output=output, corpus=prepared, compiled=str(compiled).lower())
        (tmp_path / f"{output}.yaml").write_text(text, encoding="utf-8")
        recipe = load_recipe(tmp_path / f"{output}.yaml")
        cuts = load_cuts(prepared, "train")
        torch.manual_seed(1)
        model = make_model(recipe, make_tokenizer(recipe, cuts), cuts)
        brain = Distiller(model, recipe, total_steps=10, folder=tmp_path / output)
        brain.on_fit_start()
        brain.modules.train()
        everything = sorted(cuts, key=lambda cut: cut.duration)
        batches: list[SpeechBatch] = [load_batch([everything[i] for i in places], model.tokenizer) for places in groups]
        brain.fit_batch(batches)
        # AdamW's first moment after one step is (1 - beta1) times the gradient; the step itself hides its scale.
        share = 1 - recipe.training.optimiser.betas[0]
        package.save(model, tmp_path / output / "package")
        state = brain.optimizer.state
        return {name: state[p]["exp_avg"] / share for name, p in model.named_parameters() if p in state}

    return step


def test_micro_batches_of_any_size_make_the_gradient_of_the_whole(stepped: Stepped) -> None:
    """Short and long utterances apart, so that a mean of means would be something else."""
    whole = stepped([0, 1, 2, -3, -2, -1])
    assert len(whole) > 10 and all(bool(gradient.abs().max() > 0) for gradient in whole.values())
    for cut_up in ([[0], [1, 2], [-3, -2, -1]], [[0, 1, 2, -3, -2], [-1]]):
        found = stepped(*cut_up)
        assert found.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()) + 1e-7)


@pytest.mark.long
def test_a_compiled_model_makes_the_same_step_and_package(stepped: Stepped, tmp_path: Path) -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler; found none")
    plain, compiled = stepped([0, -1]), stepped([0, -1], compiled=True)
    assert compiled.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-2, atol=1e-4 * float(gradient.abs().max()) + 1e-6)
    saved = sorted(tmp_path.glob("run*/package"))
    assert len(saved) == 2 and all(package.load(folder).vocabulary for folder in saved)
