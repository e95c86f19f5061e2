"""Greedy CTC decoding against a slow walk over the frames."""

from __future__ import annotations

import itertools

import pytest
import torch

from asrkd.decoding.ctc import greedy
from asrkd.types import Frames, Vocabulary


def _slow(log_probs: torch.Tensor, blank_id: int) -> tuple[list[int], list[int], list[float]]:
    ids = log_probs.argmax(-1).tolist()
    tokens, first, peaks, start = [], [], [], 0
    for token, run in itertools.groupby(ids):
        length = len(list(run))
        if token != blank_id:
            tokens.append(token)
            first.append(start)
            peaks.append(float(log_probs[start : start + length, token].exp().max()))
        start += length
    return tokens, first, peaks


@pytest.mark.parametrize("blank_id", [0, 2, 4])
def test_equals_slow_walk_with_blank_anywhere(blank_id: int) -> None:
    torch.manual_seed(blank_id)
    lengths = torch.tensor([40, 17, 1, 0])
    values = (3 * torch.randn(4, 40, 5)).log_softmax(-1)
    found = greedy(Frames(values, lengths, 0.04), Vocabulary(tuple("abcde"), blank_id))
    for row, decoded in enumerate(found):
        valid = values[row, : lengths[row]]
        tokens, first, peaks = _slow(valid, blank_id)
        assert list(decoded.tokens) == tokens
        assert decoded.times_s == pytest.approx([0.04 * frame for frame in first])
        assert decoded.confidences == pytest.approx(peaks, rel=1e-5)
        assert decoded.score == pytest.approx(float(valid.max(-1).values.sum()), rel=1e-5)
        assert all(end > start for start, end in zip(decoded.times_s, decoded.ends_s, strict=True))


def test_repeated_token_needs_a_blank_between() -> None:
    ids = torch.tensor([[1, 1, 0, 1, 2, 2]])
    values = torch.nn.functional.one_hot(ids, 3).float().mul(20).log_softmax(-1)
    (decoded,) = greedy(Frames(values, torch.tensor([6]), 0.04), Vocabulary(("-", "a", "b")))
    assert decoded.tokens == (1, 1, 2)
    assert decoded.times_s == pytest.approx((0.0, 0.12, 0.16))
    assert decoded.ends_s == pytest.approx((0.08, 0.16, 0.24))


def test_padding_does_not_matter() -> None:
    torch.manual_seed(0)
    values = torch.randn(1, 9, 4).log_softmax(-1)
    padded = torch.cat((values, torch.full((1, 5, 4), float("nan"))), dim=1)
    vocabulary = Vocabulary(tuple("abcd"))
    lengths = torch.tensor([9])
    assert greedy(Frames(values, lengths, 0.04), vocabulary) == greedy(Frames(padded, lengths, 0.04), vocabulary)


def test_wrong_vocabulary_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected 3 tokens .* found 4"):
        greedy(Frames(torch.zeros(1, 2, 4), torch.tensor([2]), 0.04), Vocabulary(tuple("abc")))
