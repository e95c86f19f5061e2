"""Preparation of corpora in LibriSpeech's layout: whole, partial, damaged, again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrkd.data.batching import load_batch
from asrkd.data.corpora import corpus_parts, load_cuts
from asrkd.data.librispeech import prepare_librispeech
from asrkd.data.synthetic import CONDITIONS


def _write(root: Path, part: str, speaker: str, utterances: dict[str, str], suffix: str = "flac") -> Path:
    chapter = root / part / speaker / "7"
    chapter.mkdir(parents=True)
    lines = []
    for number, text in utterances.items():
        identity = f"{speaker}-7-{number}"
        noise = np.random.default_rng(int(number)).uniform(-0.1, 0.1, 8000)
        container = {"opus": "OGG", "ogg": "OGG"}.get(suffix, suffix.upper())
        subtype = {"opus": "OPUS", "ogg": "VORBIS"}.get(suffix)
        soundfile.write(chapter / f"{identity}.{suffix}", noise, 16000, format=container, subtype=subtype)
        lines.append(f"{identity} {text}")
    (chapter / f"{speaker}-7.trans.txt").write_text("\n".join(lines) + "\n")
    return chapter


def test_spoken_numbers_carry_their_conditions(spoken: Path, prepared: Path) -> None:
    assert set(corpus_parts(prepared)) == {"train", "dev", "test-clean", "test-other"}
    for cut in load_cuts(prepared, "test-other"):
        stated = CONDITIONS["test-other"]
        assert stated.snr_db[0] <= cut.snr_db <= stated.snr_db[1]
        assert stated.rt60_s[0] <= cut.rt60_s <= stated.rt60_s[1]
        assert cut.supervisions[0].speaker == cut.id.split("-")[0]
        assert cut.supervisions[0].text.isupper()
    record = json.loads((prepared / "corpus.json").read_text())
    assert record["kind"] == "spoken_numbers"
    assert record["root"] == str(spoken.resolve())


@pytest.mark.parametrize("suffix", ["flac", "opus", "ogg", "wav", "mp3"])
def test_every_kind_of_audio_and_the_inner_folder(tmp_path: Path, suffix: str) -> None:
    _write(tmp_path / "data" / "LibriSpeech", "dev-clean", "84", {"0000": "HELLO", "0001": "WORLD"}, suffix)
    report = prepare_librispeech(tmp_path / "data", tmp_path / "out")
    assert report.parts["dev-clean"].utterances == 2
    batch = load_batch(load_cuts(tmp_path / "out", "dev-clean"), None)
    assert batch.texts == ("HELLO", "WORLD")
    assert batch.audio_lengths.tolist() == pytest.approx([8000, 8000], abs=1700 if suffix == "mp3" else 1)


def test_partial_copies_say_what_is_missing(tmp_path: Path) -> None:
    _write(tmp_path, "dev-clean", "84", {"0000": "HELLO"})
    report = prepare_librispeech(tmp_path, tmp_path / "out")
    assert report.notes[0] == "dev-clean: 1 of 2703 utterances: a partial copy"
    assert "train-clean-100" in report.notes[1]


def test_other_rates_and_stereo_become_16_khz_mono(tmp_path: Path) -> None:
    chapter = _write(tmp_path, "dev", "84", {"0000": "HELLO"})
    tone = np.stack([np.full(22050, 0.2), np.full(22050, 0.4)], axis=1)
    soundfile.write(chapter / "84-7-0000.flac", tone, 44100)
    prepare_librispeech(tmp_path, tmp_path / "out")
    batch = load_batch(load_cuts(tmp_path / "out", "dev"), None)
    assert batch.audio_lengths.tolist() == [8000]
    np.testing.assert_allclose(batch.audio[0, 1000:7000].numpy(), 0.3, atol=1e-3)


def test_bad_files_are_named_and_the_others_used(tmp_path: Path) -> None:
    texts = {f"{i:04d}": f"WORD {i}" for i in range(7)}
    chapter = _write(tmp_path, "dev", "84", texts)
    (chapter / "84-7-0001.flac").unlink()
    (chapter / "84-7-0002.flac").write_bytes(b"")
    good = (chapter / "84-7-0003.flac").read_bytes()
    (chapter / "84-7-0003.flac").write_bytes(good[: len(good) // 2])
    (chapter / "84-7-0004.flac").write_text("not audio")
    shutil.copy(chapter / "84-7-0000.flac", chapter / "84-7-0009.flac")
    with (chapter / "84-7.trans.txt").open("a") as file:
        file.write("84-7-0005 AGAIN\n84-7-0010\n")
    report = prepare_librispeech(tmp_path, tmp_path / "out")
    assert [cut.id for cut in load_cuts(tmp_path / "out", "dev")] == ["84-7-0000", "84-7-0005", "84-7-0006"]
    expected = {
        "84-7-0001": "no audio file beside the transcript",
        "84-7-0002": "empty file",
        "84-7-0003": "truncated|damaged",
        "84-7-0004": "cannot be read as audio",
        "84-7-0005": "the same id a second time",
        "84-7-0009": "no transcript",
        "84-7-0010": "no text",
    }
    assert len(report.problems) == len(expected)
    for identity, reason in expected.items():
        lines = [line for line in report.problems if identity in line]
        assert len(lines) == 1
        assert any(word in lines[0] for word in reason.split("|"))
        assert "\n" not in lines[0]
    assert prepare_librispeech(tmp_path, tmp_path / "out").problems == report.problems


def test_nothing_usable_is_an_error_and_leaves_what_was_there(tmp_path: Path) -> None:
    chapter = _write(tmp_path / "data", "dev", "84", {"0000": "HELLO"})
    prepare_librispeech(tmp_path / "data", tmp_path / "out")
    (chapter / "84-7-0000.flac").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of 1 utterances can be used; the first: .*empty file"):
        prepare_librispeech(tmp_path / "data", tmp_path / "out")
    assert len(load_cuts(tmp_path / "out", "dev")) == 1


def test_second_call_does_nothing_until_the_input_changes(tmp_path: Path) -> None:
    chapter = _write(tmp_path / "data", "dev", "84", {"0000": "HELLO", "0001": "WORLD"})
    _write(tmp_path / "data", "test", "85", {"0000": "HELLO"})
    out = tmp_path / "out"
    assert prepare_librispeech(tmp_path / "data", out).reused == ()
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    assert prepare_librispeech(tmp_path / "data", out).reused == ("dev", "test")
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()} == before
    (chapter / "84-7.trans.txt").write_text("84-7-0000 GOODBYE\n84-7-0001 WORLD\n")
    assert prepare_librispeech(tmp_path / "data", out).reused == ("test",)
    assert next(iter(load_cuts(out, "dev"))).supervisions[0].text == "GOODBYE"
    (out / "cuts_test.jsonl.gz").write_bytes(b"spoiled")
    assert prepare_librispeech(tmp_path / "data", out).reused == ("dev",)
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_same_input_same_cuts(tmp_path: Path) -> None:
    _write(tmp_path / "data", "dev", "84", {"0000": "HELLO", "0001": "WORLD"})
    one = prepare_librispeech(tmp_path / "data", tmp_path / "a").parts["dev"].sha256
    assert prepare_librispeech(tmp_path / "data", tmp_path / "b", jobs=1).parts["dev"].sha256 == one


def test_wrong_places_and_parts(tmp_path: Path, prepared: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        prepare_librispeech(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no part found"):
        prepare_librispeech(tmp_path / "empty", tmp_path / "out")
    _write(tmp_path / "data", "dev", "84", {"0000": "HELLO"})
    with pytest.raises(ValueError, match="no part 'test'; found dev"):
        prepare_librispeech(tmp_path / "data", tmp_path / "out", ["test"])
    with pytest.raises(ValueError, match="no prepared corpus"):
        load_cuts(tmp_path / "empty", "dev")
    with pytest.raises(ValueError, match="no part 'nope'; it has dev, "):
        load_cuts(prepared, "nope")
    (tmp_path / "empty" / "corpus.json").write_text("[]")
    with pytest.raises(ValueError, match="expected format 1"):
        load_cuts(tmp_path / "empty", "dev")


def test_real_recordings(real_data: Path, tmp_path: Path) -> None:
    report = prepare_librispeech(real_data / "librispeech_excerpt", tmp_path / "excerpt")
    assert report.parts["test-clean"].utterances == 4
    assert not report.problems
    report = prepare_librispeech(
        real_data / "librispeech_part", tmp_path / "part", ["dev-clean", "test-clean"], check="header"
    )
    assert not report.problems
    assert report.parts["dev-clean"].speakers == 20
    batch = load_batch(list(load_cuts(tmp_path / "part", "test-clean"))[:3], None)
    assert (batch.audio.abs().amax(dim=1) > 0.01).all()
