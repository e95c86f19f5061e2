"""Vocabularies that match, and those that meet through text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from asrkd.data.text import Tokenizer, train_tokenizer
from asrkd.decoding.ctc import greedy
from asrkd.losses.frame import frame_kl
from asrkd.teachers.fit import FittedStore, FittedTeacher, retokenised, time_aligned
from asrkd.teachers.vocabulary import match, renumber
from asrkd.types import Frames, Hypothesis, SpeechBatch, TeacherTargets, TopK, Vocabulary

TEXTS = ["ONE TWO THREE FOUR FIVE", "SIX SEVEN EIGHT NINE TEN", "TWENTY THIRTY FORTY FIFTY SIXTY"] * 10
CHARACTERS = train_tokenizer(TEXTS, kind="char")
PIECES = train_tokenizer(TEXTS, kind="sentencepiece", size=40)
WAV2VEC2 = Vocabulary(("-", "|", *sorted(set("".join(TEXTS)) - {" "}), "<pad>"), 0)


def spelt(text: str, vocabulary: Vocabulary, frames: int = 60, shift_s: float = 0.04) -> tuple[Frames, Hypothesis]:
    """Posteriors with a spike for each character at every second frame, and the hypothesis they spell."""
    tokens = [vocabulary.tokens.index("|" if c == " " else c) for c in text]
    logits = torch.zeros(1, frames, len(vocabulary))
    logits[..., vocabulary.blank_id] = 10
    for place, token in enumerate(tokens):
        logits[0, 3 + 2 * place, token] = 20
    times = tuple(shift_s * (3 + 2 * place) for place in range(len(tokens)))
    hypothesis = Hypothesis(tuple(tokens), text, -1.0, times, (1.0,) * len(tokens))
    return Frames(logits.log_softmax(-1), torch.tensor([frames]), shift_s), hypothesis


def dense(sparse: TopK) -> Frames:
    values = torch.full((*sparse.ids.shape[:2], sparse.vocab_size), -1e4)
    values.scatter_reduce_(2, sparse.ids, sparse.log_probs.clamp(min=-1e4), "amax")
    return Frames(values, sparse.lengths, sparse.frame_shift_s)


def text_of(posteriors: Frames, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(one.tokens) for one in greedy(posteriors, tokenizer.vocabulary)]


def test_identity_is_of_tokens_and_order_not_of_size() -> None:
    here = Vocabulary(("<blank>", "▁", "a", "b"), 0)
    assert match(here, here).relation == "same"
    assert match(Vocabulary(("a", "-", "|", "b"), 1), here).student_ids == (2, 0, 1, 3)
    assert match(Vocabulary(("a", "-", "|", "b"), 1), here).relation == "permuted"
    contained = match(Vocabulary(("<pad>", "a", "<s>", "b"), 0), here)
    assert contained.relation == "contained" and contained.student_ids == (0, 2, -1, 3)
    other = match(Vocabulary(("<blank>", "▁", "a", "c"), 0), here)
    assert other.relation == "different" and "no 'c' (1 of the teacher's 4 tokens)" in other.reason
    with pytest.raises(ValueError, match="no 'c'"):
        renumber(TeacherTargets(here), here, other)


@pytest.mark.parametrize("stored", [False, True])
def test_renumbering_keeps_what_was_said(stored: bool) -> None:
    posteriors, hypothesis = spelt("TEN SIX", WAV2VEC2)
    values, ids = posteriors.values.topk(5, -1)
    tail = torch.log1p(-values.exp().sum(-1).clamp(max=1 - 1e-7))
    sparse = TopK(ids, values, tail, posteriors.lengths, 0.04, len(WAV2VEC2))
    found = match(WAV2VEC2, CHARACTERS.vocabulary)
    assert found.relation == "contained"  # <pad> is no token of the student's
    targets = TeacherTargets(WAV2VEC2, sparse if stored else posteriors, ((hypothesis,),))
    own = renumber(targets, CHARACTERS.vocabulary, found)
    assert own.nbest is not None and CHARACTERS.decode(own.nbest[0][0].tokens) == "TEN SIX"
    if isinstance(own.posteriors, TopK):
        mass = own.posteriors.log_probs.exp().sum(-1) + own.posteriors.tail_log_prob.exp()
        own_dense = dense(own.posteriors)
    else:
        assert own.posteriors is not None
        own_dense, mass = own.posteriors, own.posteriors.values.exp().sum(-1)
    torch.testing.assert_close(mass, torch.ones_like(mass))
    assert text_of(own_dense, CHARACTERS) == ["TEN SIX"]
    assert own_dense.values.shape[2] == len(CHARACTERS)


class Spelling:
    """A teacher over wav2vec 2.0's characters with letters of its own, and a store of what it says."""

    identity, sample_rate_hz, frame_shift_s = "spelling", 16000, 0.02
    vocabulary = Vocabulary((*WAV2VEC2.tokens, "ß"), 0)

    def __call__(self, batch: SpeechBatch) -> TeacherTargets:
        return self.read(batch.texts)

    def read(self, ids: Sequence[str]) -> TeacherTargets:
        said = [spelt(text, self.vocabulary, frames=120, shift_s=0.02) for text in ids]
        posteriors = Frames(torch.cat([p.values for p, _ in said]), torch.full((len(said),), 120), 0.02)
        return TeacherTargets(self.vocabulary, posteriors, tuple((h,) for _, h in said))


@pytest.mark.parametrize("tokenizer", [CHARACTERS, PIECES], ids=["characters", "sentencepiece"])
def test_time_aligned_text_spells_the_same_in_the_students_tokens(tokenizer: Tokenizer) -> None:
    texts = ("TWENTY THREE", "SIX SEVEN EIGHT", "FEEX", "TEN")
    fitted = FittedStore(Spelling(), tokenizer, 0.04)
    assert fitted.found.relation == "different"
    targets = fitted.read(texts)
    assert isinstance(targets.posteriors, TopK) and targets.posteriors.frame_shift_s == 0.04
    assert targets.posteriors.lengths.tolist() == [60] * 4
    assert text_of(dense(targets.posteriors), tokenizer) == list(texts)
    assert targets.nbest is not None and [tokenizer.decode(h.tokens) for (h,) in targets.nbest] == list(texts)
    # Nothing is said before its last character was heard: the student's tokens end no earlier than the teacher's.
    spoken = (targets.posteriors.ids[0, :, :2] != 0).any(-1).nonzero().flatten() * 0.04
    assert float(spoken[-1]) >= 0.02 * (3 + 2 * (len(texts[0]) - 1)) - 0.02
    batch = SpeechBatch(("a",) * 4, torch.zeros(4, 9), torch.full((4,), 9), 16000, texts)
    live = FittedTeacher(Spelling(), tokenizer, 0.04)(batch)
    assert torch.equal(live.posteriors.ids, targets.posteriors.ids)  # type: ignore[union-attr]


def test_a_student_trains_on_time_aligned_targets() -> None:
    targets = FittedStore(Spelling(), PIECES, 0.04).read(("SIXTY FIVE", "ONE TWO"))
    assert isinstance(targets.posteriors, TopK)
    logits = torch.zeros(2, 60, len(PIECES), requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.5)
    for _ in range(40):
        loss = frame_kl(logits, targets.posteriors.lengths, targets.posteriors, blank_id=0, student_frame_shift_s=0.04)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    final = Frames(logits.detach().log_softmax(-1), targets.posteriors.lengths, 0.04)
    assert text_of(final, PIECES) == ["SIXTY FIVE", "ONE TWO"]


def test_several_hypotheses_make_soft_targets() -> None:
    posteriors, first = spelt("TEN", WAV2VEC2)
    _, second = spelt("SIX", WAV2VEC2)
    aligned = time_aligned(TeacherTargets(WAV2VEC2, posteriors, ((first, second),)), CHARACTERS, 0.04)
    mass = aligned.log_probs.exp().sum(-1)
    torch.testing.assert_close(mass, torch.ones_like(mass))
    names = [CHARACTERS.vocabulary.tokens[i] for i in aligned.ids[0, 3].tolist()]
    at_first = dict(zip(names, aligned.log_probs[0, 3].exp().tolist(), strict=True))
    assert at_first["T"] == pytest.approx(0.5, abs=1e-3) and at_first["S"] == pytest.approx(0.5, abs=1e-3)


def test_what_does_not_fit_counts_for_nothing() -> None:
    posteriors, hypothesis = spelt("TWENTY", WAV2VEC2)
    short = Frames(posteriors.values[:, :4], torch.tensor([4]), 0.04)
    aligned = time_aligned(TeacherTargets(WAV2VEC2, short, ((hypothesis,),)), CHARACTERS, 0.04)
    assert torch.isneginf(aligned.log_probs).all() and (aligned.tail_log_prob == 0).all()
    logits = torch.randn(1, 4, len(CHARACTERS), generator=torch.Generator().manual_seed(0))
    assert float(frame_kl(logits, torch.tensor([4]), aligned, blank_id=0, student_frame_shift_s=0.04)) == pytest.approx(
        0.0, abs=1e-4
    )
    silent = TeacherTargets(WAV2VEC2, short, ((Hypothesis((), "", 0.0),),))
    assert (time_aligned(silent, CHARACTERS, 0.04).ids == 0).all()
    untimed = TeacherTargets(WAV2VEC2, posteriors, ((Hypothesis(hypothesis.tokens, "TWENTY"),),))
    with pytest.raises(ValueError, match="expected token times"):
        time_aligned(untimed, CHARACTERS, 0.04)


def test_transcripts_change_case_and_tokens() -> None:
    (one,) = retokenised((Hypothesis((7, 7), "twenty one", -2.0),), PIECES, case="upper")
    assert PIECES.decode(one.tokens) == "TWENTY ONE" and one.score == -2.0


@pytest.mark.parametrize("tokenizer", [CHARACTERS, PIECES], ids=["characters", "pieces"])
def test_what_the_student_cannot_write_is_left_out(tokenizer: object) -> None:
    (one,) = retokenised((Hypothesis((), "One, two… THREE.", 0.0),), tokenizer, case="upper")  # type: ignore[arg-type]
    assert tokenizer.decode(one.tokens) == "ONE TWO THREE"  # type: ignore[attr-defined]
