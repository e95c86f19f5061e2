"""Losses between inner representations, and the quantiser, against plain loops and known invariances."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from asrkd.losses import (
    attention_map_kl,
    hidden_cka,
    hidden_l1_cosine,
    hidden_mse,
    mvq,
    relation_kl,
    similarity_preserving,
    train_quantiser,
)
from asrkd.losses.hidden import on_clock
from asrkd.types import Frames

SHIFT_S = 0.04
LENGTHS = [6, 4]


def pair(width: int = 4, teacher_width: int = 4) -> tuple[Tensor, Tensor, Frames]:
    torch.manual_seed(0)
    student = torch.randn(2, 6, width, dtype=torch.float64)
    teacher = torch.randn(2, 7, teacher_width, dtype=torch.float64)
    return student, torch.tensor(LENGTHS), Frames(teacher, torch.tensor([7, 4]), SHIFT_S)


def test_mse_and_l1_cosine_equal_loops() -> None:
    student, lengths, teacher = pair()
    mse = l1 = 0.0
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            x, y = student[b, t].tolist(), teacher.values[b, t].tolist()
            mse += sum((i - j) ** 2 for i, j in zip(x, y, strict=True)) / 4
            dot = sum(i * j for i, j in zip(x, y, strict=True))
            cosine = dot / math.sqrt(sum(i * i for i in x) * sum(j * j for j in y))
            l1 += sum(abs(i - j) for i, j in zip(x, y, strict=True)) / 4
            l1 -= 0.7 * math.log(1 / (1 + math.exp(-cosine)))
    assert float(hidden_mse(student, lengths, teacher, student_frame_shift_s=SHIFT_S)) == pytest.approx(mse)
    found = hidden_l1_cosine(student, lengths, teacher, student_frame_shift_s=SHIFT_S, cosine_weight=0.7)
    assert float(found) == pytest.approx(l1)


def test_cka_equals_the_kernel_form_and_knows_no_rotation_or_scale() -> None:
    student, lengths, teacher = pair(3, 5)
    expected = 0.0
    for b, length in enumerate(LENGTHS):
        centre = torch.eye(length, dtype=torch.float64) - 1 / length
        kernels = [centre @ (h[b, :length] @ h[b, :length].T) @ centre for h in (student, teacher.values)]
        hsic = [[float((k * m).sum()) for m in kernels] for k in kernels]
        expected += length * (1 - hsic[0][1] / math.sqrt(hsic[0][0] * hsic[1][1]))
    assert float(hidden_cka(student, lengths, teacher, student_frame_shift_s=SHIFT_S)) == pytest.approx(expected)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    turned = 3 * teacher.values[:, :6] @ rotation + 1
    assert float(hidden_cka(turned, lengths, teacher, student_frame_shift_s=SHIFT_S)) == pytest.approx(0.0, abs=1e-9)


def test_similarity_and_relations_equal_loops() -> None:
    student, lengths, teacher = pair(4, 6)
    similarity = relation = 0.0
    for b, length in enumerate(LENGTHS):
        rows = []
        for h in (student[b, :length], teacher.values[b, :length]):
            g = h @ h.T
            rows.append(g / g.norm(dim=1, keepdim=True))
        similarity += float((rows[0] - rows[1]).square().sum()) / length
        for head in range(2):
            maps = []
            for h in (student[b, :length], teacher.values[b, :length]):
                size = h.shape[1] // 2
                part = h[:, head * size : (head + 1) * size]
                maps.append((part @ part.T / math.sqrt(size)).softmax(-1))
            relation += float((maps[1] * (maps[1] / maps[0]).log()).sum()) / 2
    found = similarity_preserving(student, lengths, teacher, student_frame_shift_s=SHIFT_S)
    assert float(found) == pytest.approx(similarity)
    found = relation_kl(student, lengths, teacher, student_frame_shift_s=SHIFT_S, heads=2)
    assert float(found) == pytest.approx(relation)


def test_attention_maps_of_equal_scores_up_to_a_shift_give_zero() -> None:
    torch.manual_seed(1)
    scores = torch.randn(2, 3, 5, 5)
    shifted = scores + torch.randn(2, 3, 5, 1)
    shifted[0, :, :, 4] = 50.0  # a key beyond the length
    assert float(attention_map_kl(shifted, scores, torch.tensor([4, 5]))) == pytest.approx(0.0, abs=1e-5)
    assert float(attention_map_kl(shifted, scores, torch.tensor([5, 5]))) > 1.0


def test_another_clock_is_averaged_or_repeated() -> None:
    values = torch.arange(10.0).view(1, 5, 2)
    fast = on_clock(Frames(values, torch.tensor([5]), SHIFT_S / 2), SHIFT_S)
    assert fast.values[0].tolist() == [[1, 2], [5, 6], [8, 9]]
    assert fast.lengths.tolist() == [3]
    slow = on_clock(Frames(values, torch.tensor([4]), 2 * SHIFT_S), SHIFT_S)
    assert slow.values[0, :4].tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert slow.lengths.tolist() == [8]
    with pytest.raises(ValueError, match=r"frame_shift_s: expected .* 0\.04 s, found 0\.03 s"):
        on_clock(Frames(values, torch.tensor([4]), 0.03), SHIFT_S)


def test_widths_that_differ_are_named() -> None:
    student, lengths, teacher = pair(3, 5)
    with pytest.raises(ValueError, match="expected 5 units like the teacher's, found 3"):
        hidden_mse(student, lengths, teacher, student_frame_shift_s=SHIFT_S)
    with pytest.raises(ValueError, match="heads: expected a divisor of the student's 3 units, found 2"):
        relation_kl(student, lengths, teacher, student_frame_shift_s=SHIFT_S, heads=2)


def test_the_quantiser_improves_with_codebooks_and_finds_sums_of_codes() -> None:
    torch.manual_seed(2)
    states = torch.randn(600, 8, dtype=torch.float64)
    errors = [
        train_quantiser(states, num_codebooks=c, codebook_size=16, rounds=4).relative_error(states) for c in (1, 2, 4)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.35
    # What is a sum of two codes is found again.
    books = torch.randn(2, 4, 8, dtype=torch.float64) * torch.tensor([4.0, 1.0], dtype=torch.float64)[:, None, None]
    codes = torch.randint(0, 4, (400, 2))
    exact = books[0][codes[:, 0]] + books[1][codes[:, 1]]
    assert train_quantiser(exact, num_codebooks=2, codebook_size=4, rounds=20, seed=1).relative_error(exact) < 0.05


def test_encoding_again_never_grows_the_error_and_is_seeded() -> None:
    torch.manual_seed(3)
    states = torch.randn(300, 6)
    first, again = (train_quantiser(states, num_codebooks=3, codebook_size=8, rounds=3, seed=5) for _ in range(2))
    assert torch.equal(first.codebooks, again.codebooks)
    errors = [float((first.decode(first.encode(states, passes=n)) - states).square().sum()) for n in (0, 1, 3)]
    assert errors[0] >= errors[1] >= errors[2]


def test_mvq_equals_loops_on_half_precision_codes() -> None:
    torch.manual_seed(4)
    logits = torch.randn(2, 6, 2 * 5, dtype=torch.float64)
    codes = torch.randint(0, 5, (2, 7, 2))
    expected = 0.0
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            for c in range(2):
                expected -= float(logits[b, t, 5 * c : 5 * c + 5].log_softmax(-1)[codes[b, t, c]])
    stored = Frames(codes.half(), torch.tensor([7, 4]), SHIFT_S)
    found = mvq(logits, torch.tensor(LENGTHS), stored, student_frame_shift_s=SHIFT_S)
    assert float(found) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"logits: expected \(B, T, C·K\) with C = 2"):
        mvq(logits[..., :9], torch.tensor(LENGTHS), stored, student_frame_shift_s=SHIFT_S)
