"""Greedy transducer search against a slow walk through the lattice, whole and in pieces."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from asrkd.decoding.transducer import FRAMES_AT_ONCE, greedy

VOCAB, CONTEXT = 6, 2
SHIFT_S = 0.04


def tables(seed: int) -> tuple[Tensor, Tensor]:
    """Scores by place in the context and label: which label follows depends on both the frame and what was said."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(CONTEXT, VOCAB, VOCAB, generator=generator), torch.randn(4, 30, VOCAB, generator=generator)


def joint_of(table: Tensor, blank_id: int, bias: float):
    def joint(frames: Tensor, labels: Tensor) -> Tensor:
        said = sum(table[place, labels[:, place]] for place in range(CONTEXT))
        logits = frames + said.unsqueeze(1)
        logits[..., blank_id] += bias
        return 2 * logits

    return joint


def slow(frames: Tensor, context: list[int], joint, blank_id: int, max_labels: int):
    tokens, places, probs, score = [], [], [], 0.0
    for place, frame in enumerate(frames):
        for _ in range(max_labels):
            log_probs = joint(frame[None, None], torch.tensor([context]))[0, 0].log_softmax(-1)
            token = int(log_probs.argmax())
            score += float(log_probs[token])
            if token == blank_id:
                break
            tokens.append(token)
            places.append(place)
            probs.append(float(log_probs[token].exp()))
            context = [*context[1:], token]
    return tokens, places, probs, score, context


@pytest.mark.parametrize(("blank_id", "bias", "max_labels"), [(0, 2.0, 10), (3, 1.0, 3), (5, 4.0, 10), (0, -3.0, 1)])
def test_equals_slow_walk_with_blank_anywhere(blank_id: int, bias: float, max_labels: int) -> None:
    lengths = torch.tensor([30, 17, 1, 0])
    for seed in range(4):
        table, frames = tables(seed)
        joint = joint_of(table, blank_id, bias)
        garbage = frames.clone()
        for row, length in enumerate(lengths.tolist()):
            garbage[row, length:] = 50.0
        context = torch.full((4, CONTEXT), blank_id)
        found, after = greedy(garbage, lengths, context, joint, blank_id, max_labels)
        for row, length in enumerate(lengths.tolist()):
            tokens, places, probs, score, last = slow(
                frames[row, :length], [blank_id] * CONTEXT, joint, blank_id, max_labels
            )
            decoded = found[row].decoded(SHIFT_S)
            assert list(decoded.tokens) == tokens
            assert decoded.times_s == pytest.approx([SHIFT_S * place for place in places])
            assert decoded.ends_s == pytest.approx([SHIFT_S * (place + 1) for place in places])
            assert decoded.confidences == pytest.approx(probs, rel=1e-5)
            assert decoded.score == pytest.approx(score, rel=1e-4, abs=1e-5)
            assert after[row].tolist() == last


def test_the_walks_above_are_worth_it() -> None:
    """Some frames say nothing for longer than is looked at at once, some several labels, and the limit is met."""
    table, frames = tables(0)
    lengths, start = torch.full((4,), 30), torch.zeros(4, CONTEXT, dtype=torch.long)
    quiet, _ = greedy(frames, lengths, start, joint_of(table, 0, 4.0), 0)
    times = [-1.0, *quiet[0].decoded(1.0).times_s]
    assert len(times) > 1 and max(b - a for a, b in itertools.pairwise(times)) > FRAMES_AT_ONCE
    loud, _ = greedy(frames, lengths, start, joint_of(table, 0, 2.0), 0)
    counts = {int(count) for one in loud for count in (one.tokens >= 0).sum(1)}
    assert {0, 1, 2} <= counts
    full, _ = greedy(frames, lengths, start, joint_of(table, 0, -99.0), 0)
    assert all((one.tokens >= 0).all() for one in full)


def test_in_pieces_equals_whole() -> None:
    table, frames = tables(1)
    joint, lengths = joint_of(table, 0, 2.0), torch.tensor([30, 30, 30, 30])
    start = torch.zeros(4, CONTEXT, dtype=torch.long)
    whole, _ = greedy(frames, lengths, start, joint, 0)
    context, begin, pieces = start, 0, []
    for size in (1, 9, 4, 16):
        found, context = greedy(frames[:, begin : begin + size], torch.full((4,), size), context, joint, 0)
        pieces.append(found)
        begin += size
    for row in range(4):
        tokens = [token for found in pieces for token in found[row].decoded(SHIFT_S).tokens]
        assert tokens == list(whole[row].decoded(SHIFT_S).tokens) and len(tokens) > 5


def test_no_frames_and_no_room() -> None:
    found, context = greedy(
        torch.zeros(2, 0, 3), torch.tensor([0, 0]), torch.ones(2, 2, dtype=torch.long), lambda x, y: x, 0
    )
    assert [one.decoded(1.0).tokens for one in found] == [(), ()] and context.tolist() == [[1, 1], [1, 1]]
    with pytest.raises(ValueError, match="max_labels: expected at least 1, found 0"):
        greedy(torch.zeros(1, 1, 3), torch.tensor([1]), torch.zeros(1, 2, dtype=torch.long), lambda x, y: x, 0, 0)
