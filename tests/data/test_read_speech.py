"""Synthetic read speech: sentences in LibriSpeech's style, parts apart, the same again, continuation after a kill."""

from __future__ import annotations

import re
from itertools import combinations, product
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from asrkd.cli.prepare import prepare
from asrkd.data.corpora import corpus_parts, load_cuts
from asrkd.data.read_speech import PARTS, plan, synthesise
from asrkd.data.sentences import MAX_CHARACTERS, normalise, read_sentences
from asrkd.data.synthetic import CONDITIONS, transcript
from tests.data.making import digest, killed_midway

SIZES = {"hours": 0.04, "dev_minutes": 0.3, "test_minutes": 0.3}
MINUTES = {"train": 40.0, "dev": 1.0, "test-clean": 2.0, "test-other": 2.0}
BAD = (
    b"\xff\xfe is no UTF-8",
    "Число".encode(),
    b"3x4 = 12",
    b"...",
    b"the old house stands at noon.",  # said before, in another case
    b"word " * 90,
)


def sentences() -> list[str]:
    words = product(("The old house", "My sister's boat", "A man, it seems,"), ("stands", "waits", "is late"),
                    ("at noon.", "by the river!", "without you", "in 1923;", "for 3,500 days"))  # fmt: skip
    return [" ".join(parts) for parts in words]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_bytes("\n".join(sentences()).encode() + b"\n\n" + b"\n".join(BAD) + b"\n")
    return path


@pytest.fixture(scope="module")
def made(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("read") / "audio"
    synthesise(out, text, seed=3, workers=2, **SIZES)
    return out


@pytest.mark.parametrize(
    ("line", "spoken"),
    [
        ("“No,” said he, ‘’tis the boys’ house.’", "NO, SAID HE, 'TIS THE BOYS' HOUSE."),
        ("In 1923 he had 3,500 men;", "IN NINETEEN TWENTY THREE HE HAD THREE THOUSAND FIVE HUNDRED MEN"),
        ("$4.50, or 12%, on the 21st", "FOUR POINT FIVE ZERO DOLLARS, OR TWELVE PERCENT, ON THE TWENTY FIRST"),
        ("the 1920s -- well - then [sic] so...", "THE NINETEEN TWENTIES, WELL, THEN, SIC, SO"),
        ("café naïve O'Neil's X & Y", "CAFE NAIVE O'NEIL'S X AND Y"),
        ("Mr. Smith and Dr Jones, left-handed", "MISTER SMITH AND DOCTOR JONES, LEFT HANDED"),
        ("1,2,3", "ONE, TWO, THREE"),
        ("'Why?' 'Why not!'", "WHY? WHY NOT!"),
    ],
)
def test_sentences_are_written_in_the_style_of_librispeech(line: str, spoken: str) -> None:
    assert normalise(line) == spoken
    assert re.fullmatch(r"[A-Z']+( [A-Z']+)*", transcript(spoken))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("3x4 = 12", "digits"),
        ("12345678901 of them", "digits"),
        ("the 90s", "digits"),
        ("Ω", "other signs"),
        ("tab\x07bell", "other signs"),
        ("...", "without a word"),
        ("x" * (MAX_CHARACTERS + 1), "more than"),
    ],
)
def test_what_cannot_be_written_so_is_refused_with_the_reason(line: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        normalise(line)


def test_bad_lines_are_counted_by_reason(text: Path, tmp_path: Path) -> None:
    found = read_sentences(text)
    assert len(found.texts) == len(sentences())
    assert sum(found.left_out.values()) == len(BAD)
    assert len(found.left_out) == len(BAD)
    with pytest.raises(ValueError, match="no such file"):
        read_sentences(tmp_path / "none.txt")
    (tmp_path / "bad.txt").write_bytes(b"\n".join(BAD[:2]))
    with pytest.raises(ValueError, match=r"found none that can be used \(1 not UTF-8, 1 with other signs or letters\)"):
        read_sentences(tmp_path / "bad.txt")


def test_plan_keeps_speakers_variants_and_sentences_apart() -> None:
    many = [f"NUMBER {'X' * (i % 40)} {i}" for i in range(1000)]
    chapters = plan(many, 0, MINUTES)
    by_part = {part: [c for c in chapters if c.part == part] for part in PARTS}
    said = {part: [t for c in cs for t in c.texts] for part, cs in by_part.items()}
    variants = {part: {c.voice.name.split("+")[1] for c in cs} for part, cs in by_part.items()}
    for one, other in combinations(PARTS, 2):
        assert not set(said[one]) & set(said[other])
        assert not {c.voice for c in by_part[one]} & {c.voice for c in by_part[other]}
        if not (one.startswith("test") and other.startswith("test")):
            assert not variants[one] & variants[other]
    assert len({c.speaker for c in chapters}) == len(chapters)
    assert all(len(cs) >= 2 and all(c.texts for c in cs) for cs in by_part.values())
    assert set().union(*said.values()) == set(many), "40 minutes need all of them"
    assert len(said["train"]) > len(set(said["train"])), "and some twice"
    assert plan(many, 0, MINUTES) == chapters
    assert plan(many, 1, MINUTES) != chapters
    held_out = [c for c in chapters if c.part != "train"]
    assert [c for c in plan(many, 0, {**MINUTES, "train": 5.0}) if c.part != "train"] == held_out
    with pytest.raises(ValueError, match="found 20"):
        plan(many[:20], 0, MINUTES)


def test_parts_last_about_as_long_as_asked_for(made: Path) -> None:
    seconds = {part: 0.0 for part in PARTS}
    for cut in (cut for part in PARTS for cut in load_prepared(made, part)):
        seconds[cut.custom["part"]] += cut.duration
        assert re.fullmatch(r"[A-Z']+( [A-Z']+)*", cut.supervisions[0].text)
        low, high = CONDITIONS[cut.custom["part"]].snr_db
        assert low <= cut.custom["snr_db"] <= high
    assert seconds["train"] == pytest.approx(3600 * SIZES["hours"], rel=0.35)
    assert seconds["test-clean"] == pytest.approx(60 * SIZES["test_minutes"], rel=0.5)


def load_prepared(audio: Path, part: str) -> list:
    from asrkd.data.librispeech import prepare_librispeech

    report = prepare_librispeech(audio, audio.parent / "corpus", check="header")
    assert report.notes == ()
    return [cut.with_custom("part", part) for cut in load_cuts(report.folder, part)]


def test_same_seed_same_bytes_whatever_the_workers(made: Path, text: Path, tmp_path: Path) -> None:
    synthesise(tmp_path / "again", text, seed=3, workers=1, **SIZES)
    assert digest(tmp_path / "again") == digest(made)


def test_continues_after_kill(made: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    call = f"synthesise({str(out)!r}, {str(text)!r}, seed=3, workers=1, **{SIZES})"
    done = killed_midway(f"from asrkd.data.read_speech import synthesise; {call}", out)
    assert 0 < len(done) < len(list(made.glob("*/*/*/*.trans.txt")))
    calls: list[tuple[int, int]] = []
    synthesise(out, text, seed=3, progress=lambda done, total: calls.append((done, total)), **SIZES)
    assert digest(out) == digest(made)
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    assert 0 < calls[0][0] < calls[0][1] == calls[-1][0]


def test_refuses_another_text_seed_or_size(made: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("\n".join(sentences()[1:]))
    for source, change in ((other, {}), (text, {"seed": 4}), (text, {"hours": 0.05})):
        with pytest.raises(ValueError, match="choose another folder"):
            synthesise(made, source, **{"seed": 3, **SIZES, **change})
    with pytest.raises(ValueError, match="minutes of train: expected more than 0"):
        synthesise(tmp_path / "new", text, hours=0)


def test_command_says_what_was_left_out_and_does_nothing_twice(text: Path, tmp_path: Path) -> None:
    def run() -> Result:
        sizes = ("--hours", 0.01, "--dev-minutes", 0.2, "--test-minutes", 0.2)
        words = ("read_speech", "--text", text, "--out", tmp_path / "out", "--seed", 5, *sizes)
        return CliRunner().invoke(prepare, [str(word) for word in words])

    result = run()
    assert result.exit_code == 0, result.output
    assert f"note: {text}: 1 lines left out: said before" in result.stderr
    assert set(corpus_parts(tmp_path / "out")) == set(PARTS)
    assert run().stdout.count("already there") == len(PARTS)


def test_the_sentences_of_lj_speech(real_data: Path) -> None:
    found = read_sentences(real_data / "text" / "ljspeech_sentences.txt")
    assert len(found.texts) + sum(found.left_out.values()) == 13100
    assert set(found.left_out) == {"said before"}
