"""Targets of any teacher in the student's vocabulary, stored or live.

Where the tokens differ, everything goes through text: hypotheses are tokenised anew, and frame posteriors are built from
them, teacher token spans to characters to student tokens at those times.

Dimension legend: B utterances, T frames, K kept entries, U labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol

import torch

from asrkd.data.text import UNKNOWN_ID, Tokenizer
from asrkd.teachers.base import Teacher
from asrkd.teachers.vocabulary import Match, match, renumber
from asrkd.types import Hypothesis, NBest, SpeechBatch, TeacherTargets, TopK, Vocabulary

Case = Literal["keep", "upper", "lower"]


class Store(Protocol):
    """What reads stored targets, such as ``asrkd.targets.store.TargetsStore``."""

    vocabulary: Vocabulary

    def read(self, ids: Sequence[str]) -> TeacherTargets: ...


class FittedStore:
    """A store read in the student's vocabulary.

    Args:
        store: Of the teacher's targets.
        tokenizer: Of the student.
        frame_shift_s: Of the student's posteriors, the clock of time-aligned targets.
        case: What is done to the letters of transcripts before they are tokenised anew.

    Attributes:
        found: How the two vocabularies match.
    """

    def __init__(self, store: Store, tokenizer: Tokenizer, frame_shift_s: float, case: Case = "keep") -> None:
        self.store = store
        self.found = match(store.vocabulary, tokenizer.vocabulary)
        self._fit = _Fit(self.found, tokenizer, frame_shift_s, case)

    def read(self, ids: Sequence[str]) -> TeacherTargets:
        """Targets of a batch in the student's vocabulary."""
        return self._fit(self.store.read(ids))


class FittedTeacher:
    """A live teacher in the student's vocabulary; arguments and attributes as of :class:`FittedStore`."""

    def __init__(self, teacher: Teacher, tokenizer: Tokenizer, frame_shift_s: float, case: Case = "keep") -> None:
        self.teacher = teacher
        self.found = match(teacher.vocabulary, tokenizer.vocabulary)
        self.identity = f"{teacher.identity} in {tokenizer.identity} {case}"
        self.vocabulary = tokenizer.vocabulary
        self.sample_rate_hz = teacher.sample_rate_hz
        self.frame_shift_s = teacher.frame_shift_s if self.found.student_ids is not None else frame_shift_s
        self._fit = _Fit(self.found, tokenizer, frame_shift_s, case)

    def __call__(self, batch: SpeechBatch) -> TeacherTargets:
        """What the teacher says, in the student's vocabulary."""
        return self._fit(self.teacher(batch))


class _Fit:
    def __init__(self, found: Match, tokenizer: Tokenizer, frame_shift_s: float, case: Case) -> None:
        if case not in ("keep", "upper", "lower"):
            raise ValueError(f"case: expected keep, upper or lower; found {case!r}")
        self.found, self.tokenizer, self.frame_shift_s, self.case = found, tokenizer, frame_shift_s, case

    def __call__(self, targets: TeacherTargets) -> TeacherTargets:
        if self.found.student_ids is not None:
            return renumber(targets, self.tokenizer.vocabulary, self.found)
        posteriors = None
        if targets.posteriors is not None and targets.nbest is not None:
            posteriors = time_aligned(targets, self.tokenizer, self.frame_shift_s, case=self.case)
        nbest = None
        if targets.nbest is not None:
            nbest = tuple(retokenised(one, self.tokenizer, self.case) for one in targets.nbest)
        return TeacherTargets(self.tokenizer.vocabulary, posteriors, nbest, targets.hidden)


def retokenised(nbest: NBest, tokenizer: Tokenizer, case: Case = "keep") -> NBest:
    """Hypotheses with the student's tokens of the same text; token times and confidences are lost.

    What the student cannot write (punctuation of a Whisper, say) is left out rather than taught as the unknown token.
    """

    def tokens(text: str) -> tuple[int, ...]:
        return tuple(token for token in tokenizer.encode(cased(text, case)) if token != UNKNOWN_ID)

    return tuple(replace(h, tokens=tokens(h.text), times_s=None, confidences=None) for h in nbest)


def time_aligned(
    targets: TeacherTargets,
    tokenizer: Tokenizer,
    frame_shift_s: float,
    *,
    temperature: float = 1.0,
    case: Case = "keep",
) -> TopK:
    """Frame posteriors over the student's tokens from the teacher's time-aligned hypotheses.

    Each hypothesis counts ``w_n = softmax(score_n / temperature)``. Its characters lie evenly between the time of their
    teacher token and that of the next; a student token stands where its last character lies, moved on where its frame is
    taken. There it gets ``w_n · c``, c the teacher's confidence in that token, and blank the rest. Frames of no token are
    blank. A hypothesis that does not fit into the frames is left out; an utterance of which none is left gets frames without
    entries, whose tail holds everything, so that a divergence over entries and tail is zero there.

    Args:
        targets: With posteriors (for lengths) and N-best lists with token times.
        tokenizer: Of the student.
        frame_shift_s: Of the student's posteriors.
        temperature: Of the weights.
        case: What is done to the letters of transcripts first.

    Raises:
        ValueError: If there are no posteriors or N-best lists, or no hypothesis has times.
    """
    if targets.posteriors is None or targets.nbest is None:
        raise ValueError("targets: expected posteriors and N-best lists, to build time-aligned ones of")
    spoken = [h for one in targets.nbest for h in one if h.tokens]
    if spoken and all(h.times_s is None for h in spoken):
        raise ValueError("targets: expected token times in the N-best lists, found none")
    ratio = targets.posteriors.frame_shift_s / frame_shift_s
    lengths = torch.ceil(targets.posteriors.lengths.double() * ratio - 1e-6).long().cpu()
    rows = [
        _frames_of(one, int(length), targets.vocabulary, tokenizer, frame_shift_s, temperature, case)
        for one, length in zip(targets.nbest, lengths.tolist(), strict=True)
    ]
    width = max((len(frame) for row in rows for frame in row), default=1) or 1
    shape = (len(rows), max((len(row) for row in rows), default=0), width)
    ids, probs = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
    tail = torch.full(shape[:2], -torch.inf)
    for b, row in enumerate(rows):
        for t, frame in enumerate(row):
            for k, (token, share) in enumerate(frame.items()):
                ids[b, t, k], probs[b, t, k] = token, share
            if not frame:
                tail[b, t] = 0.0
    return TopK(ids, probs.log(), tail, lengths, frame_shift_s, len(tokenizer))


def _frames_of(
    nbest: NBest,
    length: int,
    vocabulary: Vocabulary,
    tokenizer: Tokenizer,
    frame_shift_s: float,
    temperature: float,
    case: Case,
) -> list[dict[int, float]]:
    """For each frame the probability of each student token."""
    placed = []
    for hypothesis in nbest:
        spikes = _spikes(hypothesis, vocabulary, tokenizer, frame_shift_s, case)
        frames = None if spikes is None else _spread([f for f, _, _ in spikes], [v for _, v, _ in spikes], length)
        if spikes is not None and frames is not None:
            placed.append((hypothesis.score, [(f, v, c) for f, (_, v, c) in zip(frames, spikes, strict=True)]))
    if not placed:
        return [{} for _ in range(length)]
    weights = (torch.tensor([score for score, _ in placed], dtype=torch.float64) / temperature).softmax(0).tolist()
    blank = tokenizer.vocabulary.blank_id
    result: list[dict[int, float]] = [{blank: 1.0} for _ in range(length)]
    for weight, (_, spikes) in zip(weights, placed, strict=True):
        for frame, token, sure in spikes:
            result[frame][token] = result[frame].get(token, 0.0) + weight * sure
            result[frame][blank] -= weight * sure
    return [{token: share for token, share in frame.items() if share > 1e-6} for frame in result]


def _spikes(
    hypothesis: Hypothesis, vocabulary: Vocabulary, tokenizer: Tokenizer, frame_shift_s: float, case: Case
) -> list[tuple[int, int, float]] | None:
    """Frame, student token and confidence of each token of one hypothesis, before they are moved apart."""
    if not hypothesis.tokens:
        return []
    if hypothesis.times_s is None:
        return None
    times = _character_times(hypothesis, vocabulary)
    text = cased("".join(character for character, _, _ in times), case)
    tokens = tokenizer.encode(text)
    if len(text) != len(times) or not tokens:  # some letters change in number with their case
        return None
    ends = _token_ends(tokens, tokenizer, text)
    return [
        (round(times[end][1] / frame_shift_s), token, times[end][2]) for token, end in zip(tokens, ends, strict=True)
    ]


def _character_times(hypothesis: Hypothesis, vocabulary: Vocabulary) -> list[tuple[str, float, float]]:
    """Each character of the transcript with its time and the confidence of its token; words one space apart."""
    assert hypothesis.times_s is not None
    sure = hypothesis.confidences or (1.0,) * len(hypothesis.tokens)
    result: list[tuple[str, float, float]] = []
    nexts = itertools.chain(hypothesis.times_s[1:], [None])
    for token, start, following, share in zip(hypothesis.tokens, hypothesis.times_s, nexts, sure, strict=True):
        piece = vocabulary.tokens[token].replace("▁", " ").replace("|", " ")
        step = 0.04 if following is None else max(0.0, following - start) / len(piece)
        for place, character in enumerate(piece):
            if character == " " and (not result or result[-1][0] == " "):
                continue
            result.append((character, start + place * step, share))
    while result and result[-1][0] == " ":
        result.pop()
    return result


def _token_ends(tokens: Sequence[int], tokenizer: Tokenizer, text: str) -> list[int]:
    """Place in ``text`` of each token's last character."""
    ends, place = [], -1 if tokenizer.vocabulary.tokens[tokens[0]].startswith("▁") else 0
    for token in tokens:
        place += 1 if token == UNKNOWN_ID else len(tokenizer.vocabulary.tokens[token])
        ends.append(min(max(place - 1, 0), len(text) - 1))
    return ends


def _spread(frames: Sequence[int], tokens: Sequence[int], length: int) -> list[int] | None:
    """Frames moved apart so that each token has its own, and a blank stands between equal ones; ``None`` if they do not fit."""
    gaps = [0, *(2 if a == b else 1 for a, b in itertools.pairwise(tokens))]
    placed: list[int] = []
    for frame, gap in zip(frames, gaps, strict=False):
        placed.append(max(0, frame) if not placed else max(frame, placed[-1] + gap))
    latest = length - 1
    for place in range(len(placed) - 1, -1, -1):
        placed[place] = min(placed[place], latest)
        latest = placed[place] - gaps[place]
    return None if placed and placed[0] < 0 else placed


def cased(text: str, case: Case) -> str:
    """Text with its letters changed as ``targets.case`` says."""
    return text.upper() if case == "upper" else text.lower() if case == "lower" else text
