"""SpeechBrain folders: small models with random weights in SpeechBrain's own format, loaded by its own code."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from speechbrain.dataio.encoder import CTCTextEncoder
from speechbrain.inference.ASR import EncoderASR, EncoderDecoderASR, WhisperASR

from asrkd.teachers.speechbrain_folder import SpeechBrainCtcTeacher, SpeechBrainDecoderTeacher, speechbrain_teacher
from asrkd.types import Frames, SpeechBatch

CTC_YAML = """
sample_rate: 16000
blank_index: 0
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: 20
normalizer: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
net: !new:speechbrain.lobes.models.VanillaNN.VanillaNN
    input_shape: [null, null, 20]
    dnn_blocks: 1
    dnn_neurons: 16
output: !new:speechbrain.nnet.linear.Linear
    input_size: 16
    n_neurons: 6
encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
    features: !ref <compute_features>
    normalizer: !ref <normalizer>
    net: !ref <net>
    output: !ref <output>
    log_softmax: !new:speechbrain.nnet.activations.Softmax
        apply_log: True
tokenizer: !new:speechbrain.dataio.encoder.CTCTextEncoder
modules:
    encoder: !ref <encoder>
decoding_function: !name:speechbrain.decoders.ctc_greedy_decode
    blank_id: !ref <blank_index>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        encoder: !ref <encoder>
        tokenizer: !ref <tokenizer>
"""

DECODER_YAML = """
sample_rate: 16000
blank_index: 0
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: 20
normalizer: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
front: !new:speechbrain.lobes.models.convolution.ConvolutionFrontEnd
    input_shape: [8, 10, 20]
    num_blocks: 2
    num_layers_per_block: 1
    out_channels: [4, 4]
    kernel_sizes: [3, 3]
    strides: [2, 2]
    residuals: [False, False]
transformer: !new:speechbrain.lobes.models.transformer.TransformerASR.TransformerASR
    input_size: 20
    tgt_vocab: 20
    d_model: 16
    nhead: 2
    num_encoder_layers: 1
    num_decoder_layers: 1
    d_ffn: 32
    normalize_before: True
ctc_lin: !new:speechbrain.nnet.linear.Linear
    input_size: 16
    n_neurons: 20
seq_lin: !new:speechbrain.nnet.linear.Linear
    input_size: 16
    n_neurons: 20
model: !new:torch.nn.ModuleList
    - [!ref <front>, !ref <transformer>, !ref <seq_lin>, !ref <ctc_lin>]
encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
    compute_features: !ref <compute_features>
    normalizer: !ref <normalizer>
    front: !ref <front>
    transformer: !new:speechbrain.lobes.models.transformer.TransformerASR.EncoderWrapper
        transformer: !ref <transformer>
ctc_scorer: !new:speechbrain.decoders.scorer.CTCScorer
    eos_index: 2
    blank_index: 0
    ctc_fc: !ref <ctc_lin>
scorer: !new:speechbrain.decoders.scorer.ScorerBuilder
    full_scorers: [!ref <ctc_scorer>]
    weights:
        ctc: 0.4
decoder: !new:speechbrain.decoders.S2STransformerBeamSearcher
    modules: [!ref <transformer>, !ref <seq_lin>]
    bos_index: 1
    eos_index: 2
    min_decode_ratio: 0.0
    max_decode_ratio: 0.5
    beam_size: 4
    using_eos_threshold: False
    length_normalization: True
    scorer: !ref <scorer>
tokenizer: !new:sentencepiece.SentencePieceProcessor
modules:
    encoder: !ref <encoder>
    decoder: !ref <decoder>
    ctc_lin: !ref <ctc_lin>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        model: !ref <model>
        tokenizer: !ref <tokenizer>
"""


WHISPER_YAML = """
sample_rate: 16000
language: en
normalized_transcripts: False
whisper: !new:speechbrain.integrations.huggingface.whisper.Whisper
    source: SOURCE
    save_path: SAVE
    freeze: True
    language: en
    task: transcribe
decoder: !new:speechbrain.decoders.seq2seq.SEARCHER
    BEAM
    suppress_tokens: [3]
    min_decode_ratio: 0.0
    max_decode_ratio: 0.1
modules:
    whisper: !ref <whisper>
    decoder: !ref <decoder>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        whisper: !ref <whisper>
"""


def load_yaml(text: str) -> dict[str, Any]:
    from hyperpyyaml import load_hyperpyyaml

    return load_hyperpyyaml(io.StringIO(text))


@pytest.fixture(scope="module")
def ctc_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ctc")
    (folder / "hyperparams.yaml").write_text(CTC_YAML)
    torch.manual_seed(0)
    made = load_yaml(CTC_YAML)
    with torch.no_grad():
        made["output"].w.weight.mul_(20)
    torch.save(made["encoder"].state_dict(), folder / "encoder.ckpt")
    labels = CTCTextEncoder()
    labels.insert_blank(index=0)
    labels.update_from_iterable([[" ", "A", "B", "C", "D"]], sequence_input=True)
    labels.save(str(folder / "tokenizer.ckpt"))
    return folder


@pytest.fixture(scope="module")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    (folder / "hyperparams.yaml").write_text(DECODER_YAML)
    torch.manual_seed(0)
    made = load_yaml(DECODER_YAML)
    with torch.no_grad():
        made["ctc_lin"].w.weight.mul_(20)
        made["seq_lin"].w.weight.mul_(10)
    torch.save(made["model"].state_dict(), folder / "model.ckpt")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["abc abd aed dea edc fgh bad", "head cab had fed"] * 20), model_writer=model, vocab_size=20,
        unk_id=0, bos_id=1, eos_id=2, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.ckpt").write_bytes(model.getvalue())
    return folder


def one_by_one(batch: SpeechBatch) -> list[torch.Tensor]:
    return [batch.audio[row : row + 1, :samples] for row, samples in enumerate(batch.audio_lengths.tolist())]


def test_encoder_asr_equals_speechbrains_own_call(batch: SpeechBatch, ctc_folder: Path, tmp_path: Path) -> None:
    teacher = speechbrain_teacher(str(ctc_folder), trust_code=True, savedir=tmp_path / "a", nbest=1)
    assert isinstance(teacher, SpeechBrainCtcTeacher)
    assert teacher.vocabulary.tokens == ("<blank>", " ", "A", "B", "C", "D") and teacher.vocabulary.blank_id == 0
    assert teacher.frame_shift_s == 0.01
    own = EncoderASR.from_hparams(str(ctc_folder), savedir=str(tmp_path / "b"))
    targets = teacher(batch)
    assert isinstance(targets.posteriors, Frames) and targets.nbest is not None
    for row, audio in enumerate(one_by_one(batch)):
        with torch.inference_mode():
            expected = own.encode_batch(audio, torch.ones(1))[0]
        assert targets.posteriors.lengths[row] == len(expected)
        torch.testing.assert_close(targets.posteriors.values[row, : len(expected)], expected, atol=1e-4, rtol=1e-4)
        words, _ = own.transcribe_batch(audio, torch.ones(1))
        assert targets.nbest[row][0].text == " ".join(words[0].split())
    assert any(h.text for (h,) in targets.nbest)


def test_a_hub_id_is_found_in_the_cache_without_network(open_offline: Any, ctc_folder: Path, tmp_path: Path) -> None:
    spec = {"kind": "speechbrain", "trust_code": True, "savedir": str(tmp_path / "save")}
    found = open_offline(ctc_folder, tmp_path / "cache", spec)
    assert found == speechbrain_teacher(str(ctc_folder), trust_code=True, savedir=tmp_path / "a", nbest=1).identity


def test_encoder_decoder_asr_equals_speechbrains_own_call(
    batch: SpeechBatch, decoder_folder: Path, tmp_path: Path
) -> None:
    teacher = speechbrain_teacher(str(decoder_folder), trust_code=True, savedir=tmp_path / "a", nbest=3)
    assert isinstance(teacher, SpeechBrainDecoderTeacher)
    assert len(teacher.vocabulary) == 20 and teacher.frame_shift_s == 0.04
    own = EncoderDecoderASR.from_hparams(str(decoder_folder), savedir=str(tmp_path / "b"))
    targets = teacher(batch)
    assert isinstance(targets.posteriors, Frames) and targets.nbest is not None
    for row, audio in enumerate(one_by_one(batch)):
        with torch.inference_mode():
            encoded = own.encode_batch(audio, torch.ones(1))
            expected = own.hparams.ctc_lin(encoded)[0].log_softmax(-1)
        torch.testing.assert_close(targets.posteriors.values[row, : len(expected)], expected, atol=1e-4, rtol=1e-4)
        words, tokens = own.transcribe_batch(audio, torch.ones(1))
        best = targets.nbest[row][0]
        assert best.text == words[0] and list(best.tokens) == [int(t) for t in tokens[0]]
        assert len(targets.nbest[row]) == 3 and len({h.tokens for h in targets.nbest[row]}) == 3
        assert all(h.score < 0 for h in targets.nbest[row])


@pytest.mark.parametrize(("searcher", "nbest"), [("S2SWhisperGreedySearcher", 1), ("S2SWhisperBeamSearcher", 2)])
def test_whisper_asr_equals_speechbrains_own_call(
    batch: SpeechBatch, whisper_folder: Path, tmp_path: Path, searcher: str, nbest: int
) -> None:
    beam = "module: [!ref <whisper>]\n    beam_size: 3" if nbest > 1 else "model: !ref <whisper>"
    text = WHISPER_YAML.replace("SOURCE", str(whisper_folder)).replace("SAVE", str(tmp_path / "save"))
    text = text.replace("SEARCHER", searcher).replace("BEAM", beam)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "hyperparams.yaml").write_text(text)
    torch.save(load_yaml(text)["whisper"].state_dict(), folder / "whisper.ckpt")
    teacher = speechbrain_teacher(str(folder), trust_code=True, savedir=tmp_path / "a", nbest=nbest)
    assert isinstance(teacher, SpeechBrainDecoderTeacher)
    own = WhisperASR.from_hparams(str(folder), savedir=str(tmp_path / "b"))
    targets = teacher(batch)
    assert targets.posteriors is None and targets.nbest is not None
    for row, audio in enumerate(one_by_one(batch)):
        words, _ = own.transcribe_batch(audio, torch.ones(1))
        assert targets.nbest[row][0].text == words[0] != ""
        assert len(targets.nbest[row]) == nbest


def test_folders_that_cannot_be_used_are_refused(ctc_folder: Path, decoder_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can run any code; say trust_code: true"):
        speechbrain_teacher(str(ctc_folder), trust_code=False)
    with pytest.raises(ValueError, match=r"expected hyperparams\.yaml"):
        speechbrain_teacher(str(tmp_path), trust_code=True)
    with pytest.raises(ValueError, match="beam: expected at least nbest = 9, found 4"):
        speechbrain_teacher(str(decoder_folder), trust_code=True, savedir=tmp_path, nbest=9)
