"""What a teacher could teach a student, and why no more: tokens, frame rates, and what the teacher gives at all."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from asrkd.data.text import Tokenizer
from asrkd.teachers.base import Teacher
from asrkd.teachers.fit import Case, cased
from asrkd.teachers.vocabulary import SPECIAL, Match, match
from asrkd.types import SpeechBatch, TeacherTargets, TopK, Vocabulary


@dataclass(frozen=True)
class Student:
    """What has to be known of a student.

    Args:
        tokenizer: Of its transcripts.
        frame_shift_s: Of its posteriors; ``None`` if not known (a tokenizer without a model).
        has_decoder: Whether it has an attention decoder; ``None`` if not known.
    """

    tokenizer: Tokenizer
    frame_shift_s: float | None = None
    has_decoder: bool | None = None


@dataclass(frozen=True)
class Level:
    """One way of teaching. Args: its name, whether it is possible, and one line why or how."""

    name: str
    possible: bool
    reason: str


@dataclass(frozen=True)
class Pair:
    """A teacher and a student.

    Args:
        found: How their tokens match.
        case: What should be done to the teacher's letters (``targets.case``).
        unknown: Characters of the teacher's tokens that the student cannot write then; known only where tokens differ.
        levels: Frame posteriors, sequences, hidden states, decoder posteriors.
    """

    found: Match
    case: Case
    unknown: tuple[str, ...]
    levels: tuple[Level, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        levels = [asdict(level) for level in self.levels]
        return {
            "relation": self.found.relation,
            "reason": self.found.reason,
            "case": self.case,
            "unknown": list(self.unknown),
            "levels": levels,
        }


def probe(teacher: Teacher) -> TeacherTargets:
    """What a teacher says of a second of faint noise: which kinds of targets it gives."""
    noise = 1e-3 * torch.randn(1, teacher.sample_rate_hz, generator=torch.Generator().manual_seed(0))
    samples = torch.tensor([teacher.sample_rate_hz])
    return teacher(SpeechBatch(("noise",), noise, samples, teacher.sample_rate_hz, ("",))).to("cpu")


def compare_pair(targets: TeacherTargets, student: Student) -> Pair:
    """What is possible for a pair.

    Args:
        targets: A sample of what the teacher gives, live or stored.
        student: Who is to learn.
    """
    found = match(targets.vocabulary, student.tokenizer.vocabulary)
    case, unknown = best_case(targets.vocabulary, student.tokenizer) if found.student_ids is None else ("keep", ())
    levels = (_frames(targets, found, student), _sequences(targets, found, case), _hidden(targets, student))
    return Pair(found, case, unknown, (*levels, _decoder(targets, found, student)))


def best_case(teacher: Vocabulary, tokenizer: Tokenizer) -> tuple[Case, tuple[str, ...]]:
    """The change of letters after which the student can write most of the teacher's characters, and what is left then.

    Args:
        teacher: Its tokens; byte-level pieces (with ``Ġ``), which are no characters, are not looked at.
        tokenizer: Of the student.
    """
    spelt = [token for i, token in enumerate(teacher.tokens) if i != teacher.blank_id and not _is_mark(token)]
    if any("Ġ" in token for token in spelt):
        return "keep", ()
    characters = "".join(sorted(set("".join(spelt)) - {"▁", "|", " "}))
    cases: tuple[Case, ...] = ("keep", "upper", "lower")
    unknown = {case: tokenizer.unknown_characters(cased(characters, case)) for case in cases}
    case = min(cases, key=lambda one: len(unknown[one]))  # the first of equals
    return case, unknown[case]


def _is_mark(token: str) -> bool:
    return token in SPECIAL or (len(token) > 2 and token[0] == "<" and token[-1] == ">")


def _frames(targets: TeacherTargets, found: Match, student: Student) -> Level:
    name = "frame posteriors"
    if targets.posteriors is None:
        return Level(name, False, "the teacher gives none: its hypotheses are all it says")
    if found.student_ids is None:
        if targets.nbest is None:
            return Level(
                name, False, "other tokens; with targets.nbest at least 1 they would go through time-aligned text"
            )
        return Level(
            name, True, "through time-aligned text: a spike where the hypothesis has each of the student's tokens"
        )
    problem, how = _clocks(targets.posteriors.frame_shift_s, student.frame_shift_s, "its frame of least blank")
    kept = "stored entries" if isinstance(targets.posteriors, TopK) else "all tokens"
    return Level(name, not problem, problem or f"{found.relation} tokens, {kept}; {how}")


def _sequences(targets: TeacherTargets, found: Match, case: Case) -> Level:
    name = "sequences (N-best)"
    if targets.nbest is None:
        return Level(name, False, "no hypotheses were asked for; say targets.nbest: 1 or more")
    if found.student_ids is not None:
        return Level(name, True, f"{found.relation} tokens")
    how = "" if case == "keep" else f"; say targets.case: {case}"
    return Level(name, True, f"through text, tokenised anew{how}")


def _hidden(targets: TeacherTargets, student: Student) -> Level:
    name = "hidden states"
    if not targets.hidden:
        return Level(name, False, "none given: kinds package and huggingface have them, where a loss asks for them")
    shown, problems = [], []
    for layer, frames in targets.hidden.items():
        problem, how = _clocks(frames.frame_shift_s, student.frame_shift_s, "the first")
        codes = not torch.is_floating_point(frames.values)
        what = f"{frames.values.shape[2]} codes (loss mvq)" if codes else f"{frames.values.shape[2]} units"
        problems += [problem] if problem else []
        shown.append(f"{layer} {what}, {problem or how}")
    return Level(name, len(problems) < len(shown), "; ".join(shown))


def _decoder(targets: TeacherTargets, found: Match, student: Student) -> Level:
    name = "decoder posteriors"
    if targets.decoder is None:
        return Level(name, False, "none given: kinds package and huggingface have them, where a loss asks for them")
    if student.has_decoder is False:
        return Level(name, False, "the student has no attention decoder")
    if found.student_ids is None:
        return Level(name, False, "other tokens")
    return Level(name, True, f"{found.relation} tokens; live only, they are not stored")


def _clocks(teacher_s: float, student_s: float | None, taken: str) -> tuple[str, str]:
    """What is wrong with two frame shifts (empty if nothing), and how frames are matched."""
    if student_s is None:
        return "", f"{1000 * teacher_s:g} ms frames, the student's must be a whole multiple or part"
    ratio = student_s / teacher_s
    faster, slower = max(1, round(ratio)), max(1, round(1 / ratio))
    shifts = f"frames of {1000 * teacher_s:g} ms and {1000 * student_s:g} ms"
    if abs(ratio * slower - faster) > 1e-6 * faster or min(faster, slower) > 1:
        return f"{shifts}: neither is a whole multiple of the other", ""
    if faster > 1:
        return "", f"{shifts}: of {faster} the student gets {taken}"
    return "", f"{shifts}: each stands for {slower} of the student's" if slower > 1 else shifts
