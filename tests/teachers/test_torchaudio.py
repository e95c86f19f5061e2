"""torchaudio's bundles: real loading path from torch.hub's cache, small models with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchaudio.pipelines import Wav2Vec2ASRBundle

from asrkd.teachers.torchaudio_bundle import TorchaudioTeacher, bundle_names, torchaudio_teacher
from asrkd.types import Frames, SpeechBatch

CONVOLUTIONS = [(16, 10, 5), (16, 3, 2), (16, 3, 2), (16, 3, 2), (16, 3, 2), (16, 2, 2), (16, 2, 2)]
LABELS = ("|", "E", "T", "A", "O")


def small_bundle(folder: Path, mode: str, normalise: bool, kind: str) -> Wav2Vec2ASRBundle:
    """A bundle with a model of a few thousand weights, as torchaudio keeps them."""
    import torchaudio

    params: dict[str, Any] = {
        "extractor_mode": mode,
        "extractor_conv_layer_config": CONVOLUTIONS,
        "extractor_conv_bias": mode == "layer_norm",
        "encoder_embed_dim": 16,
        "encoder_projection_dropout": 0.1,
        "encoder_pos_conv_kernel": 8,
        "encoder_pos_conv_groups": 4,
        "encoder_num_layers": 2,
        "encoder_num_heads": 2,
        "encoder_attention_dropout": 0.1,
        "encoder_ff_interm_features": 32,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.1,
        "encoder_layer_norm_first": mode == "layer_norm",
        "encoder_layer_drop": 0.05,
        "aux_num_out": len(LABELS) + 1,
    }
    if kind == "WavLM":
        params |= {"encoder_num_buckets": 32, "encoder_max_distance": 80}
    torch.manual_seed(0)
    make = torchaudio.models.wavlm_model if kind == "WavLM" else torchaudio.models.wav2vec2_model
    state = make(**params).state_dict()
    for key in ("aux.weight", "aux.bias"):  # fairseq's dictionary has three more rows, which torchaudio takes away
        state[key] = torch.cat((state[key][:1], torch.zeros_like(state[key][:3]), 20 * state[key][1:]))
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(state, folder / "checkpoints" / "small_asr.pth")
    return Wav2Vec2ASRBundle("small_asr.pth", params, 16000, normalise, kind, _labels=LABELS)


@pytest.mark.parametrize(
    ("mode", "normalise", "kind"),
    [("group_norm", False, "Wav2Vec2"), ("layer_norm", True, "Wav2Vec2"), ("group_norm", False, "WavLM")],
    ids=["wav2vec2 base", "wav2vec2 large, HuBERT", "WavLM"],
)
def test_log_probs_equal_torchaudios_own(
    batch: SpeechBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, normalise: bool, kind: str
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    bundle = small_bundle(tmp_path, mode, normalise, kind)
    teacher = TorchaudioTeacher(bundle, nbest=3, beam=4)
    assert teacher.vocabulary.tokens == ("-", *LABELS) and teacher.frame_shift_s == 0.02
    targets = teacher(batch)
    own = bundle.get_model()
    assert isinstance(targets.posteriors, Frames) and targets.nbest is not None
    for row, samples in enumerate(batch.audio_lengths.tolist()):
        with torch.inference_mode():
            expected = own(batch.audio[row : row + 1, :samples])[0][0].log_softmax(-1)
        assert targets.posteriors.lengths[row] == len(expected)
        torch.testing.assert_close(targets.posteriors.values[row, : len(expected)], expected, atol=1e-4, rtol=1e-4)
        assert len(targets.nbest[row]) == 3
        for hypothesis in targets.nbest[row]:
            spelt = "".join(teacher.vocabulary.tokens[t] for t in hypothesis.tokens)
            assert hypothesis.text == " ".join(spelt.replace("|", " ").split())
    assert targets.posteriors.values[:, :40].std() > 0.1  # it is sure of something


def test_short_audio_other_rates_and_identity(
    batch: SpeechBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    bundle = small_bundle(tmp_path, "group_norm", False, "Wav2Vec2")
    teacher = TorchaudioTeacher(bundle)
    short = SpeechBatch(("s",), torch.zeros(1, 100), torch.tensor([100]), 16000, ("",))
    assert teacher(short).posteriors.lengths.tolist() == [1]  # type: ignore[union-attr]
    low = SpeechBatch(batch.ids, batch.audio, batch.audio_lengths, 8000, batch.texts)
    assert teacher(low).posteriors.lengths[0] == teacher(batch).posteriors.lengths[0] * 2 + 1  # type: ignore[union-attr]
    assert teacher.identity == TorchaudioTeacher(bundle).identity != TorchaudioTeacher(bundle, nbest=2).identity


def test_unknown_bundles_are_refused_with_the_known_names() -> None:
    assert "WAV2VEC2_ASR_BASE_960H" in bundle_names() and "HUBERT_ASR_LARGE" in bundle_names()
    with pytest.raises(ValueError, match=r"WAV2VEC2_ASR_BASE_960H.*found 'WAV2VEC3'"):
        torchaudio_teacher("WAV2VEC3")
