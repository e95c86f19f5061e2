"""ONNX models: small ones exported by torch, run by onnxruntime, equal to its own call and to the torch model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from asrkd.data.features import Fbank
from asrkd.teachers.onnx import OnnxTeacher
from asrkd.types import Frames, SpeechBatch

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnx", reason="onnx, which torch exports with, is not installed")

TOKENS = ("<blank>", "▁A", "B", "▁C", "D")


class FeatureNet(nn.Module):
    """Fbank to log-probabilities, half as many frames, with lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(20, len(TOKENS), 2, stride=2)

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        return (0.3 * self.conv(x.transpose(1, 2))).transpose(1, 2).log_softmax(-1), x_lens // 2


class SampleNet(nn.Module):
    """Samples to scores, one frame for 320."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, len(TOKENS), 400, stride=320)

    def forward(self, audio: Tensor) -> Tensor:
        return self.conv(audio[:, None]).transpose(1, 2)


def exported(folder: Path, with_lengths: bool) -> nn.Module:
    """A model with random weights and its contract in ``folder``."""
    torch.manual_seed(0)
    folder.mkdir()
    contract: dict[str, Any] = {"sample_rate_hz": 16000, "tokens": TOKENS, "blank_id": 0}
    if with_lengths:
        model: nn.Module = FeatureNet()
        example: tuple[Tensor, ...] = (torch.randn(2, 50, 20), torch.tensor([50, 40]))
        names = {"input_names": ["x", "x_lens"], "output_names": ["y", "y_lens"]}
        axes = {"x": {0: "B", 1: "T"}, "x_lens": {0: "B"}, "y": {0: "B", 1: "T2"}, "y_lens": {0: "B"}}
        features = {"kind": "fbank", "num_mel_bins": 20, "sample_scale": 1, "normalise": "none"}
        contract |= {"input": "x", "input_lengths": "x_lens", "output": "y", "output_lengths": "y_lens"}
        contract |= {"features": features, "frame_shift_s": 0.02}
    else:
        model, example = SampleNet(), (torch.randn(1, 4000),)
        names, axes = {"input_names": ["audio"], "output_names": ["y"]}, {"audio": {1: "S"}, "y": {1: "T"}}
        contract |= {"input": "audio", "output": "y", "features": {"kind": "samples", "normalise": "utterance"}}
        contract |= {"frame_shift_s": 0.02}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's older exporter needs no further package
        torch.onnx.export(model.eval(), example, str(folder / "model.onnx"), dynamic_axes=axes, dynamo=False, **names)
    (folder / "contract.json").write_text(json.dumps(contract))
    return model


def changed(folder: Path, **values: Any) -> Path:
    path = folder / "contract.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def test_a_model_with_lengths_hears_a_batch(batch: SpeechBatch, tmp_path: Path) -> None:
    model = exported(tmp_path / "m", with_lengths=True)
    teacher = OnnxTeacher(tmp_path / "m", nbest=2, beam=4)
    targets = teacher(batch)
    session = onnxruntime.InferenceSession(str(tmp_path / "m" / "model.onnx"))
    assert isinstance(targets.posteriors, Frames) and targets.nbest is not None
    assert targets.posteriors.lengths.tolist() == [50, 28, 38] and targets.posteriors.frame_shift_s == 0.02
    for row, samples in enumerate(batch.audio_lengths.tolist()):
        # lhotse's and icefall's features: Kaldi's of samples in [-1, 1]
        alone = Fbank(16000, 20)(batch.audio[row : row + 1, :samples] / 32768, torch.tensor([samples])).values
        lengths = np.array([alone.shape[1]], dtype=np.int64)
        own = torch.from_numpy(session.run(["y"], {"x": alone.numpy(), "x_lens": lengths})[0][0])
        with torch.inference_mode():
            by_torch = model(alone, torch.from_numpy(lengths))[0][0]
        found = targets.posteriors.values[row, : len(own)]
        torch.testing.assert_close(found, own, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found, by_torch, atol=1e-4, rtol=1e-4)
        assert found.std() > 0.1
        for one in targets.nbest[row]:
            spelt = "".join(TOKENS[t] for t in one.tokens).replace("▁", " ")
            assert one.text == spelt.strip()


def test_a_model_without_lengths_hears_one_by_one(batch: SpeechBatch, tmp_path: Path) -> None:
    exported(tmp_path / "m", with_lengths=False)
    targets = OnnxTeacher(tmp_path / "m")(batch)
    session = onnxruntime.InferenceSession(str(tmp_path / "m" / "model.onnx"))
    assert isinstance(targets.posteriors, Frames)
    for row, samples in enumerate(batch.audio_lengths.tolist()):
        audio = batch.audio[row : row + 1, :samples].numpy()
        audio = (audio - audio.mean()) / np.sqrt(audio.var() + 1e-7)  # as transformers' Wav2Vec2FeatureExtractor
        own = torch.from_numpy(session.run(None, {"audio": audio})[0][0]).log_softmax(-1)
        assert targets.posteriors.lengths[row] == len(own)
        torch.testing.assert_close(targets.posteriors.values[row, : len(own)], own, atol=1e-4, rtol=1e-4)


def test_stored_and_utterance_normalisation(batch: SpeechBatch, tmp_path: Path) -> None:
    model = exported(tmp_path / "m", with_lengths=True)
    features = {"kind": "fbank", "num_mel_bins": 20, "normalise": "stored", "mean": [7.0] * 20, "deviation": [2.0] * 20}
    stored = OnnxTeacher(changed(tmp_path / "m", features=features))
    per_utterance = OnnxTeacher(
        changed(tmp_path / "m", features={"kind": "fbank", "num_mel_bins": 20, "normalise": "utterance"})
    )
    assert stored.identity != per_utterance.identity
    for row, samples in enumerate(batch.audio_lengths.tolist()):
        alone = Fbank(16000, 20)(batch.audio[row : row + 1, :samples], torch.tensor([samples])).values
        deviation = (alone.var(1, correction=0, keepdim=True) + 1e-7).sqrt()
        for teacher, fed in ((stored, (alone - 7) / 2), (per_utterance, (alone - alone.mean(1, True)) / deviation)):
            with torch.inference_mode():
                own = model(fed, torch.tensor([fed.shape[1]]))[0][0]
            found = teacher(batch).posteriors
            assert isinstance(found, Frames)
            torch.testing.assert_close(found.values[row, : len(own)], own, atol=1e-3, rtol=1e-3)


def test_identity_follows_weights_and_contract(tmp_path: Path) -> None:
    exported(tmp_path / "m", with_lengths=False)
    first = OnnxTeacher(tmp_path / "m").identity
    assert first == OnnxTeacher(tmp_path / "m").identity != OnnxTeacher(tmp_path / "m", nbest=1).identity
    data = (tmp_path / "m" / "model.onnx").read_bytes()
    weights = SampleNet().conv.bias
    torch.manual_seed(0)
    bias = SampleNet().conv.bias.detach().numpy().tobytes()
    assert weights is not None and data.count(bias) == 1
    (tmp_path / "m" / "model.onnx").write_bytes(data.replace(bias, bytes(len(bias))))
    assert OnnxTeacher(tmp_path / "m").identity != first


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"input": "sound"}, r"input: expected one of x, x_lens; found 'sound'"),
        ({"input_lengths": None}, r"inputs that the contract does not describe: x_lens"),
        ({"output": "z"}, r"output: expected one of y, y_lens; found 'z'"),
        ({"tokens": ["a", "b"]}, r"tokens: expected as many as in the output"),
        ({"features": {"kind": "samples"}}, r"features: samples gives 2 dimensions"),
        ({"features": {"kind": "fbank"}}, r"num_mel_bins: expected 20 as the model takes, found 80"),
        (
            {"features": {"kind": "fbank", "num_mel_bins": 20, "normalise": "stored", "mean": [1.0]}},
            r"features\.mean: expected 20 numbers, found 1",
        ),
        ({"frame_shift": 0.02}, r"frame_shift: Extra inputs"),
        ({"blank_id": 9}, r"blank_id: expected 0 to 4, found 9"),
    ],
)
def test_contracts_that_the_model_contradicts_are_refused(tmp_path: Path, values: dict[str, Any], problem: str) -> None:
    exported(tmp_path / "m", with_lengths=True)
    with pytest.raises(ValueError, match=problem):
        OnnxTeacher(changed(tmp_path / "m", **values))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"contract\.json"):
        OnnxTeacher(tmp_path)
    exported(tmp_path / "m", with_lengths=True)
    (tmp_path / "m" / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="onnxruntime cannot load it"):
        OnnxTeacher(tmp_path / "m")
    (tmp_path / "m" / "model.onnx").unlink()
    with pytest.raises(OSError, match=r"model\.onnx: not there"):
        OnnxTeacher(tmp_path / "m")
