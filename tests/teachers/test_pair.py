"""What a teacher could teach a student, as a function and as the verb says it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from asrkd.cli.inspect import inspect
from asrkd.data.text import Tokenizer, train_tokenizer
from asrkd.models import package
from asrkd.teachers.base import TEXT_ONLY
from asrkd.teachers.pair import Pair, Student, best_case, compare_pair
from asrkd.types import Frames, Hypothesis, TeacherTargets, Vocabulary

STUDENT = train_tokenizer(["ABC AB"], kind="char")


def given(vocabulary: Vocabulary, shift_s: float = 0.04) -> TeacherTargets:
    """Everything that a teacher may give."""
    frames = Frames(torch.zeros(1, 5, len(vocabulary)), torch.tensor([5]), shift_s)
    hidden = {"layer.3": Frames(torch.zeros(1, 5, 12), torch.tensor([5]), shift_s)}
    nbest = ((Hypothesis((), "A"),),)
    return TeacherTargets(vocabulary, frames, nbest, hidden, frames, (torch.zeros(1, 4), torch.tensor([4])))


def possible(pair: Pair) -> list[bool]:
    return [level.possible for level in pair.levels]


def test_the_same_tokens_can_teach_everything() -> None:
    pair = compare_pair(given(STUDENT.vocabulary), Student(STUDENT, 0.04, True))
    assert pair.found.relation == "same" and possible(pair) == [True] * 4
    assert "frames of 40 ms and 40 ms" in pair.levels[0].reason
    tokens = tuple(reversed(STUDENT.vocabulary.tokens))
    other = Vocabulary(tokens, tokens.index("<blank>"))
    pair = compare_pair(given(other), Student(STUDENT, 0.04, False))
    assert pair.found.relation == "permuted" and possible(pair) == [True, True, True, False]
    assert pair.levels[3].reason == "the student has no attention decoder"


@pytest.mark.parametrize(
    ("teacher_s", "student_s", "fits", "words"),
    [
        (0.02, 0.04, True, "of 2 the student gets"),
        (0.08, 0.04, True, "each stands for 2 of the student's"),
        (0.025, 0.04, False, "neither is a whole multiple"),
        (0.02, None, True, "must be a whole multiple or part"),
    ],
)
def test_frame_rates(teacher_s: float, student_s: float | None, fits: bool, words: str) -> None:
    pair = compare_pair(given(STUDENT.vocabulary, teacher_s), Student(STUDENT, student_s))
    assert pair.levels[0].possible == pair.levels[2].possible == fits
    assert words in pair.levels[0].reason
    # Through text frame rates do not matter.
    other = compare_pair(given(Vocabulary(("-", "A", "B", "Q")), teacher_s), Student(STUDENT, student_s))
    assert other.levels[0].possible and "time-aligned text" in other.levels[0].reason


def test_other_tokens_go_through_text_with_a_change_of_case() -> None:
    lower = Vocabulary(("<pad>", "<s>", "</s>", "<unk>", "|", "a", "b", "c", "'"))
    assert best_case(lower, STUDENT) == ("upper", ("'",))
    pair = compare_pair(given(lower), Student(STUDENT, 0.04, True))
    assert pair.found.relation == "different" and possible(pair) == [True, True, True, False]
    assert pair.levels[1].reason.endswith("say targets.case: upper")
    without = compare_pair(replace(given(lower), nbest=None), Student(STUDENT, 0.04, True))
    assert possible(without) == [False, False, True, False] and "targets.nbest" in without.levels[0].reason
    assert best_case(Vocabulary(("Ġa", "b", "<blank>"), 2), STUDENT) == ("keep", ())


def test_teachers_of_text_alone() -> None:
    pair = compare_pair(TeacherTargets(TEXT_ONLY, None, ((Hypothesis((), "A"),),)), Student(STUDENT, 0.04, True))
    assert possible(pair) == [False, True, False, False]


def test_codes_name_their_loss() -> None:
    codes = {"layer.3": Frames(torch.zeros(1, 5, 8, dtype=torch.uint8), torch.tensor([5]), 0.02)}
    pair = compare_pair(replace(given(STUDENT.vocabulary), hidden=codes), Student(STUDENT, 0.04))
    assert "layer.3 8 codes (loss mvq)" in pair.levels[2].reason


def test_the_verb(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(inspect)
    torch.manual_seed(0)
    for name, text in (("teacher", "ABC D"), ("student", "ABC AB")):
        tokenizer = train_tokenizer([text], kind="char")
        package.save(package.build({"kind": "streaming_conformer", "size": "tiny"}, tokenizer), tmp_path / name)
        tokenizer.save(tmp_path / f"{name}_tokens")
    teacher = str(tmp_path / "teacher")
    plain = CliRunner().invoke(app, [teacher, str(tmp_path / "student")], env={"COLUMNS": "200"})
    assert plain.exit_code == 0, plain.exception
    assert (
        "the student has no 'D'" in plain.output
        and "the student cannot write 1 of the teacher's characters: D" in plain.output
    )
    assert "yes: through text, tokenised anew" in plain.output and "PackageTeacher" in plain.output
    machine = CliRunner().invoke(app, [teacher, str(tmp_path / "teacher_tokens"), "--json"])
    figures = json.loads(machine.stdout.splitlines()[-1])
    assert figures["student"]["relation"] == "same" and figures["header"]["frame_shift_s"] == 0.04
    assert figures["header"]["gives"] == ["frame posteriors every 40 ms", "hypotheses"]
    alone = CliRunner().invoke(app, [teacher, "--nbest", "0"], env={"COLUMNS": "200"})
    assert alone.exit_code == 0 and "hypotheses" not in alone.output
    deep = CliRunner().invoke(app, [teacher, teacher, "--hidden", "layer.1", "--json"])
    figures = json.loads(deep.stdout.splitlines()[-1])
    assert figures["header"]["gives"][2].startswith("layer.1 (") and figures["student"]["levels"][2]["possible"]
    wrong = CliRunner().invoke(app, ["torchaudio:WAV2VEC2_ASR_BASE_960H", "--decoder"])
    assert isinstance(wrong.exception, ValueError) and "--decoder: not of a teacher of kind torchaudio" in str(
        wrong.exception
    )
    nowhere = CliRunner().invoke(app, [str(tmp_path / "nothing")])
    assert isinstance(nowhere.exception, (ValueError, OSError))
    wrong = CliRunner().invoke(app, [teacher, "--utterance", "x", "--picture", "x.png"])
    assert isinstance(wrong.exception, ValueError) and "are for targets" in str(wrong.exception)
    assert len(Tokenizer.load(tmp_path / "student_tokens")) == len(STUDENT)
