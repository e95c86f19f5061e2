"""Decoder distillation, self-distillation and diagnostics against plain loops."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from asrkd.losses import DecoderKL, attention_ce, consistency, decoder_kl, diagnose, dual_mode, nbest_attention
from asrkd.types import Frames, Hypothesis, TopK

SHIFT_S = 0.04


def kl(p: Tensor, q: Tensor) -> float:
    return float((p * (p / q).log()).sum())


def test_decoder_kl_equals_loops_whatever_the_padding() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 5, dtype=torch.float64), torch.randn(2, 6, 5, dtype=torch.float64)
    expected = 0.0
    for b, length in enumerate([4, 2]):
        for u in range(length):
            expected += 4 * kl((teacher[b, u] / 2).softmax(-1), (student[b, u] / 2).softmax(-1))
    rows = torch.tensor([4, 2])
    found = decoder_kl(student, rows, teacher.log_softmax(-1), temperature=2.0)
    assert float(found) == pytest.approx(expected)
    assert float(DecoderKL(2.0)(student, rows, teacher.log_softmax(-1))) == pytest.approx(expected)
    with pytest.raises(ValueError, match="teacher: expected log-probabilities"):
        decoder_kl(student, rows, teacher)


def test_nbest_attention_is_the_weighted_sum_of_single_losses() -> None:
    torch.manual_seed(1)
    encoded = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    mix = torch.randn(6, 7, 7, dtype=torch.float64)

    def decode(rows: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(tokens.shape[1] + 1)
        return torch.einsum("md,udv->muv", encoded[rows], mix[steps])

    nbest = (
        (Hypothesis((4, 5), "", -1.0), Hypothesis((4,), "", -2.0)),
        (),
        (Hypothesis((6, 6, 4), "", -0.1),),
    )
    found = nbest_attention(decode, nbest, end_id=3, device=encoded.device, sequence_temperature=0.5)
    expected = torch.zeros((), dtype=torch.float64)
    for b, hypotheses in enumerate(nbest):
        weights = [math.exp(h.score / 0.5) for h in hypotheses]
        for h, w in zip(hypotheses, weights, strict=True):
            tokens, lengths = torch.tensor([h.tokens]), torch.tensor([len(h.tokens)])
            one = attention_ce(decode(torch.tensor([b]), tokens, lengths), tokens, lengths, end_id=3)
            expected = expected + w / sum(weights) * one
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, encoded)[0] for value in (found, expected)))


def test_consistency_is_symmetric_and_stops_each_others_gradient() -> None:
    torch.manual_seed(2)
    views = [torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    lengths = [5, 3]
    expected = 0.0
    for b, length in enumerate(lengths):
        for t in range(length):
            p, q = (view[b, t].detach().softmax(-1) for view in views)
            expected += 0.5 * (kl(p, q) + kl(q, p))
    found = consistency(views[0], views[1], torch.tensor(lengths), blank_id=0)
    assert float(found.detach()) == pytest.approx(expected)
    gradients = torch.autograd.grad(found, views)
    probs = [view.detach().softmax(-1) for view in views]
    inside = (torch.arange(5) < torch.tensor(lengths)[:, None]).unsqueeze(2)
    torch.testing.assert_close(gradients[0], 0.5 * (probs[0] - probs[1]) * inside)
    torch.testing.assert_close(gradients[1], 0.5 * (probs[1] - probs[0]) * inside)
    with pytest.raises(ValueError, match="other_logits: expected shape"):
        consistency(views[0], views[1][:, :4], torch.tensor(lengths), blank_id=0)


def test_dual_mode_teaches_the_streaming_mode_alone_and_may_lag() -> None:
    torch.manual_seed(3)
    stream, full = (torch.randn(1, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    length = torch.tensor([6])
    found = dual_mode(stream, length, full, blank_id=0, student_frame_shift_s=SHIFT_S, delay_ms=80)
    expected = sum(kl(full[0, t].detach().softmax(-1), stream[0, t + 2].detach().softmax(-1)) for t in range(4))
    assert float(found.detach()) == pytest.approx(expected)
    of_stream, of_full = torch.autograd.grad(found, (stream, full), allow_unused=True)
    assert of_stream.any() and of_full is None


def spikes(frames: int, vocab: int, places: dict[int, int]) -> Tensor:
    logits = torch.zeros(frames, vocab)
    logits[:, 0] = 6.0
    for frame, token in places.items():
        logits[frame, 0], logits[frame, token] = 0.0, 6.0
    return logits


@pytest.mark.parametrize("stored", [False, True])
def test_diagnostics_of_known_spikes(stored: bool) -> None:
    teacher = torch.stack([spikes(12, 4, {1: 1, 4: 2, 8: 3}), spikes(12, 4, {2: 1, 3: 1})])
    student = torch.stack([spikes(12, 4, {2: 1, 6: 2}), spikes(12, 4, {2: 1, 3: 1, 11: 3})])
    lengths = torch.tensor([12, 6])
    log_probs = teacher.log_softmax(-1)
    posteriors: Frames | TopK = Frames(log_probs, lengths, SHIFT_S)
    if stored:
        values, ids = log_probs.topk(4, -1)
        posteriors = TopK(ids, values, torch.full((2, 12), -math.inf), lengths, SHIFT_S, 4)
    found = diagnose(student, lengths, posteriors, blank_id=0, student_frame_shift_s=SHIFT_S)
    assert found.offsets_frames == Counter({1: 1, 2: 1, 0: 1})
    assert found.unmatched_spikes == 1
    assert found.frames == 18
    assert found.histogram_ms() == {0.0: 1, 40.0: 1, 80.0: 1}
    # Teacher spikes in 5 valid frames; the student agrees in frames 2 and 3 of the second utterance.
    assert (found.spike_frames, found.agreeing_frames) == (5, 2)
    expected = sum(float(teacher[b, t].softmax(-1)[0]) for b, length in enumerate([12, 6]) for t in range(length))
    assert found.teacher_blank == pytest.approx(expected, rel=1e-5)
    entropy = -sum(float(p) * math.log(float(p)) for p in teacher[0, 0].softmax(-1))
    assert found.summary()["teacher_entropy"] == pytest.approx(entropy, rel=1e-4)  # all rows are permutations
    assert found.summary()["spike_offset_ms"] == pytest.approx(40.0)
    both = found + found
    assert both.frames == 36 and both.summary() == pytest.approx(found.summary())
