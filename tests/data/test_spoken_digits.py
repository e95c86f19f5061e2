"""Sequences of digits: from recordings in both forms of FSDD, one speaker left out; synthetic ones; 8 kHz all the way."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from click.testing import Result
from typer.testing import CliRunner

from asrkd.cli.prepare import prepare
from asrkd.data import synthetic_digits
from asrkd.data.corpora import load_cuts
from asrkd.data.spoken_digits import PARTS, Recording, compose, plan, read_recordings
from asrkd.data.synthetic_digits import DIGITS
from asrkd.data.voices import Voice, speak
from tests.data.making import digest, killed_midway

SPEAKERS = {"ann": "en-us+f2", "bob": "en+m3", "cy": "en-gb-scotland+m7"}
INDICES = 3


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings called as in the original data set."""
    root = tmp_path_factory.mktemp("original")
    (root / "recordings").mkdir()
    for speaker, voice in SPEAKERS.items():
        for index in range(INDICES):
            spoken, rate_hz = speak(Voice(voice, 150 + 10 * index, 50, 50), DIGITS)
            for digit, (_, samples) in enumerate(spoken):
                path = root / "recordings" / f"{digit}_{speaker}_{index}.wav"
                soundfile.write(path, soxr.resample(samples, rate_hz, 8000), 8000, subtype="PCM_16")
    return root


@pytest.fixture(scope="module")
def tabled(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a table, as FLAC."""
    root = tmp_path_factory.mktemp("tabled")
    lines = []
    for path in sorted((original / "recordings").iterdir()):
        digit, speaker, _ = path.stem.split("_")
        (root / speaker).mkdir(exist_ok=True)
        soundfile.write(root / speaker / f"{path.stem}.flac", soundfile.read(path, dtype="int16")[0], 8000)
        lines.append(f"{path.stem}\t{speaker}\t{DIGITS[int(digit)].lower()}")
    (root / "transcripts.tsv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def made(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "audio"
    assert compose(out, original, "bob", seed=3, workers=2) == []
    return out


def run(*words: object) -> Result:
    return CliRunner().invoke(prepare, [str(word) for word in words])


def test_parts_share_no_recording_and_the_left_out_speaker_is_in_one_alone(original: Path) -> None:
    recordings, _ = read_recordings(original)
    chapters = plan(recordings, "bob", 0)
    uses = {part: Counter(r.id for c in chapters if c.part == part for s in c.sequences for r in s) for part in PARTS}
    assert not uses["train"].keys() & uses["dev"].keys()
    assert set(uses["test"]) == {r.id for r in recordings if r.speaker == "bob"}
    assert set(uses["train"]) | set(uses["dev"]) == {r.id for r in recordings if r.speaker != "bob"}
    assert set(uses["dev"].values()) == set(uses["test"].values()) == {1}, "what is measured is said once"
    for part in ("train", "dev"):
        assert {(r.speaker, r.digit) for r in recordings if r.id in uses[part]} == {
            (speaker, digit) for speaker in ("ann", "cy") for digit in range(10)
        }
    assert {len(s) for c in chapters for s in c.sequences} == set(range(1, 8))
    assert plan(recordings[::-1], "bob", 0) == chapters
    assert plan(recordings, "bob", 1) != chapters


def test_a_digit_said_once_is_trained_on() -> None:
    once = [Recording(f"{d}_{s}_0", s, d, np.zeros(800, np.float32)) for s in ("a", "b") for d in range(10)]
    assert {chapter.part for chapter in plan(once, "b", 0)} == {"train", "test"}


def test_both_forms_are_the_same_corpus_at_8_khz(original: Path, tabled: Path, made: Path, tmp_path: Path) -> None:
    assert compose(tmp_path / "audio", tabled, "bob", seed=3, workers=1) == []
    assert digest(tmp_path / "audio") == digest(made)
    compose(tmp_path / "bare", original / "recordings", "bob", seed=3)
    assert digest(tmp_path / "bare") == digest(made)
    for path in made.rglob("*.flac"):
        assert soundfile.info(path).samplerate == 8000


def test_sequences_hold_the_recordings_as_they_are(original: Path, made: Path) -> None:
    """The test part has one sequence after another; its digits, found where they best fit, are those of its text."""
    recordings = [r for r in read_recordings(original)[0] if r.speaker == "bob"]
    lines = (made / "test" / "bob" / "3" / "bob-3.trans.txt").read_text().splitlines()
    assert sum(len(line.split()) - 1 for line in lines) == len(recordings)
    identity, *words = max(lines, key=len).split()
    audio, _ = soundfile.read(made / "test" / "bob" / "3" / f"{identity}.flac", dtype="float32")
    places = {}
    for recording in recordings:
        middle = recording.samples[400:-400]  # without the fades
        windows = np.lib.stride_tricks.sliding_window_view(audio, len(middle))
        errors = ((windows - middle) ** 2).mean(axis=1)
        if errors.min() < 1e-7:
            places[int(errors.argmin())] = DIGITS[recording.digit]
    assert [places[place] for place in sorted(places)] == words
    assert len(words) > 3


def test_continues_after_kill(original: Path, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    call = f"compose({str(out)!r}, {str(original)!r}, 'bob', seed=3, workers=1)"
    done = killed_midway(f"from asrkd.data.spoken_digits import compose; {call}", out)
    assert done
    shutil.rmtree(out / "dev", ignore_errors=True)  # five chapters are made too fast to be sure to be killed in between
    compose(out, original, "bob", seed=3)
    assert digest(out) == digest(made)
    assert all(path.stat().st_mtime_ns == when for path, when in done.items() if "dev" not in path.parts)


def test_bad_recordings_are_named_and_the_others_used(tabled: Path, tmp_path: Path) -> None:
    root = tmp_path / "in"
    shutil.copytree(tabled, root)
    table = root / "transcripts.tsv"
    (root / "ann" / "0_ann_0.flac").write_bytes(b"")
    (root / "cy" / "9_cy_2.flac").unlink()
    bad = ("one field", "5_ann_9\tann\televen", "../x\tann\tone", table.read_text().splitlines()[1])
    table.write_text(table.read_text() + "\n".join(bad) + "\n")
    result = run("spoken_digits", "--root", root, "--out", tmp_path / "out", "--left-out", "bob")
    assert result.exit_code == 1
    for words in ("0_ann_0.flac: empty file", "9_cy_2.flac: no such file", "line 91: expected id, speaker and the word",
                  "found '5_ann_9", "found '../x", "the same id a second time"):  # fmt: skip
        assert result.stderr.count(words) == 1, words
    assert len(load_cuts(tmp_path / "out", "test")) > 3


def test_wrong_use_is_one_line(original: Path, made: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found 'dora', of ann, bob, cy"):
        compose(tmp_path / "out", original, "dora")
    with pytest.raises(ValueError, match="no such folder"):
        compose(tmp_path / "out", tmp_path / "none", "bob")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "song.wav").write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"found no recording that can be used; the first: .*song.wav: expected a name"
    ):
        compose(tmp_path / "out", tmp_path / "empty", "bob")
    with pytest.raises(ValueError, match="choose another folder"):
        compose(made, original, "ann", seed=3)


def test_commands_prepare_both_and_do_nothing_twice(original: Path, tmp_path: Path) -> None:
    real = ("spoken_digits", "--root", original, "--out", tmp_path / "real", "--left-out", "cy", "--seed", 2)
    synthetic = ("synthetic_digits", "--out", tmp_path / "made", "--train-minutes", 0.3, "--dev-minutes", 0.2)
    for words, count in ((real, 3), (synthetic, 2)):
        result = run(*words)
        assert result.exit_code == 0, result.output
        assert run(*words).stdout.count("already there") == count
    ids = [cut.id for part in PARTS for cut in load_cuts(tmp_path / "real", part)]
    assert len(set(ids)) == len(ids)
    assert {cut.sampling_rate for cut in load_cuts(tmp_path / "made", "train")} == {16000}


def test_synthetic_digits_again_the_same_and_after_a_kill(tmp_path: Path) -> None:
    sizes = {"train_minutes": 1.0, "dev_minutes": 0.3}
    whole = synthetic_digits.synthesise(tmp_path / "whole", seed=3, workers=2, **sizes)
    out = tmp_path / "killed"
    call = f"synthesise({str(out)!r}, seed=3, workers=1, **{sizes})"
    done = killed_midway(f"from asrkd.data.synthetic_digits import synthesise; {call}", out)
    assert len(done) > 0
    synthetic_digits.synthesise(out, seed=3, **sizes)
    assert digest(out) == digest(whole)
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    words = {word for path in whole.rglob("*.trans.txt") for word in path.read_text().split() if "-" not in word}
    assert words == set(DIGITS)
    assert {soundfile.info(path).samplerate for path in whole.rglob("*.flac")} == {8000}
    variants = {c.part: set[str]() for c in synthetic_digits.plan(3, {"train": 60.0, "dev": 3.0})}
    for chapter in synthetic_digits.plan(3, {"train": 60.0, "dev": 3.0}):
        variants[chapter.part].add(chapter.voice.name.split("+")[1])
    assert not variants["train"] & variants["dev"]
    with pytest.raises(ValueError, match="choose another folder"):
        synthetic_digits.synthesise(whole, seed=4, **sizes)


def test_the_real_recordings(real_data: Path) -> None:
    recordings, problems = read_recordings(real_data / "fsdd")
    assert problems == []
    assert Counter(r.speaker for r in recordings) == dict.fromkeys(("george", "jackson", "nicolas", "yweweler"), 500)
    assert set(Counter((r.speaker, r.digit) for r in recordings).values()) == {50}
