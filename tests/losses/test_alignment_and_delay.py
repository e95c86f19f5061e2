"""Alignments and delays against enumeration of all CTC paths."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from asrkd.losses import (
    alignment_kl,
    alignment_posteriors,
    ctc,
    delay_penalised_ctc,
    estimate_delay_ms,
    frame_kl,
    guided_ctc,
)
from asrkd.losses.lattice import Transcripts, column_log_probs, lattice
from asrkd.types import Frames, TopK

SHIFT_S = 0.04
OPTIONS = {"blank_id": 0, "student_frame_shift_s": SHIFT_S}


def paths(frames: int, vocab: int, labels: tuple[int, ...], blank_id: int) -> list[tuple[int, ...]]:
    """All frame-wise readings that collapse to ``labels``."""
    return [
        path
        for path in itertools.product(range(vocab), repeat=frames)
        if tuple(k for k, _ in itertools.groupby(path) if k != blank_id) == labels
    ]


def slow_occupancies(log_probs: torch.Tensor, labels: tuple[int, ...], blank_id: int) -> torch.Tensor:
    gamma, total = torch.zeros_like(log_probs), 0.0
    for path in paths(*log_probs.shape, labels, blank_id):
        weight = math.exp(sum(float(log_probs[t, v]) for t, v in enumerate(path)))
        total += weight
        for t, v in enumerate(path):
            gamma[t, v] += weight
    return gamma / total


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), blank_id=st.integers(0, 2), frames=st.integers(3, 5), size=st.integers(0, 2))
def test_alignment_posteriors_equal_enumeration(seed: int, blank_id: int, frames: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs = (2 * torch.randn(1, frames, 3, generator=generator, dtype=torch.float64)).log_softmax(-1)
    others = [v for v in range(3) if v != blank_id]
    labels = tuple(others[int(i)] for i in torch.randint(0, 2, (size,), generator=generator))
    tokens = torch.tensor([[*labels, 0]])
    teacher = Frames(log_probs, torch.tensor([frames]), SHIFT_S)
    found = alignment_posteriors(teacher, tokens, torch.tensor([size]), blank_id=blank_id, num_tokens=3)
    dense = torch.zeros(frames, 3, dtype=torch.float64).scatter_add_(1, found.ids[0], found.log_probs[0].exp())
    torch.testing.assert_close(dense, slow_occupancies(log_probs[0], labels, blank_id), atol=1e-9, rtol=1e-9)


def test_occupancies_equal_the_gradient_of_torchs_ctc() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 8, 6, dtype=torch.float64, requires_grad=True)
    tokens, lengths = torch.tensor([[1, 1, 2], [4, 5, 0], [3, 0, 0]]), torch.tensor([3, 2, 1])
    frames = torch.tensor([8, 7, 5])
    losses = F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), tokens, frames, lengths, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    transcripts = Transcripts.of_references(tokens, lengths, 0)
    columns = column_log_probs(logits.detach(), frames, transcripts.columns)
    found, occupancies, _ = lattice(columns, frames, transcripts)
    torch.testing.assert_close(found, losses.detach())
    # By the logits the gradient is softmax - γ.
    inside = (torch.arange(8) < frames[:, None]).unsqueeze(2)
    gamma = torch.where(inside, logits.detach().softmax(-1) - gradient, 0.0)
    ids = transcripts.columns.unsqueeze(1).expand(-1, 8, -1)
    dense = torch.zeros_like(gamma).scatter_add_(2, ids, occupancies)
    torch.testing.assert_close(dense, gamma)


def test_alignment_from_stored_posteriors_comes_near_the_dense_one() -> None:
    torch.manual_seed(1)
    lengths, tokens, token_lengths = torch.tensor([9, 6]), torch.tensor([[3, 4, 4], [7, 0, 0]]), torch.tensor([3, 1])
    scores = torch.randn(2, 9, 12, dtype=torch.float64)
    for row, frame, token in ((0, 1, 3), (0, 4, 4), (0, 7, 4), (1, 2, 7)):  # a teacher that hears what was said
        scores[row, frame, token] += 6
    scores[..., 0] += 4
    log_probs = scores.log_softmax(-1)
    dense = alignment_posteriors(Frames(log_probs, lengths, SHIFT_S), tokens, token_lengths, blank_id=0, num_tokens=12)
    errors = []
    for k in (12, 8, 4):
        values, ids = log_probs.topk(k, -1)
        tail = torch.log1p(-values.exp().sum(-1).clamp(max=1 - 1e-15))
        stored = TopK(ids, values, tail, lengths, SHIFT_S, 12)
        found = alignment_posteriors(stored, tokens, token_lengths, blank_id=0, num_tokens=12)
        errors.append(float((found.log_probs.exp() - dense.log_probs.exp()).abs()[:, :6].max()))
    assert errors[0] < 1e-9
    assert errors[0] < errors[1] < errors[2] < 0.1


def test_alignment_kl_is_frame_kl_from_the_occupancies_and_zero_there() -> None:
    torch.manual_seed(2)
    log_probs = torch.randn(1, 7, 5, dtype=torch.float64).log_softmax(-1)
    teacher = Frames(log_probs, torch.tensor([7]), SHIFT_S)
    tokens, token_lengths = torch.tensor([[2, 3]]), torch.tensor([2])
    gamma = slow_occupancies(log_probs[0], (2, 3), 0).clamp(min=1e-300).log().unsqueeze(0)
    student = torch.randn(1, 7, 5, dtype=torch.float64)
    length = torch.tensor([7])
    found = alignment_kl(student, length, teacher, tokens, token_lengths, delay_ms=40.0, **OPTIONS)  # type: ignore[arg-type]
    expected = frame_kl(student, length, Frames(gamma, length, SHIFT_S), delay_ms=40.0, **OPTIONS)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected)
    same = alignment_kl(gamma.clamp(min=-50), length, teacher, tokens, token_lengths, **OPTIONS)  # type: ignore[arg-type]
    assert float(same) == pytest.approx(0.0, abs=1e-9)


def test_transcripts_that_do_not_fit_say_nothing() -> None:
    teacher = Frames(torch.randn(1, 2, 5).log_softmax(-1), torch.tensor([2]), SHIFT_S)
    tokens, token_lengths = torch.tensor([[2, 3, 4]]), torch.tensor([3])
    student = torch.randn(1, 2, 5, requires_grad=True)
    loss = alignment_kl(student, torch.tensor([2]), teacher, tokens, token_lengths, **OPTIONS)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(loss, student)
    assert float(loss.detach()) == 0.0
    assert not gradient.any()


@pytest.mark.parametrize("scale", ["posterior", "log"])
def test_guided_ctc_equals_loops(scale: str) -> None:
    torch.manual_seed(3)
    guide = (3 * torch.randn(2, 8, 5, dtype=torch.float64)).log_softmax(-1)
    student = torch.randn(2, 9, 5, dtype=torch.float64)
    guide_lengths, lengths = [8, 5], [9, 6]
    expected = 0.0
    for b in range(2):
        for t in range(guide_lengths[b]):
            token = int(guide[b, t].argmax())
            if token != 0 and t + 2 < lengths[b]:
                p = float(student[b, t + 2].softmax(-1)[token])
                expected += 1 - p if scale == "posterior" else -math.log(p)
    target = Frames(guide, torch.tensor(guide_lengths), SHIFT_S)
    found = guided_ctc(student, torch.tensor(lengths), target, delay_ms=80, scale=scale, **OPTIONS)  # type: ignore[arg-type]
    assert float(found) == pytest.approx(expected)


def entries(path: tuple[int, ...], blank_id: int) -> list[int]:
    """Frames in which a label begins."""
    return [t for t, v in enumerate(path) if v != blank_id and (t == 0 or path[t - 1] != v)]


@pytest.mark.parametrize("labels", [(1, 2), (1, 1), (2,), ()])
def test_delay_penalised_ctc_equals_enumeration(labels: tuple[int, ...]) -> None:
    torch.manual_seed(4)
    logits = torch.randn(1, 6, 3, dtype=torch.float64, requires_grad=True)
    log_probs, frames = logits[0, :5].log_softmax(-1), 5
    weights = [
        sum(log_probs[t, v] for t, v in enumerate(path)) + sum(0.3 * ((frames - 1) / 2 - t) for t in entries(path, 0))
        for path in paths(frames, 3, labels, 0)
    ]
    expected = -torch.stack(weights).logsumexp(0)
    tokens, token_lengths = torch.tensor([[*labels, 0, 0]]), torch.tensor([len(labels)])
    found = delay_penalised_ctc(logits, torch.tensor([frames]), tokens, token_lengths, blank_id=0, penalty=0.3)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (found, expected)))
    plain = delay_penalised_ctc(logits, torch.tensor([frames]), tokens, token_lengths, blank_id=0, penalty=0.0)
    torch.testing.assert_close(plain, ctc(logits, torch.tensor([frames]), tokens, token_lengths, blank_id=0))


@pytest.mark.parametrize("delay", [0, 2, 3])
def test_the_delay_is_found_from_the_non_blank_mass(delay: int) -> None:
    torch.manual_seed(5)
    teacher = (6 * torch.randn(3, 30, 5)).log_softmax(-1)
    late = torch.zeros(3, 30, 5)
    late[..., 0] = 5.0  # blank until the first frame arrives
    late[:, delay:] = teacher[:, : 30 - delay]
    lengths = torch.tensor([30, 25, 20])
    target = Frames(teacher, (lengths - delay).clamp(min=1), SHIFT_S)
    assert estimate_delay_ms(late, lengths, target, **OPTIONS) == pytest.approx(40.0 * delay)  # type: ignore[arg-type]
    loss = frame_kl(late, lengths, target, window="auto", max_delay_ms=200, **OPTIONS)  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(0.0, abs=1e-3)
