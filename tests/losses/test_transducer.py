"""Transducer losses against enumeration of all alignments, and RNN-T against torchaudio's operator."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asrkd.losses import best_path, collapsed, collapsed_kl, one_best_kl, rnnt


def alignments(frames: int, labels: int) -> list[list[tuple[int, int, bool]]]:
    """Each alignment as its arcs ``(t, u, is_label)``; the last is always blank in the last frame."""
    found = []
    for places in itertools.combinations(range(frames - 1 + labels), labels):
        t = u = 0
        arcs = []
        for step in range(frames - 1 + labels):
            is_label = step in places
            arcs.append((t, u, is_label))
            t, u = (t, u + 1) if is_label else (t + 1, u)
        found.append([*arcs, (t, u, False)])
    return found


def score(log_probs: Tensor, arcs: list[tuple[int, int, bool]], labels: list[int], blank_id: int) -> Tensor:
    return torch.stack([log_probs[t, u, labels[u] if is_label else blank_id] for t, u, is_label in arcs]).sum()


def slow_rnnt(logits: Tensor, lengths: list[int], labels: list[list[int]], blank_id: int) -> Tensor:
    losses = []
    for b, row in enumerate(labels):
        log_probs = logits[b].log_softmax(-1)
        scores = [score(log_probs, arcs, row, blank_id) for arcs in alignments(lengths[b], len(row))]
        losses.append(-torch.stack(scores).logsumexp(0))
    return torch.stack(losses)


def batch(seed: int, blank_id: int = 0, vocab: int = 4) -> tuple[Tensor, list[int], list[list[int]], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 4, 4, vocab, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, 5, (3,), generator=generator).tolist()
    others = [v for v in range(vocab) if v != blank_id]
    labels = [
        [others[i] for i in torch.randint(0, vocab - 1, (n,), generator=generator).tolist()]
        for n in torch.randint(0, 4, (3,), generator=generator).tolist()
    ]
    tokens = torch.tensor([[*row, *[others[0]] * (3 - len(row))] for row in labels])
    return logits, lengths, labels, tokens, torch.tensor([len(row) for row in labels])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), blank_id=st.integers(0, 3))
def test_rnnt_equals_enumeration_with_its_gradient(seed: int, blank_id: int) -> None:
    logits, lengths, labels, tokens, token_lengths = batch(seed, blank_id)
    logits.requires_grad_()
    found = rnnt(logits, torch.tensor(lengths), tokens, token_lengths, blank_id=blank_id, reduction="none")
    expected = slow_rnnt(logits, lengths, labels, blank_id)
    torch.testing.assert_close(found, expected)
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((weights * value).sum(), logits)[0] for value in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_rnnt_equals_torchaudio() -> None:
    from torchaudio.functional import rnnt_loss

    torch.manual_seed(0)
    logits = torch.randn(2, 12, 6, 9, requires_grad=True)
    tokens, lengths, token_lengths = torch.randint(1, 9, (2, 5)), torch.tensor([12, 9]), torch.tensor([5, 4])
    expected = rnnt_loss(logits, tokens.int(), lengths.int(), token_lengths.int(), blank=0, reduction="sum")
    found = rnnt(logits, lengths, tokens, token_lengths, blank_id=0)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_fastemit_scales_the_gradient_of_label_arcs_alone() -> None:
    logits, lengths, labels, tokens, token_lengths = batch(7)
    log_probs = logits.log_softmax(-1).requires_grad_()
    # By log-probabilities, so that label and blank arcs stand apart.
    losses = []
    for b, row in enumerate(labels):
        scores = [score(log_probs[b], arcs, row, 0) for arcs in alignments(lengths[b], len(row))]
        losses.append(-torch.stack(scores).logsumexp(0))
    (arcs,) = torch.autograd.grad(torch.stack(losses).sum(), log_probs)
    arcs[..., 1:] *= 1.5
    leaf = logits.clone().requires_grad_()
    expected = torch.autograd.grad(leaf.log_softmax(-1), leaf, arcs)[0]
    loss = rnnt(leaf, torch.tensor(lengths), tokens, token_lengths, blank_id=0, fastemit=0.5)
    torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], expected)
    torch.testing.assert_close(loss.detach(), rnnt(logits, torch.tensor(lengths), tokens, token_lengths, blank_id=0))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_collapsed_lattice_equals_loops(temperature: float) -> None:
    logits, lengths, labels, tokens, token_lengths = batch(11)
    teacher = batch(12)[0]
    expected = 0.0
    for b, row in enumerate(labels):
        for t in range(lengths[b]):
            for u in range(len(row) + 1):
                both = []
                for scores in (teacher[b, t, u], logits[b, t, u]):
                    p = scores.softmax(-1)
                    events = [p[0], p[row[u]]] if u < len(row) else [p[0]]
                    events.append(1 - sum(events))  # type: ignore[arg-type]
                    powers = torch.stack(events) ** (1 / temperature)
                    both.append(powers / powers.sum())
                expected += temperature**2 * float((both[0] * (both[0] / both[1]).log()).sum())
    targets = collapsed(teacher, tokens, token_lengths, blank_id=0)
    arguments = (torch.tensor(lengths), tokens, token_lengths)
    found = collapsed_kl(logits, *arguments, targets, blank_id=0, temperature=temperature)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    same = collapsed_kl(logits, *arguments, collapsed(logits, tokens, token_lengths, blank_id=0), blank_id=0)
    assert float(same) == pytest.approx(0.0, abs=1e-9)


def test_one_best_is_the_full_kl_along_the_teachers_likeliest_alignment() -> None:
    for seed in range(5):
        logits, lengths, labels, tokens, token_lengths = batch(seed)
        teacher = batch(seed + 100)[0]
        expected = 0.0
        nodes = torch.zeros(logits.shape[:3], dtype=torch.bool)
        for b, row in enumerate(labels):
            log_probs = teacher[b].log_softmax(-1)
            best = max(alignments(lengths[b], len(row)), key=lambda arcs: float(score(log_probs, arcs, row, 0)))
            for t, u, _ in best:
                nodes[b, t, u] = True
                p, q = teacher[b, t, u].softmax(-1), logits[b, t, u].softmax(-1)
                expected += float((p * (p / q).log()).sum())
        arguments = (torch.tensor(lengths), tokens, token_lengths)
        assert torch.equal(best_path(teacher, *arguments, blank_id=0), nodes)
        found = one_best_kl(logits, *arguments, teacher, blank_id=0)
        assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": torch.tensor([9, 1, 1])}, "lengths: expected at most T = 4, found 9"),
        ({"lengths": torch.tensor([4, 0, 1])}, "lengths: expected at least 1 frame, found 0"),
        ({"tokens": torch.ones(3, 5, dtype=torch.long)}, r"logits: expected \(B, T, U\+1 = 6, V\), found shape"),
        ({"blank_id": 4}, "blank_id: expected 0 to 3, found 4"),
    ],
)
def test_wrong_input_is_named(change: dict[str, object], message: str) -> None:
    logits, _, _, tokens, token_lengths = batch(1)
    given = {"lengths": torch.tensor([4, 4, 4]), "tokens": tokens, "token_lengths": token_lengths, "blank_id": 0}
    with pytest.raises(ValueError, match=message):
        rnnt(logits, **{**given, **change})  # type: ignore[arg-type]
