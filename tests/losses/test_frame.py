"""Frame KL against a slow oracle in plain loops, written from the definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asrkd.losses import FrameKL, frame_kl
from asrkd.types import Frames, TopK

SHIFT_S = 0.04


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def softened(row: torch.Tensor, temperature: float) -> list[float]:
    weights = [math.exp(float(x) / temperature - float(row.max()) / temperature) for x in row]
    return [w / sum(weights) for w in weights]


def slow(
    student: torch.Tensor,
    student_lengths: list[int],
    teacher: torch.Tensor,
    teacher_lengths: list[int],
    *,
    blank_id: int = 0,
    temperature: float = 1.0,
    divergence: str = "forward",
    blank: str = "keep",
    threshold: float = 0.95,
    blank_weight: float = 1.0,
    select: str = "all",
    neighbourhood: int = 1,
    delay: int = 0,
) -> float:
    total = 0.0
    for b in range(student.shape[0]):
        length = teacher_lengths[b]
        spikes = [int(teacher[b, t].argmax()) != blank_id for t in range(length)]
        for t in range(length):
            if not t + delay < student_lengths[b]:
                continue
            plain = softened(teacher[b, t], 1.0)
            if blank == "drop" and plain[blank_id] > threshold:
                continue
            near = range(max(0, t - neighbourhood), min(length, t + neighbourhood + 1))
            if select == "spikes" and not any(spikes[u] for u in near):
                continue
            p = softened(teacher[b, t], temperature)
            q = softened(student[b, t + delay], temperature)
            total += temperature**2 * one_frame(p, q, divergence, blank, blank_id, blank_weight)
    return total


def one_frame(p: list[float], q: list[float], divergence: str, blank: str, blank_id: int, weight: float) -> float:
    if blank == "decouple":
        binary = between([p[blank_id], 1 - p[blank_id]], [q[blank_id], 1 - q[blank_id]], divergence)
        rest_p = [x / (1 - p[blank_id]) for v, x in enumerate(p) if v != blank_id]
        rest_q = [x / (1 - q[blank_id]) for v, x in enumerate(q) if v != blank_id]
        return weight * binary + (1 - p[blank_id]) * between(rest_p, rest_q, divergence)
    return between(p, q, divergence)


def between(p: list[float], q: list[float], divergence: str) -> float:
    if divergence == "forward":
        return kl(p, q)
    if divergence == "reverse":
        return kl(q, p)
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return 0.5 * kl(p, middle) + 0.5 * kl(q, middle)


def made(seed: int, batch: int, frames: int, vocab: int) -> tuple[torch.Tensor, list[int], torch.Tensor, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    student = 2 * torch.randn(batch, frames, vocab, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(batch, frames, vocab, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, frames + 1, (2, batch), generator=generator).tolist()
    return student, lengths[0], teacher, lengths[1]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    frames=st.integers(1, 7),
    vocab=st.integers(2, 6),
    temperature=st.sampled_from([1.0, 2.0, 0.5]),
    divergence=st.sampled_from(["forward", "reverse", "js"]),
    blank=st.sampled_from(["keep", "drop", "decouple"]),
    select=st.sampled_from(["all", "spikes"]),
    delay=st.integers(0, 3),
    blank_place=st.sampled_from(["first", "last", "middle"]),
)
def test_equals_the_oracle(
    seed: int,
    batch: int,
    frames: int,
    vocab: int,
    temperature: float,
    divergence: Any,
    blank: Any,
    select: Any,
    delay: int,
    blank_place: str,
) -> None:
    student, student_lengths, teacher, teacher_lengths = made(seed, batch, frames, vocab)
    blank_id = {"first": 0, "last": vocab - 1, "middle": vocab // 2}[blank_place]
    if blank == "decouple" and vocab == 2:
        blank = "keep"
    expected = slow(
        student,
        student_lengths,
        teacher,
        teacher_lengths,
        blank_id=blank_id,
        temperature=temperature,
        divergence=divergence,
        blank=blank,
        blank_weight=0.3,
        select=select,
        delay=delay,
    )
    found = frame_kl(
        student,
        torch.tensor(student_lengths),
        Frames(teacher.log_softmax(-1), torch.tensor(teacher_lengths), SHIFT_S),
        blank_id=blank_id,
        student_frame_shift_s=SHIFT_S,
        temperature=temperature,
        divergence=divergence,
        blank=blank,
        blank_weight=0.3,
        select=select,
        delay_ms=1000 * SHIFT_S * delay,
    )
    assert float(found) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_gradient_is_temperature_times_the_difference_of_softened_probabilities() -> None:
    student, lengths, teacher, _ = made(1, 2, 5, 4)
    student.requires_grad_()
    target = Frames(teacher.log_softmax(-1), torch.tensor(lengths), SHIFT_S)
    loss = frame_kl(student, torch.tensor(lengths), target, blank_id=0, student_frame_shift_s=SHIFT_S, temperature=2.0)
    (gradient,) = torch.autograd.grad(loss, student)
    expected = 2.0 * ((student / 2).softmax(-1) - (teacher / 2).softmax(-1)).detach()
    for row, length in enumerate(lengths):
        torch.testing.assert_close(gradient[row, :length], expected[row, :length], rtol=1e-4, atol=1e-5)
        assert not gradient[row, length:].any()


@pytest.mark.parametrize("options", [{}, {"blank": "decouple"}, {"divergence": "js"}, {"temperature": 3.0}])
def test_zero_at_equality_and_garbage_in_padding_changes_nothing(options: dict[str, Any]) -> None:
    logits, lengths, _, _ = made(2, 3, 6, 5)
    valid = torch.arange(6) < torch.tensor(lengths)[:, None]
    garbage = torch.where(valid.unsqueeze(-1), logits.log_softmax(-1), torch.full_like(logits, 7.0))
    target = Frames(garbage, torch.tensor(lengths), SHIFT_S)
    loss = FrameKL(0, SHIFT_S, **options)(logits, torch.tensor(lengths), target)
    assert float(loss) == pytest.approx(0.0, abs=1e-5)


def topk(log_probs: torch.Tensor, lengths: torch.Tensor, k: int) -> TopK:
    values, ids = log_probs.topk(k, -1)
    tail = torch.log1p(-values.exp().sum(-1).clamp(max=1 - 1e-12))
    return TopK(ids, values, tail, lengths, SHIFT_S, log_probs.shape[-1])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 6), divergence=st.sampled_from(["forward", "js"]))
def test_stored_targets_give_a_lower_bound_that_grows_with_k(seed: int, k: int, divergence: Any) -> None:
    student, lengths, teacher, _ = made(seed, 2, 5, 7)
    log_probs, length = teacher.log_softmax(-1), torch.tensor(lengths)
    options: dict[str, Any] = {"blank_id": 0, "student_frame_shift_s": SHIFT_S, "divergence": divergence}
    dense = float(frame_kl(student, length, Frames(log_probs, length, SHIFT_S), **options))
    fewer = float(frame_kl(student, length, topk(log_probs, length, k), **options))
    more = float(frame_kl(student, length, topk(log_probs, length, k + 1), **options))
    assert -1e-4 <= fewer <= more + 1e-3 * (1 + abs(more))
    assert more <= dense + 1e-3 * (1 + abs(dense))


def test_window_takes_the_best_delay() -> None:
    _, _, teacher, _ = made(3, 2, 9, 5)
    length = torch.tensor([9, 7])
    late = torch.cat((torch.zeros(2, 2, 5, dtype=torch.float64), teacher[:, :-2]), 1)
    target = Frames(teacher.log_softmax(-1), length, SHIFT_S)
    options: dict[str, Any] = {"blank_id": 0, "student_frame_shift_s": SHIFT_S}
    assert float(frame_kl(late, length, target, **options)) > 1.0
    whole = frame_kl(late, length, target, window="utterance", max_delay_ms=120, **options)
    assert float(whole) == pytest.approx(0.0, abs=1e-5)
    # Frame by frame, the last two have no partner at the right delay and take the best of the others.
    inner = Frames(target.values, torch.tensor([7, 5]), SHIFT_S)
    each = frame_kl(late, length, inner, window="frame", max_delay_ms=120, **options)
    assert float(each) == pytest.approx(0.0, abs=1e-5)


def test_a_faster_teacher_keeps_its_spikes() -> None:
    spike = torch.tensor([0.02, 0.97, 0.01]).log()
    blank = torch.tensor([0.98, 0.01, 0.01]).log()
    fast = torch.stack([blank, spike, blank, blank, blank, spike])[None]
    target = Frames(fast, torch.tensor([6]), SHIFT_S / 2)
    student = torch.stack([spike, blank, spike])[None]
    options: dict[str, Any] = {"blank_id": 0, "student_frame_shift_s": SHIFT_S}
    assert float(frame_kl(student, torch.tensor([3]), target, **options)) == pytest.approx(0.0, abs=1e-5)
    assert float(frame_kl(student, torch.tensor([3]), target, pooling="mean", **options)) > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected more than 0"),
        ({"blank_id": 9}, "blank_id: expected 0 to 4"),
        ({"student_frame_shift_s": 0.03}, "frame_shift_s: expected"),
        ({"window": "frame", "delay_ms": 80.0}, "max_delay_ms: expected at least"),
        ({"divergence": "kl"}, "divergence: expected forward, reverse or js"),
    ],
)
def test_wrong_options_are_named(change: dict[str, Any], message: str) -> None:
    student, lengths, teacher, _ = made(4, 2, 6, 5)
    options = {"blank_id": 0, "student_frame_shift_s": SHIFT_S, **change}
    length = torch.tensor(lengths)
    with pytest.raises(ValueError, match=message):
        frame_kl(student, length, Frames(teacher.log_softmax(-1), length, SHIFT_S), **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_minus_infinity_stay_finite(dtype: torch.dtype) -> None:
    student, lengths, teacher, _ = made(5, 2, 6, 5)
    student[0, 0, 2] = -math.inf
    half = student.to(dtype).requires_grad_()
    target = Frames(teacher.float().log_softmax(-1), torch.tensor(lengths), SHIFT_S)
    loss = frame_kl(half, torch.tensor(lengths), target, blank_id=0, student_frame_shift_s=SHIFT_S, divergence="js")
    assert torch.isfinite(loss)
    (gradient,) = torch.autograd.grad(loss, half)
    assert torch.isfinite(gradient).all()
