"""Ensembles against plain arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from asrkd.teachers.ensemble import Ensemble, on_slower_clock
from asrkd.types import Frames, Hypothesis, SpeechBatch, TeacherTargets, Vocabulary

VOCABULARY = Vocabulary(("<blank>", "a", "b"), 0)


@dataclass
class Member:
    """Says what it was given, whatever it hears."""

    log_probs: Tensor
    lengths: Tensor
    texts: tuple[Mapping[str, float], ...]
    vocabulary: Vocabulary = VOCABULARY
    frame_shift_s: float = 0.04
    sample_rate_hz: int = 16000
    identity: str = "member"

    def __call__(self, batch: SpeechBatch) -> TeacherTargets:
        nbest = tuple(tuple(Hypothesis((), text, score) for text, score in one.items()) for one in self.texts)
        return TeacherTargets(self.vocabulary, Frames(self.log_probs, self.lengths, self.frame_shift_s), nbest)


def member(seed: int, frames: int = 4, **changes: object) -> Member:
    log_probs = 3 * torch.randn(2, frames, 3, generator=torch.Generator().manual_seed(seed))
    texts = ({"a b": -1.0, "a": -2.0}, {"b": -0.5, "": -4.0})
    made = Member(log_probs.log_softmax(-1), torch.tensor([frames, frames - 1]), texts)
    return replace(made, **changes)  # type: ignore[arg-type]


BATCH = SpeechBatch(("x", "y"), torch.zeros(2, 640 * 4), torch.tensor([2560, 1920]), 16000, ("a b", ""))


def test_means_of_probabilities_and_of_logs() -> None:
    one, two = member(1), member(2)
    p, q = one.log_probs.exp().numpy(), two.log_probs.exp().numpy()
    mean = Ensemble([one, two])(BATCH).posteriors
    np.testing.assert_allclose(mean.values.exp(), (p + q) / 2, atol=1e-6)  # type: ignore[union-attr]
    weighted = Ensemble([one, two], weighting="fixed", weights=[3, 1])(BATCH).posteriors
    np.testing.assert_allclose(weighted.values.exp(), 0.75 * p + 0.25 * q, atol=1e-6)  # type: ignore[union-attr]
    product = np.sqrt(p * q)
    logs = Ensemble([one, two], combine="log_mean")(BATCH).posteriors
    np.testing.assert_allclose(logs.values.exp(), product / product.sum(-1, keepdims=True), atol=1e-6)  # type: ignore[union-attr]


def test_the_best_by_error_utterance_by_utterance() -> None:
    wrong = member(1, texts=({"b b": -0.1}, {"b": -0.1}))
    right = member(2)
    sure = right.log_probs.clone()
    sure[1] = torch.tensor([[0.0, 50.0, 0.0]]).log_softmax(-1)  # no reference there: the surer one
    right.log_probs = sure
    said = Ensemble([wrong, right], combine="best", weighting="error")(BATCH)
    assert torch.equal(said.posteriors.values, right.log_probs)  # type: ignore[union-attr]
    assert said.nbest is not None and said.nbest[0][0].text == "a b"
    soft = Ensemble([wrong, right], weighting="error", temperature=0.5)
    weights = soft._weights([wrong(BATCH), right(BATCH)], BATCH)[:, 0]
    expected = np.exp([-0.5 / 0.5, 0.0])  # one word of two is wrong
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-5)


def test_lists_are_merged_by_transcript() -> None:
    one, two = member(1, texts=({"a": 0.0, "b": 0.0}, {"": 0.0})), member(2, texts=({"b": 0.0, "c": 0.0}, {"": 0.0}))
    nbest = Ensemble([one, two])(BATCH).nbest
    assert nbest is not None and [h.text for h in nbest[0]] == ["b", "a"]
    assert np.exp([h.score for h in nbest[0]]) == pytest.approx([0.5, 0.25])


def test_members_of_other_orders_and_clocks() -> None:
    one = member(1)
    order = [2, 0, 1]  # their ids of (blank, a, b) are 1, 2, 0
    other = member(1, log_probs=one.log_probs[..., order], vocabulary=Vocabulary(("b", "-", "a"), 1))
    same = Ensemble([one, other])(BATCH).posteriors
    torch.testing.assert_close(same.values, one.log_probs)  # type: ignore[union-attr]
    fast = member(3, frames=8, frame_shift_s=0.02, lengths=torch.tensor([8, 5]))
    both = Ensemble([one, fast])
    assert both.frame_shift_s == 0.04
    slowed = on_slower_clock(fast(BATCH).posteriors, 0.04, 0)  # type: ignore[arg-type]
    assert slowed.lengths.tolist() == [4, 3]
    for row, length in enumerate([8, 5]):
        for group in range(int(slowed.lengths[row])):
            frames = fast.log_probs[row, 2 * group : min(2 * group + 2, length)]
            assert torch.equal(slowed.values[row, group], frames[frames[:, 0].argmin()])
    expected = (one.log_probs.exp() + slowed.values.exp()) / 2
    torch.testing.assert_close(both(BATCH).posteriors.values.exp()[0], expected[0])  # type: ignore[union-attr]


def test_what_does_not_fit_is_refused() -> None:
    one = member(1)
    for arguments, problem in (
        ({"members": [one]}, "at least 2"),
        ({"members": [one, member(2, frame_shift_s=0.03)]}, "frame shift: expected a whole part of 0.04"),
        ({"members": [one, member(2, vocabulary=Vocabulary(("-", "a", "c"), 0))]}, "the student has no 'c'"),
        ({"members": [one, one], "combine": "best"}, "best needs weighting"),
        ({"members": [one, one], "weights": [1, 2]}, "weights: expected with weighting fixed"),
        ({"members": [one, one], "weights": [1], "weighting": "fixed"}, "weights: expected 2 numbers"),
    ):
        with pytest.raises(ValueError, match=problem):
            Ensemble(**arguments)  # type: ignore[arg-type]
    assert Ensemble([one, one]).identity != Ensemble([one, one], combine="log_mean").identity


def test_members_of_any_tokens_by_text() -> None:
    one = member(1, texts=({"a b": -1.0, "a": -1.0}, {"b": -1.0}))
    other = member(2, vocabulary=Vocabulary(("<pad>", "A", "▁B"), 0), frame_shift_s=0.03, texts=({"a b": -3.0}, {}))
    with pytest.raises(ValueError, match="or by_text: true"):
        Ensemble([one, other])
    both = Ensemble([one, other], by_text=True)
    said = both(BATCH)
    assert len(both.vocabulary) == 1 and said.posteriors is None and said.nbest is not None
    found = {h.text: np.exp(h.score) for h in said.nbest[0]}
    assert found == pytest.approx({"a b": 0.5 * 0.5 + 0.5, "a": 0.25})
    assert [h.text for h in said.nbest[1]] == ["b"] and said.nbest[0][0].times_s is None
    # "a b" by both, and 1/3 nats a character against 1: the first is surer; nothing said is no transcript at all.
    sure = Ensemble([one, other], weighting="confidence", combine="best", by_text=True)(BATCH).nbest
    assert sure is not None and [[h.text for h in row] for row in sure] == [["a b", "a"], ["b"]]

    class Silent(Member):
        def __call__(self, batch: SpeechBatch) -> TeacherTargets:
            return replace(super().__call__(batch), nbest=None)

    silent = Silent(one.log_probs, one.lengths, one.texts)
    with pytest.raises(ValueError, match=r"members\.1: expected N-best lists"):
        Ensemble([one, silent], by_text=True)(BATCH)
    assert Ensemble([one, one], by_text=True).identity != Ensemble([one, one]).identity
