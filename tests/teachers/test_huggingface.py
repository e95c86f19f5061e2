"""Hugging Face models: small ones with random weights, saved and loaded in the library's own format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from asrkd.teachers.huggingface import HuggingFaceCtcTeacher, HuggingFaceSeq2SeqTeacher, huggingface_teacher
from asrkd.types import Frames, SpeechBatch
from tests.teachers.small import CHARACTERS, small_ctc

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")


def small_parakeet(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers.models.parakeet.tokenization_parakeet import ParakeetTokenizer

    pieces = ("<unk>", "▁", "a", "b", "c", "▁a", "<pad>")
    pieces_by_id = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [("▁", "a")], unk_token="<unk>"))
    pieces_by_id.pre_tokenizer, pieces_by_id.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    ParakeetTokenizer(tokenizer_object=pieces_by_id, unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)
    encoder = transformers.ParakeetEncoderConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, subsampling_conv_channels=8
    )
    torch.manual_seed(0)
    config = transformers.ParakeetCTCConfig(vocab_size=len(pieces), pad_token_id=6, encoder_config=encoder)
    model = transformers.ParakeetForCTC(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ctc_head" in name or "subsampling" in name:
                weight.mul_(10)
    model.save_pretrained(folder)
    transformers.ParakeetFeatureExtractor().save_pretrained(folder)


@pytest.mark.skipif(not hasattr(transformers, "ParakeetForCTC"), reason="this transformers has no Parakeet-CTC")
def test_parakeet_equals_transformers_own(batch: SpeechBatch, tmp_path: Path) -> None:
    small_parakeet(tmp_path)
    teacher = huggingface_teacher(str(tmp_path), nbest=1, hidden=("layer.0", "layer.1"))
    assert isinstance(teacher, HuggingFaceCtcTeacher)
    assert teacher.vocabulary.tokens[5:] == ("▁a", "<pad>") and teacher.vocabulary.blank_id == 6
    assert teacher.frame_shift_s == 0.08
    targets = teacher(batch)
    model = transformers.AutoModelForCTC.from_pretrained(tmp_path).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(targets.posteriors, Frames) and targets.nbest is not None
    for row, samples in enumerate(batch.audio_lengths.tolist()):
        inputs = extractor(batch.audio[row, :samples].numpy(), sampling_rate=16000, return_tensors="pt")
        own = model.generate(**inputs, return_dict_in_generate=True, output_hidden_states=True)
        count = int(targets.posteriors.lengths[row])
        assert count == -(-(samples // 160) // 8)
        found = targets.posteriors.values[row, :count]
        torch.testing.assert_close(found, own.logits[0, :count].log_softmax(-1), atol=1e-3, rtol=1e-3)
        assert found.std() > 0.1
        assert targets.nbest[row][0].text == tokenizer.decode(own.sequences[0], skip_special_tokens=True).strip()
        for layer in (0, 1):
            states = targets.hidden[f"layer.{layer}"].values[row, :count]
            torch.testing.assert_close(states, own.hidden_states[layer + 1][0, :count], atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match=r"hidden: expected layer\.0 to layer\.1, found 'layer\.2'"):
        huggingface_teacher(str(tmp_path), hidden=("layer.2",))


@pytest.mark.parametrize(("kind", "norm"), [("Wav2Vec2", "group"), ("Wav2Vec2", "layer"), ("Hubert", "layer")])
def test_ctc_log_probs_equal_transformers_own(batch: SpeechBatch, tmp_path: Path, kind: str, norm: str) -> None:
    small_ctc(tmp_path, kind, norm)
    teacher = huggingface_teacher(str(tmp_path), nbest=2, beam=4, hidden=("layer.1",))
    assert isinstance(teacher, HuggingFaceCtcTeacher)
    assert teacher.vocabulary.tokens == tuple(CHARACTERS) and teacher.vocabulary.blank_id == 0
    assert teacher.frame_shift_s == 0.02
    targets = teacher(batch)
    model = transformers.AutoModelForCTC.from_pretrained(tmp_path).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    assert isinstance(targets.posteriors, Frames) and targets.nbest is not None
    for row, samples in enumerate(batch.audio_lengths.tolist()):
        inputs = extractor(batch.audio[row, :samples].numpy(), sampling_rate=16000, return_tensors="pt")
        with torch.inference_mode():
            own = model(**inputs, output_hidden_states=True)
        expected = own.logits[0].log_softmax(-1)
        states = targets.hidden["layer.1"].values[row, : len(expected)]
        torch.testing.assert_close(states, own.hidden_states[2][0], atol=1e-3, rtol=1e-3)
        assert targets.posteriors.lengths[row] == len(expected)
        torch.testing.assert_close(targets.posteriors.values[row, : len(expected)], expected, atol=1e-3, rtol=1e-3)
        assert all("|" not in h.text and "<pad>" not in h.text for h in targets.nbest[row])


def test_a_hub_id_is_found_in_the_cache_without_network(open_offline: Any, tmp_path: Path) -> None:
    small_ctc(tmp_path / "model", "Wav2Vec2", "layer")
    found = open_offline(tmp_path / "model", tmp_path / "cache", {"kind": "huggingface"})
    assert found == huggingface_teacher(str(tmp_path / "model"), nbest=1).identity


def test_whisper_lists_equal_transformers_own(batch: SpeechBatch, whisper_folder: Path) -> None:
    teacher = huggingface_teacher(str(whisper_folder), nbest=2, beam=3, language="de")
    assert isinstance(teacher, HuggingFaceSeq2SeqTeacher)
    targets = teacher(batch)
    assert targets.posteriors is None and targets.nbest is not None and len(targets.nbest) == 3
    model = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(whisper_folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(whisper_folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(whisper_folder)
    ids, eos = tokenizer.get_vocab(), tokenizer.eos_token_id
    for row, samples in enumerate(batch.audio_lengths.tolist()):
        inputs: Any = extractor(batch.audio[row, :samples].numpy(), sampling_rate=16000, return_tensors="pt")
        own = model.generate(inputs.input_features, num_beams=3, language="de", max_new_tokens=10)[0]
        found = targets.nbest[row]
        assert len({h.text for h in found}) == 2 and found[0].score >= found[1].score
        text = tokenizer.decode(own, skip_special_tokens=True).strip()
        assert text in {h.text for h in found}
        # The total of the library's own best, one token after the other.
        prompt = [ids[mark] for mark in ("<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>")]
        said = [token for token in own.tolist() if token not in prompt]
        said = said[: said.index(eos) + 1] if eos in said else said
        total = 0.0
        for place in range(len(said)):
            forced = torch.tensor([prompt + said[:place]])
            with torch.inference_mode():
                logits = model(inputs.input_features, decoder_input_ids=forced).logits[0, -1]
            total += float(logits.log_softmax(-1)[said[place]])
        assert next(h.score for h in found if h.text == text) == pytest.approx(total, abs=1e-2)
    assert len({round(targets.nbest[row][0].score, 2) for row in range(3)}) == 3  # it does hear the audio


@pytest.mark.parametrize("max_length", [14, 8])
def test_whisper_decoder_posteriors_equal_transformers_own(
    batch: SpeechBatch, whisper_folder: Path, max_length: int
) -> None:
    teacher = huggingface_teacher(str(whisper_folder), nbest=2, beam=3, language="de", decoder=True)
    assert isinstance(teacher, HuggingFaceSeq2SeqTeacher)
    teacher._model.generation_config.max_length = max_length  # the shorter one cuts hypotheses off
    plain = huggingface_teacher(str(whisper_folder), nbest=2, beam=3, language="de")
    assert teacher.identity != plain.identity
    targets = teacher(batch)
    model = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(whisper_folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(whisper_folder)
    ids = transformers.AutoTokenizer.from_pretrained(whisper_folder).get_vocab()
    assert targets.nbest is not None and targets.decoder is not None and targets.decoder_tokens is not None
    assert targets.vocabulary.tokens[ids["b"]] == "b" and targets.vocabulary.blank_id == model.config.vocab_size
    prompt = [ids[mark] for mark in ("<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>")]
    for row, samples in enumerate(batch.audio_lengths.tolist()):
        inputs: Any = extractor(batch.audio[row, :samples].numpy(), sampling_rate=16000, return_tensors="pt")
        best, labels = targets.nbest[row][0], int(targets.decoder_tokens[1][row])
        said = targets.decoder_tokens[0][row, :labels].tolist()
        assert said == list(best.tokens[:labels]) and labels >= len(best.tokens) - 1
        with torch.inference_mode():
            own = model(inputs.input_features, decoder_input_ids=torch.tensor([prompt + said])).logits
        expected = own[0, len(prompt) - 1 :].log_softmax(-1)
        assert int(targets.decoder.lengths[row]) == labels + 1 == len(expected)
        found = targets.decoder.values[row, : labels + 1]
        torch.testing.assert_close(found[:, :-1], expected, atol=1e-3, rtol=1e-3)
        assert bool((found[:, -1] == -torch.inf).all())
        assert best.confidences is not None and len(best.confidences) == len(best.tokens)
        sure = [float(expected[place, token].exp()) for place, token in enumerate(best.tokens)]
        assert best.confidences == pytest.approx(sure, abs=1e-3)


def test_what_cannot_be_is_refused(batch: SpeechBatch, whisper_folder: Path) -> None:
    with pytest.raises(ValueError, match="nbest: expected at least 1"):
        HuggingFaceSeq2SeqTeacher(str(whisper_folder), nbest=0)
    long = SpeechBatch(("long",), torch.zeros(1, 500_000), torch.tensor([500_000]), 16000, ("",))
    with pytest.raises(ValueError, match="utterance long: expected at most 30 s"):
        HuggingFaceSeq2SeqTeacher(str(whisper_folder))(long)
    with pytest.raises(ValueError, match="language: expected one of de, en; found 'xx'"):
        HuggingFaceSeq2SeqTeacher(str(whisper_folder), language="xx")(batch)
    with pytest.raises(ValueError, match="hidden: not of a model that gives text alone"):
        huggingface_teacher(str(whisper_folder), hidden=("layer.0",))
    with pytest.raises(OSError, match="nowhere"):
        huggingface_teacher(str(whisper_folder / "nowhere"))
