"""Prefix beam search against enumeration of every path, torch's CTC, and torchaudio's forced alignment."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torchaudio

from asrkd.decoding.ctc import greedy
from asrkd.decoding.prefix_beam import PrefixBeam, align, prefix_beam_search
from asrkd.types import Frames, Vocabulary


def _enumerate(log_probs: torch.Tensor, blank_id: int) -> dict[tuple[int, ...], float]:
    """Log-probability of every token sequence, by adding up every single path."""
    num_frames, size = log_probs.shape
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(size), repeat=num_frames):
        tokens = tuple(token for token, _ in itertools.groupby(path) if token != blank_id)
        score = float(sum(log_probs[t, token] for t, token in enumerate(path)))
        found[tokens] = float(np.logaddexp(found.get(tokens, -np.inf), score))
    return found


@pytest.mark.parametrize(("num_frames", "size", "blank_id"), [(5, 3, 0), (5, 3, 1), (4, 4, 3), (1, 4, 2)])
def test_wide_beam_equals_enumeration(num_frames: int, size: int, blank_id: int) -> None:
    torch.manual_seed(num_frames + blank_id)
    for sharpness in (0.5, 3.0):
        values = (sharpness * torch.randn(1, num_frames, size)).double().log_softmax(-1)
        truth = _enumerate(values[0], blank_id)
        (nbest,) = prefix_beam_search(
            Frames(values, torch.tensor([num_frames]), 0.04),
            Vocabulary(tuple("abcd"[:size]), blank_id),
            beam=500,
            n=500,
        )
        assert {hypothesis.tokens for hypothesis in nbest} == set(truth)
        assert [h.score for h in nbest] == pytest.approx([truth[h.tokens] for h in nbest], abs=1e-5)
        assert [h.score for h in nbest] == sorted((h.score for h in nbest), reverse=True)


def test_narrow_beam_never_counts_a_path_twice() -> None:
    torch.manual_seed(0)
    values = (1.5 * torch.randn(6, 40, 12)).log_softmax(-1)
    lengths = torch.tensor([40, 33, 20, 9, 2, 0])
    vocabulary = Vocabulary(tuple("abcdefghijkl"), blank_id=5)
    lists = prefix_beam_search(Frames(values, lengths, 0.04), vocabulary, beam=8, n=8, tokens_per_frame=6)
    for row, nbest in enumerate(lists):
        length = int(lengths[row])
        assert len({hypothesis.tokens for hypothesis in nbest}) == len(nbest)
        for hypothesis in nbest:
            exact = _ctc_log_prob(values[row, :length], hypothesis.tokens, 5)
            assert hypothesis.score <= exact + 1e-4
        best = greedy(Frames(values[row : row + 1], lengths[row : row + 1], 0.04), vocabulary)[0]
        assert nbest[0].score >= best.score - 1e-4
    assert lists[5][0].tokens == ()


def _ctc_log_prob(log_probs: torch.Tensor, tokens: tuple[int, ...], blank_id: int) -> float:
    if not len(log_probs):
        return 0.0 if not tokens else float("-inf")
    loss = torch.nn.functional.ctc_loss(
        log_probs[:, None].double(),
        torch.tensor([tokens], dtype=torch.long).reshape(1, -1),
        torch.tensor([len(log_probs)]),
        torch.tensor([len(tokens)]),
        blank=blank_id,
        reduction="sum",
    )
    return -float(loss)


def test_wide_beam_gives_torchs_ctc_probability() -> None:
    torch.manual_seed(1)
    values = (4.0 * torch.randn(1, 20, 12)).log_softmax(-1)
    (nbest,) = prefix_beam_search(
        Frames(values, torch.tensor([20]), 0.04), Vocabulary(tuple(map(str, range(12)))), beam=20000, n=3
    )
    for hypothesis in nbest:
        assert hypothesis.score == pytest.approx(_ctc_log_prob(values[0], hypothesis.tokens, 0), abs=1e-3)


def test_frame_by_frame_equals_whole() -> None:
    torch.manual_seed(2)
    values = (2.0 * torch.randn(50, 10)).log_softmax(-1).numpy()
    vocabulary = Vocabulary(tuple("abcdefghij"))
    whole, pieces = PrefixBeam(vocabulary, 6, 5), PrefixBeam(vocabulary, 6, 5)
    whole.advance(values)
    for start, stop in ((0, 1), (1, 8), (8, 8), (8, 31), (31, 50)):
        pieces.advance(values[start:stop])
    assert whole.hypotheses(6) == pieces.hypotheses(6)


def test_times_equal_torchaudios_forced_alignment() -> None:
    torch.manual_seed(3)
    for blank_id in (0, 4):
        values = (3.0 * torch.randn(1, 30, 5)).log_softmax(-1)
        tokens = (1, 1, 2, 3, 2)
        path, _ = torchaudio.functional.forced_align(values, torch.tensor([tokens], dtype=torch.int32), blank=blank_id)
        expected = greedy(
            Frames(
                torch.nn.functional.one_hot(path.long(), 5).float().mul(50).log_softmax(-1), torch.tensor([30]), 0.04
            ),
            Vocabulary(tuple("abcde"), blank_id),
        )[0]
        found = align(values[0].numpy(), tokens, 0.0, blank_id, 0.04)
        assert found.tokens == expected.tokens
        assert found.times_s == pytest.approx(expected.times_s)
        assert found.ends_s == pytest.approx(expected.ends_s)
        assert all(0.0 <= c <= 1.0 for c in found.confidences)


def test_tokens_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 4 frames for 3 tokens, found 3"):
        align(np.zeros((3, 3), dtype=np.float32), (1, 1, 2), 0.0, 0, 0.04)
    with pytest.raises(ValueError, match="beam: expected at least 1, found 0"):
        PrefixBeam(Vocabulary(("-", "a")), beam=0)


def test_impossible_tokens_are_never_taken() -> None:
    values = torch.full((1, 6, 4), float("-inf"))
    values[..., 0] = 0.0
    (nbest,) = prefix_beam_search(Frames(values, torch.tensor([6]), 0.04), Vocabulary(tuple("abcd")), beam=4, n=4)
    assert [hypothesis.tokens for hypothesis in nbest] == [()]
    assert nbest[0].score == pytest.approx(0.0)
