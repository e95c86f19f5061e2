"""The synthetic corpus: words, layout, determinism, continuation after a kill, conditions as stated."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrkd.data.number_phrases import cardinal, ordinal, phrase, year
from asrkd.data.spoken_numbers import PARTS, plan, synthesise
from asrkd.data.synthetic import CONDITIONS
from asrkd.data.voices import Voice, speak
from tests.data.making import digest, killed_midway

Sizes = dict[str, float]
MINUTES = {"train": 20.0, "dev": 2.0, "test-clean": 4.0, "test-other": 4.0}


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "ZERO"),
        (13, "THIRTEEN"),
        (40, "FORTY"),
        (99, "NINETY NINE"),
        (100, "ONE HUNDRED"),
        (412, "FOUR HUNDRED AND TWELVE"),
        (1000, "ONE THOUSAND"),
        (2005, "TWO THOUSAND AND FIVE"),
        (31540, "THIRTY ONE THOUSAND FIVE HUNDRED AND FORTY"),
        (7000001, "SEVEN MILLION AND ONE"),
        (
            123456789,
            "ONE HUNDRED AND TWENTY THREE MILLION FOUR HUNDRED AND FIFTY SIX THOUSAND SEVEN HUNDRED AND EIGHTY NINE",
        ),
    ],
)
def test_cardinals(number: int, words: str) -> None:
    assert cardinal(number) == words


def test_ordinals_and_years() -> None:
    assert [ordinal(n) for n in (1, 12, 20, 31, 80)] == ["FIRST", "TWELFTH", "TWENTIETH", "THIRTY FIRST", "EIGHTIETH"]
    assert [year(n) for n in (1900, 1905, 1987, 2000, 2004, 2021)] == [
        "NINETEEN HUNDRED",
        "NINETEEN OH FIVE",
        "NINETEEN EIGHTY SEVEN",
        "TWO THOUSAND",
        "TWO THOUSAND AND FOUR",
        "TWENTY TWENTY ONE",
    ]
    for wrong in (lambda: cardinal(-1), lambda: ordinal(0)):
        with pytest.raises(ValueError, match="number"):
            wrong()


def test_phrases_are_upper_case_words_of_many_kinds() -> None:
    texts = {phrase(np.random.default_rng(seed)) for seed in range(500)}
    assert len(texts) > 450
    assert all(re.fullmatch(r"[A-Z']+( [A-Z']+)*", text) for text in texts)
    words = {word for text in texts for word in text.split()}
    assert {"O'CLOCK", "DOLLARS", "DOUBLE", "POINT", "MARCH", "THOUSAND", "HALF"} <= words
    assert max(len(text.split()) for text in texts) <= 16


def test_plan_keeps_parts_apart() -> None:
    chapters = plan(0, MINUTES)
    texts = {part: {t for c in chapters if c.part == part for t in c.texts} for part in PARTS}
    voices = {part: {c.voice for c in chapters if c.part == part} for part in PARTS}
    variants = {part: {v.name.split("+")[1] for v in voices[part]} for part in PARTS}
    for i, one in enumerate(PARTS):
        for other in PARTS[i + 1 :]:
            assert not texts[one] & texts[other]
            assert not voices[one] & voices[other]
            if "test" not in one:
                assert not variants[one] & variants[other]
    assert len({c.speaker for c in chapters}) == len(chapters)
    assert plan(0, MINUTES) == chapters
    assert plan(1, MINUTES) != chapters


def test_layout_words_and_conditions(spoken: Path, sizes: Sizes) -> None:
    total_s = 0.0
    for part in PARTS:
        chapters = list((spoken / part).glob("*/*"))
        assert len(chapters) >= 2
        for chapter in chapters:
            name = f"{chapter.parent.name}-{chapter.name}"
            lines = (chapter / f"{name}.trans.txt").read_text().splitlines()
            audio = sorted(path.stem for path in chapter.glob("*.flac"))
            assert [line.split()[0] for line in lines] == audio
            with (chapter / f"{name}.conditions.tsv").open() as file:
                rows = list(csv.DictReader(file, delimiter="\t"))
            assert [row["id"] for row in rows] == audio
            low, high = CONDITIONS[part].snr_db
            assert all(low <= float(row["snr_db"]) <= high for row in rows)
            for path in chapter.glob("*.flac"):
                samples, rate_hz = soundfile.read(path)
                assert rate_hz == 16000
                assert samples.ndim == 1
                assert -35 < 20 * np.log10(np.sqrt(np.mean(samples**2))) < -15
                total_s += samples.size / rate_hz
    assert total_s / 60 == pytest.approx(sum(sizes.values()) + sizes["test_minutes"], rel=0.35)


def test_same_seed_same_bytes_whatever_the_workers(spoken: Path, sizes: Sizes, tmp_path: Path) -> None:
    assert digest(synthesise(tmp_path / "again", seed=3, workers=1, **sizes)) == digest(spoken)


def test_continues_after_kill_and_repairs_what_is_gone(spoken: Path, sizes: Sizes, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    call = f"from asrkd.data.spoken_numbers import synthesise; synthesise({str(out)!r}, seed=3, workers=1, **{sizes})"
    done = killed_midway(call, out)
    assert done
    assert len(done) < len(list(spoken.glob("*/*/*/*.trans.txt")))
    calls: list[tuple[int, int]] = []
    synthesise(out, seed=3, progress=lambda done, total: calls.append((done, total)), **sizes)
    assert digest(out) == digest(spoken)
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    assert calls[0][0] > 0
    assert calls[-1][0] == calls[-1][1]
    next(out.glob("train/*/*/*.flac")).unlink()
    synthesise(out, seed=3, **sizes)
    assert digest(out) == digest(spoken)


def test_refuses_another_corpus_and_wrong_sizes(spoken: Path, sizes: Sizes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose another folder"):
        synthesise(spoken, seed=4, **sizes)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="expected an empty folder"):
        synthesise(tmp_path, **sizes)
    with pytest.raises(ValueError, match="minutes of dev"):
        synthesise(tmp_path / "new", dev_minutes=0)


def test_a_crash_of_the_library_costs_one_phrase_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The real worker, which here ends itself by a segmentation fault when it comes to a certain text.
    worker = Path(synthesise.__code__.co_filename).with_name("espeak_worker.py")
    crashing = tmp_path / "espeak_worker.py"
    trap = "        if 'twelve' in text:\n            ctypes.string_at(0)\n"
    crashing.write_text(worker.read_text().replace("        pieces.clear()\n", "        pieces.clear()\n" + trap))
    assert trap in crashing.read_text()
    monkeypatch.setattr("asrkd.data.voices.__file__", str(tmp_path / "voices.py"))
    voice = Voice("en-us+m3", 175, 50, 50)
    pairs, rate_hz = speak(voice, ("ONE", "TWELVE", "TWO", "THREE"))
    assert [text for text, _ in pairs] == ["ONE", "TWO", "THREE"]
    assert rate_hz == 22050
    with pytest.raises(OSError, match="again and again"):
        speak(voice, ("TWELVE",))
    with pytest.raises(OSError, match="no voice 'zz'"):
        speak(Voice("zz", 175, 50, 50), ("ONE",))


def test_every_voice_variant_is_in_the_wheel() -> None:
    # espeak-ng would silently take the accent's plain voice instead.
    import espeakng_loader

    there = {path.name for path in (Path(espeakng_loader.get_data_path()) / "voices" / "!v").iterdir()}
    assert {c.voice.name.split("+")[1] for c in plan(0, {**MINUTES, "train": 100.0})} <= there
