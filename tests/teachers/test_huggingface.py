"""Hugging Face models: small ones with random weights, saved and loaded in the library's own format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from asrkd.teachers.huggingface import HuggingFaceCtcTeacher, HuggingFaceSeq2SeqTeacher, huggingface_teacher
from asrkd.types import Frames, SpeechBatch

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")

CHARACTERS = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "E": 5, "T": 6, "A": 7}


def small_ctc(folder: Path, kind: str, norm: str) -> None:
    config_class = getattr(transformers, f"{kind}Config")
    config = config_class(
        vocab_size=len(CHARACTERS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer", pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCTC")(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(CHARACTERS))
    transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer").save_pretrained(folder)


@pytest.mark.parametrize(("kind", "norm"), [("Wav2Vec2", "group"), ("Wav2Vec2", "layer"), ("Hubert", "layer")])
def test_ctc_log_probs_equal_transformers_own(batch: SpeechBatch, tmp_path: Path, kind: str, norm: str) -> None:
    small_ctc(tmp_path, kind, norm)
    teacher = huggingface_teacher(str(tmp_path), nbest=2, beam=4)
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
            expected = model(**inputs).logits[0].log_softmax(-1)
        assert targets.posteriors.lengths[row] == len(expected)
        torch.testing.assert_close(targets.posteriors.values[row, : len(expected)], expected, atol=1e-3, rtol=1e-3)
        assert all("|" not in h.text and "<pad>" not in h.text for h in targets.nbest[row])


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


def test_what_cannot_be_is_refused(batch: SpeechBatch, whisper_folder: Path) -> None:
    with pytest.raises(ValueError, match="nbest: expected at least 1"):
        HuggingFaceSeq2SeqTeacher(str(whisper_folder), nbest=0)
    long = SpeechBatch(("long",), torch.zeros(1, 500_000), torch.tensor([500_000]), 16000, ("",))
    with pytest.raises(ValueError, match="utterance long: expected at most 30 s"):
        HuggingFaceSeq2SeqTeacher(str(whisper_folder))(long)
    with pytest.raises(ValueError, match="language: expected one of de, en; found 'xx'"):
        HuggingFaceSeq2SeqTeacher(str(whisper_folder), language="xx")(batch)
    with pytest.raises(OSError, match="nowhere"):
        huggingface_teacher(str(whisper_folder / "nowhere"))
