"""``asrkd transcribe``: what is printed, in which order, what a bad file does, exit codes."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import torch

from asrkd.cli import main
from asrkd.data.audio import read_audio
from asrkd.data.text import train_tokenizer
from asrkd.decoding.ctc import greedy
from asrkd.models.package import build, load, save
from asrkd.types import Frames

CONFIG = {"d_model": 32, "num_layers": 1, "num_heads": 2, "ffn_dim": 32, "subsampling_channels": 4, "chunk_frames": 8}


def chords(seconds: float, seed: int, rate: int = 16000) -> np.ndarray:
    generator = np.random.default_rng(seed)
    time_s = np.arange(int(seconds * rate)) / rate
    audio = np.zeros(len(time_s))
    step = rate // 10
    for start in range(0, len(time_s), step):
        for frequency_hz in generator.uniform(80, 3500, 4):
            audio[start : start + step] += 0.1 * np.sin(2 * np.pi * frequency_hz * time_s[start : start + step])
    return audio


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    tokenizer = train_tokenizer(["a bc de"])
    for kind in ("streaming_conformer", "speechbrain_conformer"):
        torch.manual_seed(0)
        model = build(
            {"kind": kind, **CONFIG} if kind[:2] == "st" else {"kind": kind, **CONFIG_OF_TEACHER}, tokenizer
        ).eval()
        audio = torch.from_numpy(chords(10.0, 99).astype(np.float32))[None]
        lengths = torch.tensor([audio.shape[1]])
        raw = model.fbank(audio, lengths).values[0]
        model.set_feature_statistics(raw.mean(0), raw.std(0))
        with torch.no_grad():
            encoded = model(model.features(audio, lengths)).encoded.values[0]
            model.ctc_head.weight.mul_(40.0 / encoded.std(0).mean())
            model.ctc_head.bias.copy_(-model.ctc_head.weight @ encoded.mean(0))
        save(model, folder / kind)
    return folder


CONFIG_OF_TEACHER = {**{k: v for k, v in CONFIG.items() if k != "chunk_frames"}, "decoder_layers": 0}


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    folder = tmp_path / "audio"
    folder.mkdir()
    soundfile.write(folder / "b.wav", chords(2.0, 1), 16000)
    soundfile.write(folder / "a.flac", np.stack((chords(3.0, 2, 44100),) * 2, axis=1), 44100)
    soundfile.write(folder / "c.ogg", chords(1.0, 3, 8000), 8000)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], list[str]]:
    before, sys.argv = sys.argv, ["asrkd", "transcribe", *map(str, arguments)]
    try:
        main()
        status = 0
    except SystemExit as left:
        status = int(left.code or 0)
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err.splitlines()


@torch.no_grad()
def expected_text(package: Path, path: Path) -> str:
    model = load(package)
    samples, _ = read_audio(path, 16000)
    logits = model(model.features(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))).ctc_logits
    log_probs = Frames(logits.values.log_softmax(-1), logits.lengths, 0.04)
    return model.tokenizer.decode(greedy(log_probs, model.vocabulary)[0].tokens)


@pytest.mark.parametrize("kind", ["streaming_conformer", "speechbrain_conformer"])
def test_files_folders_and_globs_in_order(
    kind: str, packages: Path, audio: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = packages / kind
    status, out, err = run(capsys, package, audio / "c.ogg", audio, str(audio / "*.wav"))
    order = [audio / "c.ogg", audio / "a.flac", audio / "b.wav", audio / "c.ogg", audio / "b.wav"]
    assert (status, err) == (0, [])
    assert out == [f"{path}\t{expected_text(package, path)}" for path in order]
    assert len(out[1].split("\t")[1]) > 3, "a silent model would test nothing"
    assert run(capsys, "--model", package, audio / "b.wav")[1] == [out[2]]


def test_a_bad_file_is_one_line_and_the_rest_goes_on(
    packages: Path, audio: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = packages / "streaming_conformer"
    (audio / "empty.wav").write_bytes(b"")
    (audio / "noise.flac").write_bytes(bytes(range(256)) * 8)
    cut = (audio / "b.wav").read_bytes()
    (audio / "cut.wav").write_bytes(cut[: len(cut) // 2])
    soundfile.write(audio / "tiny.wav", np.zeros(800), 16000)
    soundfile.write(audio / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(audio / "deep.wav", chords(1.0, 5), 16000, subtype="PCM_U8")
    soundfile.write(audio / "wide.wav", chords(1.0, 5, 96000), 96000, subtype="PCM_32")
    status, out, err = run(capsys, package, audio, audio / "missing.wav")
    assert status == 1
    good = ("a.flac", "b.wav", "c.ogg", "deep.wav", "silent.wav", "tiny.wav", "wide.wav")
    assert [line.split("\t")[0] for line in out] == [str(audio / name) for name in good]
    for line, (name, reason) in zip(
        err,
        (
            ("cut.wav", "truncated"),
            ("empty.wav", "empty file"),
            ("noise.flac", "audio"),
            ("missing.wav", "no such file"),
        ),
        strict=True,
    ):
        assert line.startswith(f"asrkd: {audio / name}: ")
        assert reason in line


def test_streaming_prints_partials_then_the_same_text(
    packages: Path, audio: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = packages / "streaming_conformer"
    status, out, _ = run(capsys, package, audio / "a.flac", "--streaming")
    rows = [line.split("\t") for line in out]
    assert status == 0
    assert {row[1] for row in rows} == {"partial", "final"}
    assert rows[-1][3] == expected_text(package, audio / "a.flac")
    assert sum(row[1] == "partial" for row in rows) > 2
    assert [float(row[2]) for row in rows] == sorted(float(row[2]) for row in rows)
    _, out, _ = run(capsys, package, audio / "a.flac", "--streaming", "--format", "json", "--chunk-ms", 160)
    events = [json.loads(line) for line in out]
    assert events[-1]["event"] == "final"
    assert [e["word"]["text"] for e in events if e["event"] == "word"] == events[-1]["text"].split()


def test_flac_at_8_khz_as_it_is(packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Short files in the form of the Free Spoken Digit Dataset say what the same audio says at the model's own rate."""
    package = packages / "streaming_conformer"
    low, high = tmp_path / "low", tmp_path / "high"
    low.mkdir()
    high.mkdir()
    for digit in range(4):
        name = f"{digit}_george_0"
        soundfile.write(low / f"{name}.flac", chords(0.3 + 0.4 * digit, digit, 8000), 8000, subtype="PCM_16")
        samples, _ = soundfile.read(low / f"{name}.flac", dtype="float32")
        soundfile.write(high / f"{name}.wav", soxr.resample(samples, 8000, 16000), 16000, subtype="FLOAT")
    status, out, err = run(capsys, package, low)
    assert (status, err) == (0, [])
    assert [line.split("\t")[0] for line in out] == [str(path) for path in sorted(low.iterdir())]
    texts = [line.split("\t")[1] for line in out]
    assert texts == [line.split("\t")[1] for line in run(capsys, package, high)[1]]
    assert len(set(texts)) > 2, "a model that always says the same would test nothing"
    for row, text in zip(sorted(low.iterdir()), texts, strict=True):
        final = run(capsys, package, row, "--streaming")[1][-1].split("\t")
        assert (final[1], final[3]) == ("final", text)


def test_real_digits_at_8_khz_as_they_are(packages: Path, real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted((real_data / "fsdd" / "george").glob("*_george_[0-4].flac"))
    assert soundfile.info(files[0]).samplerate == 8000
    status, out, err = run(capsys, packages / "streaming_conformer", *files)
    assert (status, err, len(out)) == (0, [], 50)


def test_formats_and_out(packages: Path, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = packages / "streaming_conformer"
    _, out, _ = run(capsys, package, audio, "--format", "json", "--beam", 4)
    records = [json.loads(line) for line in out]
    assert [record["duration_s"] for record in records] == pytest.approx([3.0, 2.0, 1.0], abs=0.01)
    _, out, _ = run(capsys, package, audio / "b.wav", "--format", "ctm")
    assert out
    assert all(line.startswith("b 1 ") for line in out)
    status, out, _ = run(capsys, package, audio, "--format", "srt", "--out", tmp_path / "subtitles")
    assert (status, out) == (0, [])
    assert sorted(p.name for p in (tmp_path / "subtitles").iterdir()) == ["a.srt", "b.srt", "c.srt"]
    assert " --> " in (tmp_path / "subtitles" / "a.srt").read_text()
    target = tmp_path / "deep" / "text.tsv"
    run(capsys, package, audio, "--out", target)
    assert len(target.read_text().splitlines()) == 3
    before = target.read_text()
    assert run(capsys, package, audio / "missing.wav", "--out", target)[0] == 1
    assert target.read_text() == before, "a failure must not replace a result"


def test_pipe(packages: Path, audio: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    package = packages / "streaming_conformer"
    data = (audio / "b.wav").read_bytes()
    for piped in (data, data[44:]):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(piped)))
        status, out, _ = run(capsys, package, "-")
        assert (status, out) == (0, [f"-\t{expected_text(package, audio / 'b.wav')}"])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    assert run(capsys, package, "-") == (1, [], ["asrkd: -: holds no samples"])


def test_wrong_use_is_one_line(packages: Path, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, teacher = packages / "streaming_conformer", packages / "speechbrain_conformer"
    (tmp_path / "nothing").mkdir()
    for arguments, because in (
        ((tmp_path / "nothing", audio), "no model package: config.json is missing"),
        ((student,), "expected audio files after the model package"),
        ((student, tmp_path / "nothing"), "folder without audio files"),
        ((student, str(tmp_path / "*.wav")), "no file matches"),
        ((student, audio, "--chunk-ms", 100), "expected a multiple of this model's 40 ms a frame, found 100"),
        ((teacher, audio, "--streaming"), "which hears whole utterances"),
        ((student, audio, "--format", "srt"), "expected --out FOLDER for 3 files"),
        ((student, audio, "--device", "abacus"), "--device: expected"),
    ):
        status, out, err = run(capsys, *arguments)
        assert (status, out, len(err)) == (2, [], 1)
        assert because in err[0]
