"""torchaudio's transducer bundles: real loading path from torch.hub's cache, a small Emformer with random weights."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import sentencepiece
import torch
import torchaudio
from torch import Tensor
from torchaudio.models import emformer_rnnt_model
from torchaudio.pipelines import RNNTBundle

from asrkd.data.text import train_tokenizer
from asrkd.teachers.fit import FittedTeacher
from asrkd.teachers.torchaudio_bundle import bundle_names, torchaudio_teacher
from asrkd.teachers.torchaudio_rnnt import RnntTeacher
from asrkd.types import SpeechBatch

PIECES = 20
SMALL = {
    "input_dim": 16, "encoding_dim": 16, "num_symbols": PIECES + 1, "segment_length": 16, "right_context_length": 4,
    "time_reduction_input_dim": 8, "time_reduction_stride": 4, "transformer_num_heads": 2, "transformer_ffn_dim": 32,
    "transformer_num_layers": 2, "transformer_dropout": 0.1, "transformer_activation": "gelu",
    "transformer_left_context_length": 30, "transformer_max_memory_size": 0,
    "transformer_weight_init_scale_strategy": "depthwise", "transformer_tanh_on_mem": True, "symbol_embedding_dim": 8,
    "num_lstm_layers": 1, "lstm_layer_norm": True, "lstm_layer_norm_epsilon": 1e-3, "lstm_dropout": 0.3,
}  # fmt: skip


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RNNTBundle:
    """A bundle whose three files lie in torch.hub's cache as torchaudio puts them there."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "torchaudio" / "models"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = emformer_rnnt_model(**SMALL)
    with torch.no_grad():
        model.joiner.linear.weight.mul_(4)
        model.joiner.linear.bias[-1] = 3.0  # blank in most frames
    torch.save(model.state_dict(), folder / "small.pt")
    (folder / "stats.json").write_text(json.dumps({"mean": [10.0] * 16, "invstddev": [0.3] * 16}))
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["abc abd aed dea edc fgh bad", "head cab had fed"] * 20), model_writer=pieces,
        vocab_size=PIECES, minloglevel=2,
    )  # fmt: skip
    (folder / "pieces.model").write_bytes(pieces.getvalue())
    names = {
        "_rnnt_path": "models/small.pt",
        "_global_stats_path": "models/stats.json",
        "_sp_model_path": "models/pieces.model",
    }
    sizes = {"_right_padding": 4, "_blank": PIECES, "_sample_rate": 16000, "_n_fft": 400, "_n_mels": 16}
    made: RNNTBundle = RNNTBundle(
        **names, **sizes, _rnnt_factory_func=partial(emformer_rnnt_model, **SMALL), _hop_length=160,
        _segment_length=16, _right_context_length=4,
    )  # fmt: skip
    monkeypatch.setattr(torchaudio.pipelines, "SMALL_RNNT", made, raising=False)
    return made


def test_lists_equal_torchaudios_own(batch: SpeechBatch, bundle: RNNTBundle) -> None:
    assert "EMFORMER_RNNT_BASE_LIBRISPEECH" in bundle_names()
    teacher = torchaudio_teacher("SMALL_RNNT", nbest=3, beam=4)
    assert isinstance(teacher, RnntTeacher)
    assert (len(teacher.vocabulary), teacher.vocabulary.blank_id, teacher.frame_shift_s) == (PIECES + 1, PIECES, 0.04)
    targets = teacher(batch)
    extractor, decoder, processor = bundle.get_feature_extractor(), bundle.get_decoder(), bundle.get_token_processor()
    assert targets.posteriors is None and targets.nbest is not None
    for row, samples in enumerate(batch.audio_lengths.tolist()):
        with torch.no_grad():
            own = decoder(*extractor(batch.audio[row, :samples]), 4)
        assert [h.text for h in targets.nbest[row]] == [" ".join(processor(h[0]).split()) for h in own[:3]]
        assert [h.score for h in targets.nbest[row]] == pytest.approx([h[3] for h in own[:3]], abs=1e-4)
        for found, (tokens, *_) in zip(targets.nbest[row], own, strict=False):
            assert found.tokens == tuple(t for t in tokens[1:] if t > 2)  # ids 0 to 2 are <unk>, <s>, </s>
        assert any(h.text for h in targets.nbest[row])


def test_scores_are_part_of_the_lattice(batch: SpeechBatch, bundle: RNNTBundle) -> None:
    """Not more than the sum over all alignments by an oracle, and near the best one: the search drops some."""
    teacher = RnntTeacher(bundle, nbest=1, beam=12)
    samples = 3200
    short = SpeechBatch(("s",), batch.audio[:1, :samples], torch.tensor([samples]), 16000, ("",))
    (best,) = teacher(short).nbest[0]  # type: ignore[index]
    model = bundle._get_model()
    features, length = bundle.get_feature_extractor()(short.audio[0])
    with torch.no_grad():
        said = bundle.get_decoder()(features, length, 12)[0][0]  # a blank first, <unk> and the like among them
    tokens = torch.tensor([said], dtype=torch.int32)
    assert best.tokens
    with torch.no_grad():
        encoded, encoded_lengths = model.transcribe(features[None], length)
        predicted, _, _ = model.predict(tokens, torch.tensor([tokens.shape[1]], dtype=torch.int32), None)
        joined, _, _ = model.join(encoded, encoded_lengths, predicted, torch.tensor([tokens.shape[1]]))
    lattice = joined[0].log_softmax(-1)  # (T, U+1, V)
    total, single = (forward(lattice, said, add) for add in (torch.logaddexp, torch.maximum))
    assert single - 0.5 < best.score <= total + 1e-3


def forward(lattice: Tensor, said: list[int], add: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Log-probability of all alignments, or of the best, of labels ``said[1:]`` in ``(T, U+1, V)`` log-probabilities."""
    alpha = torch.full(lattice.shape[:2], -torch.inf)
    alpha[0, 0] = 0.0
    for t in range(lattice.shape[0]):
        for u in range(lattice.shape[1]):
            if t:
                alpha[t, u] = add(alpha[t, u], alpha[t - 1, u] + lattice[t - 1, u, PIECES])
            if u:
                alpha[t, u] = add(alpha[t, u], alpha[t, u - 1] + lattice[t, u - 1, said[u]])
    return float(alpha[-1, -1] + lattice[-1, -1, PIECES])


def test_short_audio_identity_and_another_vocabulary(batch: SpeechBatch, bundle: RNNTBundle) -> None:
    teacher = RnntTeacher(bundle)
    tiny = SpeechBatch(("s",), torch.zeros(1, 10), torch.tensor([10]), 16000, ("",))
    assert len(teacher(tiny).nbest[0]) == 1  # type: ignore[index]
    assert teacher.identity == RnntTeacher(bundle).identity != RnntTeacher(bundle, beam=4).identity
    with pytest.raises(ValueError, match="nbest: expected at least 1"):
        RnntTeacher(bundle, nbest=0)
    tokenizer = train_tokenizer(["abcdefgh"], kind="char")
    fitted = FittedTeacher(teacher, tokenizer, 0.04)(batch)
    assert fitted.posteriors is None and fitted.nbest is not None
    for (own,), (other,) in zip(teacher(batch).nbest, fitted.nbest, strict=True):  # type: ignore[arg-type]
        assert other.text == own.text and tokenizer.decode(list(other.tokens)) == own.text
