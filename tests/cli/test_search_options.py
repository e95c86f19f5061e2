"""Language models and hot words from the command line change what is recognised, and wrong ones are one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrkd.models import package
from tests.streaming.babble import make_student, speech


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    package.save(make_student(), folder / "package")
    soundfile.write(folder / "a.wav", np.clip(speech(4.0), -1, 1), 16000)
    words = ["ab", "bc", "de", "a", "c"]
    head = ["\\data\\", f"ngram 1={len(words) + 3}", "ngram 2=1", "", "\\1-grams:"]
    unigrams = ["-99\t<s>\t-0.1", "-1\t</s>", "-2\t<unk>\t-0.1", *(f"-0.8\t{word}\t-0.1" for word in words)]
    bigrams = ["", "\\2-grams:", "-0.2\tab bc", "", "\\end\\", ""]
    (folder / "lm.arpa").write_text("\n".join([*head, *unigrams, *bigrams]))
    (folder / "hot.txt").write_text("eee\n\nddd\n")
    (folder / "empty.txt").write_text("\n")
    (folder / "strange.txt").write_text("ab\nxyz\n")
    return folder


def transcribe(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "asrkd", "transcribe", str(folder / "package"), str(folder / "a.wav"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_language_model_gives_its_words_alone(folder: Path) -> None:
    pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason="the extra lm is not installed")
    for streaming in ((), ("--streaming", "--format", "json")):
        answer = transcribe(folder, "--lm", str(folder / "lm.arpa"), *streaming)
        assert answer.returncode == 0, answer.stderr
        if not streaming:
            said = answer.stdout.split("\t")[1].split()
            assert said and set(said) <= {"ab", "bc", "de", "a", "c"}


def test_hot_words_are_heard_more_often(folder: Path) -> None:
    plain = transcribe(folder, "--beam", "8").stdout
    hot = transcribe(folder, "--beam", "8", "--hotwords", str(folder / "hot.txt"), "--hotword-boost", "20").stdout
    assert hot.count("eee") + hot.count("ddd") > plain.count("eee") + plain.count("ddd")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--hotwords", "hot.txt"), "expected --beam above 1"),
        (("--beam", "4", "--hotwords", "empty.txt"), "empty.txt: expected one phrase a line"),
        (("--beam", "4", "--hotwords", "strange.txt"), "'xyz': expected the vocabulary's characters"),
        (("--lexicon", "hot.txt"), "--lexicon: expected --lm"),
        (("--lm", "none.arpa"), "none.arpa"),
    ],
)
def test_wrong_options_are_one_line(folder: Path, options: tuple[str, ...], said: str) -> None:
    named = [str(folder / word) if word.endswith((".txt", ".arpa")) else word for word in options]
    answer = transcribe(folder, *named)
    assert answer.returncode == 2 and said in answer.stderr, answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
