"""Verbs run in processes of their own, side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from asrkd.cli.processes import run, run_side_by_side, usable_cores
from asrkd.cli.progress import RELAY, relayed, stages


def test_a_failing_verb_ends_with_its_status(tmp_path: Path) -> None:
    with pytest.raises(typer.Exit) as caught:
        run(["train", str(tmp_path / "none.yaml")])
    assert caught.value.exit_code == 2


def test_the_failure_of_one_ends_both(tmp_path: Path, spoken: Path) -> None:
    """The other would take long: a whole corpus."""
    long = ["prepare", "spoken_numbers", "--out", str(tmp_path / "corpus"), "--train-minutes", "3000"]
    with pytest.raises(typer.Exit) as caught:
        run_side_by_side({"long": long, "wrong": ["train", str(tmp_path / "none.yaml")]})
    assert caught.value.exit_code == 2
    assert not (tmp_path / "corpus" / "corpus.json").exists()


def test_both_are_done_and_shown(tmp_path: Path, spoken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prepare", "librispeech", "--root", str(spoken), "--out"]
    run_side_by_side({"a": [*words, str(tmp_path / "a")], "b": [*words, str(tmp_path / "b")]})
    for name in ("a", "b"):
        assert json.loads((tmp_path / name / "corpus.json").read_text())
    assert capsys.readouterr().err.count("check audio: ") == 2


def test_what_would_be_shown_is_relayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert relayed(tmp_path / "x") is None
    monkeypatch.setenv(RELAY, str(tmp_path / "x"))
    with stages() as stage:
        report = stage("train")
        report(1, 9, "")
        assert relayed(tmp_path / "x") == ("train", 1, 9)
        report(9, 9, "")
    assert relayed(tmp_path / "x") == ("train", 9, 9)


def test_only_the_first_rank_shows_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    with stages() as stage:
        stage("train")(1, 1, "")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    with stages() as stage:
        stage("train")(1, 1, "")
    assert "train: 1/1" in capsys.readouterr().err


def test_there_is_a_core() -> None:
    assert usable_cores() >= 1
