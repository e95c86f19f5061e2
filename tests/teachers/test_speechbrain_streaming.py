"""SpeechBrain's ``StreamingASR``: a small Conformer transducer with random weights in the format of its streaming models."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import sentencepiece
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.inference.ASR import StreamingASR
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

from asrkd.teachers.config import check_teacher, open_teacher
from asrkd.teachers.speechbrain_folder import speechbrain_teacher
from asrkd.teachers.speechbrain_streaming import SpeechBrainStreamingTeacher
from asrkd.types import Frames, SpeechBatch

YAML = """
sample_rate: 16000
blank_index: 0
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: 20
    n_fft: 512
    win_length: 32
normalize: !new:speechbrain.processing.features.InputNormalization
    norm_type: global
    update_until_epoch: 0
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
    num_encoder_layers: 2
    num_decoder_layers: 0
    d_ffn: 32
    encoder_module: conformer
    attention_type: RelPosMHAXL
    normalize_before: True
    causal: False
enc: !new:speechbrain.lobes.models.transformer.TransformerASR.EncoderWrapper
    transformer: !ref <transformer>
proj_enc: !new:speechbrain.nnet.linear.Linear
    input_size: 16
    n_neurons: 16
proj_ctc: !new:speechbrain.nnet.linear.Linear
    input_size: 16
    n_neurons: 20
proj_dec: !new:speechbrain.nnet.linear.Linear
    input_size: 8
    n_neurons: 16
    bias: False
emb: !new:speechbrain.nnet.embedding.Embedding
    num_embeddings: 20
    consider_as_one_hot: True
    blank_id: 0
dec: !new:speechbrain.nnet.RNN.LSTM
    input_shape: [null, null, 19]
    hidden_size: 8
    num_layers: 1
    re_init: True
joint: !new:speechbrain.nnet.transducer.transducer_joint.Transducer_joint
    joint: sum
    nonlinearity: !name:torch.nn.LeakyReLU
transducer_lin: !new:speechbrain.nnet.linear.Linear
    input_size: 16
    n_neurons: 20
    bias: False
searcher: !new:speechbrain.decoders.transducer.TransducerBeamSearcher
    decode_network_lst: [!ref <emb>, !ref <dec>, !ref <proj_dec>]
    tjoint: !ref <joint>
    classifier_network: [!ref <transducer_lin>]
    blank_id: 0
    beam_size: 1
    nbest: 1
filter_properties: !apply:speechbrain.utils.filter_analysis.stack_filter_properties
    - [!ref <compute_features>, !ref <front>]
fea_streaming_extractor: !new:speechbrain.lobes.features.StreamingFeatureWrapper
    module: !new:speechbrain.nnet.containers.LengthsCapableSequential
        - !ref <compute_features>
        - !ref <normalize>
        - !ref <front>
    properties: !ref <filter_properties>
make_tokenizer_streaming_context: !name:speechbrain.tokenizers.SentencePiece.SentencePieceDecoderStreamingContext
tokenizer_decode_streaming: !name:speechbrain.tokenizers.SentencePiece.spm_decode_preserve_leading_space
make_decoder_streaming_context: !name:speechbrain.decoders.transducer.TransducerGreedySearcherStreamingContext
decoding_function: !name:speechbrain.decoders.transducer.TransducerBeamSearcher.transducer_greedy_decode_streaming
    - !ref <searcher>
tokenizer: !new:sentencepiece.SentencePieceProcessor
model: !new:torch.nn.ModuleList
    - [!ref <front>, !ref <transformer>, !ref <proj_enc>, !ref <proj_dec>, !ref <emb>, !ref <dec>, !ref <transducer_lin>]
modules:
    enc: !ref <enc>
    proj_enc: !ref <proj_enc>
    front: !ref <front>
    normalize: !ref <normalize>
    proj_dec: !ref <proj_dec>
    emb: !ref <emb>
    dec: !ref <dec>
    transducer_lin: !ref <transducer_lin>
CTC
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        model: !ref <model>
        normalizer: !ref <normalize>
        proj_ctc: !ref <proj_ctc>
        tokenizer: !ref <tokenizer>
"""


@pytest.fixture(scope="module", params=[True, False], ids=["with CTC", "without CTC"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("streaming")
    text = YAML.replace("CTC\n", "    proj_ctc: !ref <proj_ctc>\n" if request.param else "")
    if not request.param:
        text = text.replace("        proj_ctc: !ref <proj_ctc>\n", "").replace("proj_ctc: !new", "other: !new")
    (place / "hyperparams.yaml").write_text(text)
    torch.manual_seed(0)
    made = load_hyperpyyaml(io.StringIO(text))
    with torch.no_grad():
        made["transducer_lin"].w.weight.mul_(6)
        made["transducer_lin"].w.weight[0] += 0.6  # blank now and then
        if request.param:
            made["proj_ctc"].w.weight.mul_(6)
            torch.save(made["proj_ctc"].state_dict(), place / "proj_ctc.ckpt")
    torch.save(made["model"].state_dict(), place / "model.ckpt")
    made["normalize"].train()(made["compute_features"](0.1 * torch.randn(1, 16000)), torch.ones(1))
    made["normalize"]._save(str(place / "normalizer.ckpt"))
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["abc abd aed dea edc fgh bad", "head cab had fed"] * 20), model_writer=pieces,
        vocab_size=20, unk_id=0, bos_id=1, eos_id=2, minloglevel=2,
    )  # fmt: skip
    (place / "tokenizer.ckpt").write_bytes(pieces.getvalue())
    return place


def test_streaming_asr_equals_speechbrains_own_call(batch: SpeechBatch, folder: Path, tmp_path: Path) -> None:
    spec = {"kind": "speechbrain", "source": str(folder), "trust_code": True, "savedir": tmp_path / "a"}
    spec |= {"chunk_frames": 8, "left_context_chunks": 2}
    teacher = open_teacher(check_teacher(spec), nbest=1)
    assert isinstance(teacher, SpeechBrainStreamingTeacher)
    assert (len(teacher.vocabulary), teacher.frame_shift_s) == (20, 0.04)
    own = StreamingASR.from_hparams(str(folder), savedir=str(tmp_path / "b"))
    config = DynChunkTrainConfig(8, 2)
    targets = teacher(batch)
    with_ctc = hasattr(own.mods, "proj_ctc")
    assert targets.nbest is not None and (targets.posteriors is not None) == with_ctc
    for row, samples in enumerate(batch.audio_lengths.tolist()):
        # What transcribe_file does, without a file and without making text of each chunk's pieces.
        context, size, said, rows = own.make_streaming_context(config), own.get_chunk_size_frames(config), [], []
        tail = own.hparams.fea_streaming_extractor.get_recommended_final_chunk_count(size)
        for chunk in [*batch.audio[row : row + 1, :samples].split(size, 1), *[torch.zeros(1, size)] * tail]:
            encoded = own.encode_chunk(context, chunk)
            said += own.hparams.decoding_function(encoded, context.decoder_context)[0]
            if with_ctc:
                rows.append(own.mods.proj_ctc(encoded)[0].log_softmax(-1))
        (best,) = targets.nbest[row]
        assert list(best.tokens) == said and best.text == " ".join(own.hparams.tokenizer.decode(said).split()) != ""
        if with_ctc:
            assert isinstance(targets.posteriors, Frames)
            count = int(targets.posteriors.lengths[row])
            assert abs(count - samples / 640) <= 1.1
            expected = torch.cat(rows)[:count]
            torch.testing.assert_close(targets.posteriors.values[row, :count], expected, atol=1e-4, rtol=1e-4)
            assert expected.std() > 0.1


def test_what_a_greedy_search_cannot_give_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nbest: expected .*1 of a streaming teacher .* found 3"):
        speechbrain_teacher(str(folder), trust_code=True, savedir=tmp_path / "a", nbest=3)
