"""Audio as it comes: every format, rate and depth, and every way in which a file can be bad."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrkd.data.audio import audio_info, check_audio, read_audio, stream_audio


def _tone(rate_hz: int, seconds: float = 1.0, channels: int = 1) -> np.ndarray:
    time = np.arange(round(rate_hz * seconds)) / rate_hz
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    return np.stack([tone] * channels, axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("suffix", "subtype", "rate_hz", "channels", "tolerance"),
    [
        ("wav", "PCM_U8", 16000, 1, 0.02),
        ("wav", "PCM_16", 8000, 1, 0.01),
        ("wav", "PCM_24", 44100, 2, 0.01),
        ("wav", "PCM_32", 96000, 2, 0.01),
        ("wav", "FLOAT", 48000, 6, 0.01),
        ("wav", "DOUBLE", 16000, 1, 0.01),
        ("wav", "ULAW", 8000, 1, 0.03),
        ("flac", "PCM_16", 22050, 1, 0.01),
        ("flac", "PCM_24", 96000, 2, 0.01),
        ("ogg", "VORBIS", 44100, 2, 0.05),
        ("opus", "OPUS", 48000, 1, 0.05),
        ("mp3", "MPEG_LAYER_III", 44100, 2, 0.05),
    ],
)
def test_formats_rates_and_channels(
    tmp_path: Path, suffix: str, subtype: str, rate_hz: int, channels: int, tolerance: float
) -> None:
    path = tmp_path / f"a.{suffix}"
    container = {"opus": "OGG"}.get(suffix, suffix.upper())
    soundfile.write(path, _tone(rate_hz, 1.0, channels), rate_hz, subtype=subtype, format=container)
    samples, info = read_audio(path)
    assert (info.sample_rate_hz, info.channels) == (rate_hz, channels)
    assert samples.dtype == np.float32
    assert abs(samples.size - 16000) <= (1500 if suffix == "mp3" else 2)  # MP3 encoders pad both ends
    middle = samples[4000:12000]
    assert abs(float(np.sqrt(np.mean(middle**2))) - 0.5 / np.sqrt(2)) < tolerance
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(middle.size)))
    assert abs(np.argmax(spectrum) * 16000 / middle.size - 440) < 3


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.zeros((1600, 2), np.float32)
    stereo[:, 0] = 0.5
    soundfile.write(tmp_path / "s.wav", stereo, 16000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "s.wav")[0], 0.25)


@pytest.mark.parametrize("rate_hz", [16000, 44100])
@pytest.mark.parametrize("block_s", [0.013, 0.5, 60.0])
def test_stream_equals_whole(tmp_path: Path, rate_hz: int, block_s: float) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, size=int(rate_hz * 1.7)).astype(np.float32)
    soundfile.write(tmp_path / "n.flac", noise, rate_hz)
    whole, _ = read_audio(tmp_path / "n.flac")
    blocks = np.concatenate(list(stream_audio(tmp_path / "n.flac", block_s)))
    assert whole.size == round(noise.size * 16000 / rate_hz)
    np.testing.assert_allclose(blocks, whole, atol=1e-6)


def test_stream_needs_constant_memory(tmp_path: Path) -> None:
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 48000, 1) as file:
        for _ in range(120):
            file.write(np.zeros(48000, np.float32))
    tracemalloc.start()
    total = sum(block.size for block in stream_audio(tmp_path / "long.flac", 1.0))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 120 * 16000
    assert peak_bytes < 4e6  # the whole would be 23 MB


@pytest.mark.parametrize("samples", [1, 800])
def test_very_short_and_silent_audio_is_read(tmp_path: Path, samples: int) -> None:
    soundfile.write(tmp_path / "short.wav", np.zeros(samples, np.float32), 16000)
    audio, info = read_audio(tmp_path / "short.wav")
    assert audio.size == samples == info.num_samples
    assert not audio.any()


def _bad(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"{kind}.flac"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 32000)
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("HELLO " * 100)
    elif kind == "no_samples":
        path = path.with_suffix(".wav")
        soundfile.write(path, np.zeros(0), 16000)
    elif kind == "truncated_flac":
        soundfile.write(path, noise, 16000)
        path.write_bytes(path.read_bytes()[:20000])
    elif kind == "truncated_wav":
        path = path.with_suffix(".wav")
        soundfile.write(path, noise, 16000)
        path.write_bytes(path.read_bytes()[:20000])
    elif kind == "damaged_flac":
        soundfile.write(path, noise, 16000)
        data = bytearray(path.read_bytes())
        data[20000:40000] = bytes(20000)
        path.write_bytes(data)
    elif kind == "not_finite":
        path = path.with_suffix(".wav")
        soundfile.write(path, np.array([0.0, np.nan, 0.1]), 16000, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("missing", FileNotFoundError, "no such file"),
        ("folder", IsADirectoryError, "a folder"),
        ("empty", ValueError, "empty file"),
        ("text", ValueError, "cannot be read as audio"),
        ("no_samples", ValueError, "holds no samples"),
        ("truncated_flac", ValueError, "truncated|damaged"),
        ("truncated_wav", ValueError, "truncated"),
        ("damaged_flac", ValueError, "truncated|damaged"),
        ("not_finite", ValueError, "not finite"),
    ],
)
def test_bad_files_give_one_line_with_name_and_reason(
    tmp_path: Path, kind: str, error: type[Exception], message: str
) -> None:
    path = _bad(tmp_path, kind)
    for read in (read_audio, check_audio):
        with pytest.raises(error, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_wav_of_unknown_length_is_read(tmp_path: Path) -> None:
    path = tmp_path / "piped.wav"
    soundfile.write(path, _tone(16000)[:, 0], 16000)
    data = bytearray(path.read_bytes())
    data[40:44] = b"\xff\xff\xff\xff"  # as a program writes that pipes its output
    path.write_bytes(data)
    assert audio_info(path).num_samples == 16000
    assert read_audio(path)[0].size == 16000
