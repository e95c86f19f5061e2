"""Whole recordings: windows of a full-context model, WAV and raw pipes, output formats."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest
import soundfile
import torch

from asrkd.data.text import train_tokenizer
from asrkd.decoding.ctc import DecodedTokens, greedy
from asrkd.models.package import build
from asrkd.streaming import formats
from asrkd.streaming.events import Final, Partial, Word, WordHeard, words_of
from asrkd.streaming.pipe import read_pipe
from asrkd.streaming.recognizer import RecognizerOptions
from asrkd.streaming.transcribe import MAX_WINDOW_S, MIN_WINDOW_S, text_of, transcribe
from asrkd.types import Frames


class Trickle(io.RawIOBase):
    """A pipe that gives a few bytes at a time and cannot seek."""

    def __init__(self, data: bytes, piece: int = 1000) -> None:
        self._data, self._at, self._piece = data, 0, piece

    def read(self, size: int = -1) -> bytes:
        size = min(self._piece, size if size >= 0 else self._piece)
        data = self._data[self._at : self._at + size]
        self._at += len(data)
        return data


def wav(samples: np.ndarray, rate: int, subtype: str, container: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, subtype=subtype, format=container)
    return buffer.getvalue()


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("container", ["WAV", "WAVEX"])
def test_wav_pipe_equals_the_file(subtype: str, container: str) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (5003, 2))
    data = wav(samples, 16000, subtype, container)
    expected = soundfile.read(io.BytesIO(data), dtype="float32")[0].mean(axis=1)
    found = np.concatenate(list(read_pipe(Trickle(data, 777), 16000, 16000, 0.05)))  # type: ignore[arg-type]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_raw_pipe_and_resampling() -> None:
    samples = (np.random.default_rng(1).uniform(-0.5, 0.5, 9001) * 32767).astype("<i2")
    found = np.concatenate(list(read_pipe(Trickle(samples.tobytes() + b"x"), 16000, 16000, 0.1)))  # type: ignore[arg-type]
    np.testing.assert_allclose(found, samples / 32768, atol=1e-7)
    at_8k = np.concatenate(list(read_pipe(Trickle(samples.tobytes()), 16000, 8000, 0.1)))  # type: ignore[arg-type]
    assert abs(len(at_8k) - 2 * len(samples)) <= 2


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0xFFFFFFF0])
def test_lengths_that_a_pipe_cannot_know_are_not_believed(size: int) -> None:
    samples = np.linspace(-0.5, 0.5, 4000)
    data = bytearray(wav(samples, 16000, "PCM_16"))
    data[40:44] = struct.pack("<I", size)
    found = np.concatenate(list(read_pipe(io.BytesIO(bytes(data)), 16000, 16000, 0.1)))
    assert len(found) == 4000


@pytest.mark.parametrize(
    ("data", "because"),
    [
        (b"", "holds no samples"),
        (wav(np.zeros(10), 16000, "PCM_16")[:44], "holds no samples"),
        (wav(np.zeros(10), 16000, "PCM_16")[:30], "damaged WAV header"),
        (b"RIFF\0\0\0\0WAVEfmt \xff\xff\xff\xff", "chunk b'fmt ' of 4294967295 bytes"),
        (wav(np.zeros(10), 16000, "ULAW"), "WAV format 7 with 8 bits"),
    ],
)
def test_damaged_pipes_are_named(data: bytes, because: str) -> None:
    with pytest.raises(ValueError, match=because):
        list(read_pipe(io.BytesIO(data), 16000, 16000, 0.1))


def test_full_context_model_hears_long_recordings_in_windows_cut_at_quiet_places() -> None:
    torch.manual_seed(0)
    config = {"d_model": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 16, "subsampling_channels": 4}
    model = build({"kind": "speechbrain_conformer", **config, "decoder_layers": 0}, train_tokenizer(["a bc"]))
    model.eval()
    rate, generator = 16000, np.random.default_rng(0)
    audio = (0.1 * generator.standard_normal(70 * rate)).astype(np.float32)
    for quiet_s in (25.0, 47.5):
        audio[int((quiet_s - 0.1) * rate) : int((quiet_s + 0.1) * rate)] *= 1e-3
    blocks = [audio[start : start + 33333] for start in range(0, len(audio), 33333)]
    finals = [e for e in transcribe(model, blocks, RecognizerOptions()) if isinstance(e, Final)]
    assert [final.reason for final in finals] == ["length", "length", "end"]
    assert finals[0].end_s == pytest.approx(25.0, abs=0.1)
    assert finals[1].end_s == pytest.approx(47.5, abs=0.1)
    assert finals[2].end_s == pytest.approx(70.0)
    assert all(f.end_s - f.start_s <= MAX_WINDOW_S for f in finals)
    assert all(f.end_s - f.start_s >= MIN_WINDOW_S for f in finals[:-1])
    short = audio[: 3 * rate]
    (final,) = transcribe(model, [short], RecognizerOptions())
    with torch.no_grad():
        logits = model(model.features(torch.from_numpy(short)[None], torch.tensor([len(short)]))).ctc_logits
    expected = greedy(Frames(logits.values.log_softmax(-1), logits.lengths, 0.04), model.vocabulary)[0]
    assert isinstance(final, Final)
    assert final.text == model.tokenizer.decode(expected.tokens)
    assert list(transcribe(model, [], RecognizerOptions())) == [Final("", (), 0.0, 0.0, "end")]


FINALS = (
    Final("HI & BYE", (Word("HI", 0.04, 0.2, 0.9), Word("&", 0.3, 0.4, 1.0), Word("BYE", 8.0, 8.5, 0.5)), 0.0, 9.0, "silence"),
    Final("", (), 9.0, 10.0, "silence"),
    Final("LAST", (Word("LAST", 3661.001, 3661.5, 0.25),), 10.0, 3662.0, "end", ("LOST",)),
)  # fmt: skip


def test_formats() -> None:
    assert text_of(FINALS) == "HI & BYE LAST"
    assert formats.write_text("a b.wav", FINALS) == "a b.wav\tHI & BYE LAST\n"
    record = json.loads(formats.write_json("a.wav", FINALS, 3662.0))
    assert record["text"] == "HI & BYE LAST"
    assert record["segments"][2]["alternatives"] == ["LOST"]
    assert record["segments"][0]["words"][2] == {"text": "BYE", "start_s": 8.0, "end_s": 8.5, "confidence": 0.5}
    assert formats.write_ctm("x/a b.wav", FINALS).splitlines()[0] == "a_b 1 0.040 0.160 HI 0.900"
    assert formats.write_srt(FINALS) == (
        "1\n00:00:00,040 --> 00:00:00,400\nHI &\n\n"
        "2\n00:00:08,000 --> 00:00:08,500\nBYE\n\n"
        "3\n01:01:01,001 --> 01:01:01,500\nLAST\n\n"
    )
    assert formats.write_vtt(FINALS).startswith("WEBVTT\n\n00:00:00.040 --> 00:00:00.400\nHI &amp;\n\n")
    assert formats.write_event("f", Partial("HI", 0.0, 0.64), False) == "f\tpartial\t0.64\tHI\n"
    assert formats.write_event("f", WordHeard(FINALS[0].words[0]), False) == ""
    event = json.loads(formats.write_event("f", WordHeard(FINALS[0].words[0]), True))
    assert event == {
        "path": "f",
        "event": "word",
        "word": {"text": "HI", "start_s": 0.04, "end_s": 0.2, "confidence": 0.9},
    }


def test_words_of_pieces_and_characters() -> None:
    characters = train_tokenizer(["AB C"])
    names = characters.vocabulary.tokens
    ids = tuple(names.index(token) for token in ("A", "B", "\u2581", "\u2581", "C", "</s>"))
    times = tuple(0.1 * n for n in range(6))
    decoded = DecodedTokens(ids, times, tuple(t + 0.05 for t in times), (0.5, 1.0, 0.1, 0.1, 0.8, 0.9), 0.0)
    words = words_of(decoded, characters, offset_s=10.0)
    assert [word.text for word in words] == ["AB", "C"]
    assert [word.start_s for word in words] == pytest.approx([10.0, 10.4])
    assert [word.end_s for word in words] == pytest.approx([10.15, 10.45])
    assert [word.confidence for word in words] == pytest.approx([0.75, 0.8])
