"""``asrkd prepare …`` as users call it."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
from click.testing import Result
from typer.testing import CliRunner

from asrkd.cli.prepare import prepare
from asrkd.data.corpora import load_cuts


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(prepare, [str(argument) for argument in arguments])


@pytest.fixture
def copy(spoken: Path, tmp_path: Path) -> Path:
    """The dev part alone, with nothing that says where it comes from."""
    chapters = sorted((spoken / "dev").glob("*/*"))
    for chapter in chapters:
        target = tmp_path / "data" / "dev" / chapter.parent.name / chapter.name
        target.mkdir(parents=True)
        for path in chapter.iterdir():
            (target / path.name).write_bytes(path.read_bytes())
    return tmp_path / "data"


def test_help_of_every_source() -> None:
    for name in ("librispeech", "spoken_numbers", "lhotse", "table", "kaldi"):
        result = _run(name, "--help")
        assert result.exit_code == 0
        assert "--out" in result.output


def test_librispeech_with_shar_and_again(copy: Path, tmp_path: Path) -> None:
    result = _run("librispeech", "--root", copy, "--out", tmp_path / "out", "--parts", "dev", "--shar")
    assert result.exit_code == 0, result.output
    count = len(load_cuts(tmp_path / "out", "dev"))
    assert f"cuts_dev.jsonl.gz: {count} utterances, 2 speakers" in result.stdout
    assert (tmp_path / "out" / "shar" / "dev").is_dir()
    again = _run("librispeech", "--root", copy, "--out", tmp_path / "out")
    assert "(already there)" in again.stdout
    assert "parts of LibriSpeech that are not there" in again.stderr


def test_bad_files_are_named_and_the_exit_status_says_so(copy: Path, tmp_path: Path) -> None:
    victim = next(copy.glob("dev/*/*/*.flac"))
    victim.write_bytes(b"")
    result = _run("librispeech", "--root", copy, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"left out: {victim}: empty file (0 bytes)" in result.stderr
    assert "utterances" in result.stdout
    for path in copy.glob("dev/*/*/*.flac"):
        path.write_bytes(b"")
    result = _run("librispeech", "--root", copy, "--out", tmp_path / "none")
    assert isinstance(result.exception, ValueError)
    assert "can be used" in str(result.exception)


def test_spoken_numbers(tmp_path: Path) -> None:
    sizes = ("--train-minutes", 0.3, "--dev-minutes", 0.2, "--test-minutes", 0.2)
    result = _run("spoken_numbers", "--out", tmp_path / "out", "--seed", 5, *sizes)
    assert result.exit_code == 0, result.output
    assert len(load_cuts(tmp_path / "out", "test-other")) >= 2
    assert _run("spoken_numbers", "--out", tmp_path / "out", "--seed", 5, *sizes).stdout.count("already there") == 4
    assert isinstance(_run("spoken_numbers", "--out", tmp_path / "out", "--seed", 6, *sizes).exception, ValueError)


def test_lhotse_list_and_missing_out() -> None:
    assert "aishell" in _run("lhotse", "list").stdout.split()
    assert "--out" in str(_run("lhotse", "yesno", "--root", ".").exception)
    assert "KEY=VALUE" in str(_run("lhotse", "yesno", "--out", "x", "--option", "a").exception)


def test_table_and_kaldi(copy: Path, tmp_path: Path) -> None:
    flac = sorted(copy.glob("dev/*/*/*.flac"))[:2]
    (tmp_path / "mine.tsv").write_text("".join(f"{path.stem}\tHELLO\n" for path in flac))
    pattern = str(flac[0].parent / "{id}.flac")
    result = _run("table", tmp_path / "mine.tsv", "--columns", "id,text", "--audio", pattern, "--out", tmp_path / "t")
    assert result.exit_code == 0, result.output
    assert load_cuts(tmp_path / "t", "mine").ids
    kaldi = tmp_path / "train"
    kaldi.mkdir()
    (kaldi / "wav.scp").write_text("".join(f"{path.stem} {path}\n" for path in flac))
    (kaldi / "text").write_text("".join(f"{path.stem} HELLO\n" for path in flac))
    result = _run("kaldi", kaldi, "--out", tmp_path / "k", "--quick")
    assert result.exit_code == 0, result.output
    cuts = load_cuts(tmp_path / "k", "train")
    assert sum(cut.duration for cut in cuts) == pytest.approx(sum(soundfile.info(path).duration for path in flac))
    assert "different names" in str(_run("kaldi", kaldi, kaldi, "--out", tmp_path / "k").exception)


def test_real_digits_without_header(real_data: Path, tmp_path: Path) -> None:
    result = _run(
        "table", real_data / "fsdd" / "transcripts.tsv", "--columns", "id,speaker,text",
        "--audio", "{speaker}/{id}.flac", "--out", tmp_path, "--quick",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    cuts = load_cuts(tmp_path, "transcripts")
    assert len(cuts) == 2000
    assert next(iter(cuts)).sampling_rate == 16000
