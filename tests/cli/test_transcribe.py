"""`asrkd transcribe` on good, odd and bad audio, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asrkd.data.text import train_tokenizer
from asrkd.models import package


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small streaming student with random weights."""
    torch.manual_seed(1)
    config = {
        "kind": "streaming_conformer",
        "d_model": 16,
        "num_layers": 1,
        "num_heads": 2,
        "ffn_dim": 16,
        "subsampling_channels": 4,
        "chunk_frames": 4,
    }
    model = package.build(config, train_tokenizer(["ONE TWO THREE"], kind="char"))
    with torch.no_grad():
        model.ctc_head.weight.mul_(40)  # type: ignore[union-attr,operator]
        model.ctc_head.bias.zero_()  # type: ignore[union-attr,operator]
    folder = tmp_path_factory.mktemp("student") / "package"
    package.save(model, folder, licence="Apache-2.0")
    return folder


def speech(seconds: float, rate: int = 16000) -> np.ndarray:
    generator = np.random.default_rng(0)
    return (0.1 * generator.standard_normal(round(seconds * rate))).astype(np.float32)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "asrkd", "transcribe", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_odd_audio_is_transcribed_and_bad_audio_named(student: Path, tmp_path: Path) -> None:
    good = {
        "a_16k.flac": (speech(1.0), 16000, "PCM_16"),
        "b_8bit.wav": (speech(0.5, 8000), 8000, "PCM_U8"),
        "c_32bit.wav": (speech(0.5), 16000, "PCM_32"),
        "d_96k.wav": (speech(0.3, 96000), 96000, "FLOAT"),
        "e_stereo.wav": (np.stack([speech(0.5, 44100)] * 2, 1), 44100, "PCM_16"),
        "f_silent.wav": (np.zeros(16000, np.float32), 16000, "PCM_16"),
        "g_50ms.wav": (speech(0.05), 16000, "PCM_16"),
    }
    for name, (samples, rate, kind) in good.items():
        soundfile.write(tmp_path / name, samples, rate, subtype=kind)
    (tmp_path / "x_empty.wav").write_bytes(b"")
    (tmp_path / "y_corrupt.flac").write_bytes(b"not audio at all" * 50)
    whole = (tmp_path / "a_16k.flac").read_bytes()
    (tmp_path / "z_truncated.flac").write_bytes(whole[: len(whole) // 2])
    answer = run(student, tmp_path, tmp_path / "missing.wav")
    assert answer.returncode == 1
    assert [Path(line.split("\t")[0]).name for line in answer.stdout.splitlines()] == sorted(good)
    errors = [line for line in answer.stderr.splitlines() if line.startswith("asrkd: ")]
    assert [
        any(name in line for line in errors) for name in ("x_empty", "y_corrupt", "z_truncated", "missing.wav")
    ] == [True] * 4
    assert len(errors) == 4 and "Traceback" not in answer.stderr


def test_json_has_word_times_and_out_is_written_whole(student: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "one.wav", speech(1.2), 16000)
    soundfile.write(tmp_path / "two.wav", speech(0.8), 16000)
    target = tmp_path / "out.jsonl"
    answer = run(student, tmp_path / "two.wav", tmp_path / "one.wav", "--format", "json", "--out", target)
    assert answer.returncode == 0 and answer.stdout == ""
    rows = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [Path(row["path"]).name for row in rows] == ["two.wav", "one.wav"]
    for row in rows:
        assert " ".join(word["word"] for word in row["words"]) == row["text"]
        assert all(0 <= word["start_s"] <= word["end_s"] <= 1.3 for word in row["words"])


def test_streaming_ends_with_the_same_text(student: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "one.wav", speech(2.0), 16000)
    plain, streamed = run(student, tmp_path / "one.wav"), run(student, tmp_path / "one.wav", "--streaming")
    assert streamed.returncode == 0
    assert streamed.stdout.splitlines()[-1] == plain.stdout.splitlines()[-1]
    assert len(streamed.stdout.splitlines()) > 1
    other = run(student, tmp_path / "one.wav", "--chunk-ms", "320")
    assert other.returncode == 0


def test_wrong_use_is_one_line_and_exit_code_2(student: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "one.wav", speech(0.2), 16000)
    for answer, expected in (
        (run(tmp_path, tmp_path / "one.wav"), "no model package"),
        (run(student, tmp_path / "*.mp3"), "*.mp3"),
        (run(student, tmp_path / "one.wav", "--chunk-ms", "50"), "multiple of the model's 40 ms"),
    ):
        assert answer.returncode in (1, 2)
        lines = [line for line in answer.stderr.splitlines() if line.startswith("asrkd: ")]
        assert len(lines) == 1 and expected in lines[0]
        assert "Traceback" not in answer.stderr
