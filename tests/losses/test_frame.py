"""Frame KL against a slow oracle in plain loops, written from the definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asrkd.losses import FrameKL, frame_kl, linear_frame_kl
from asrkd.types import Frames, TopK

SHIFT_S = 0.04


def kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.stack([a * (a.log() - b.log()) for a, b in zip(p, q, strict=True) if float(a.detach()) > 0]).sum()


def softened(row: Tensor, temperature: float) -> Tensor:
    weights = (row / temperature - float(row.detach().max()) / temperature).exp()
    return weights / weights.sum()


def bucketed(p: Tensor, kept: list[int] | None, temperature: float) -> Tensor:
    """The distribution over kept tokens and the rest, tempered as such."""
    if kept is None:
        return p
    rest = torch.stack([x for v, x in enumerate(p) if v not in kept]).sum()
    powers = torch.stack([*(p[v] for v in kept), rest]) ** (1 / temperature)
    return powers / powers.sum()


def slow(
    student: Tensor,
    student_lengths: list[int],
    teacher: Tensor,
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
    kept: int | None = None,
) -> Tensor:
    """The loss from its definition, frame by frame; ``kept`` asks for the events of stored targets."""
    total = torch.zeros((), dtype=torch.float64)
    for b in range(student.shape[0]):
        length = teacher_lengths[b]
        spikes = [int(teacher[b, t].argmax()) != blank_id for t in range(length)]
        for t in range(length):
            if not t + delay < student_lengths[b]:
                continue
            plain = softened(teacher[b, t], 1.0)
            ids = None if kept is None else plain.topk(kept).indices.tolist()
            seen_blank = 0.0 if ids is not None and blank_id not in ids else float(plain[blank_id])
            if blank == "drop" and seen_blank > threshold:
                continue
            near = range(max(0, t - neighbourhood), min(length, t + neighbourhood + 1))
            if select == "spikes" and not any(spikes[u] for u in near):
                continue
            if ids is None:
                p, q, place = (
                    softened(teacher[b, t], temperature),
                    softened(student[b, t + delay], temperature),
                    blank_id,
                )
            else:
                p = bucketed(plain, ids, temperature)
                q = bucketed(softened(student[b, t + delay], 1.0), ids, temperature)
                place = ids.index(blank_id) if blank_id in ids else None
            total = total + temperature**2 * one_frame(p, q, divergence, blank, place, blank_weight)
    return total


def one_frame(p: Tensor, q: Tensor, divergence: str, blank: str, place: int | None, weight: float) -> Tensor:
    if blank == "decouple" and place is not None:
        rest = [v for v in range(len(p)) if v != place]
        of_p, of_q = (torch.stack([x[place], x[rest].sum()]) for x in (p, q))
        among = between(p[rest] / p[rest].sum(), q[rest] / q[rest].sum(), divergence)
        return weight * between(of_p, of_q, divergence) + of_p[1] * among
    return between(p, q, divergence)


def between(p: Tensor, q: Tensor, divergence: str) -> Tensor:
    if divergence == "forward":
        return kl(p, q)
    if divergence == "reverse":
        return kl(q, p)
    middle = (p + q) / 2
    return 0.5 * kl(p, middle) + 0.5 * kl(q, middle)


def made(seed: int, batch: int, frames: int, vocab: int) -> tuple[Tensor, list[int], Tensor, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    student = 2 * torch.randn(batch, frames, vocab, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(batch, frames, vocab, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, frames + 1, (2, batch), generator=generator).tolist()
    return student, lengths[0], teacher, lengths[1]


@settings(max_examples=80, deadline=None)
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
    stored=st.booleans(),
)
def test_value_and_gradient_equal_the_oracle(
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
    stored: bool,
) -> None:
    student, student_lengths, teacher, teacher_lengths = made(seed, batch, frames, vocab)
    student.requires_grad_()
    blank_id = {"first": 0, "last": vocab - 1, "middle": vocab // 2}[blank_place]
    kept = max(1, vocab // 2) if stored else None
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
        kept=kept,
    )
    log_probs, lengths = teacher.log_softmax(-1), torch.tensor(teacher_lengths)
    found = frame_kl(
        student,
        torch.tensor(student_lengths),
        Frames(log_probs, lengths, SHIFT_S) if kept is None else topk(log_probs, lengths, kept),
        blank_id=blank_id,
        student_frame_shift_s=SHIFT_S,
        temperature=temperature,
        divergence=divergence,
        blank=blank,
        blank_weight=0.3,
        select=select,
        delay_ms=1000 * SHIFT_S * delay,
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    if not expected.requires_grad:  # no frame was left in
        expected = expected + 0 * student.sum()
    ours, theirs = (torch.autograd.grad(value, student)[0] for value in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_gradient_is_temperature_times_the_difference_of_softened_probabilities() -> None:
    student, lengths, teacher, _ = made(1, 2, 5, 4)
    student.requires_grad_()
    target = Frames(teacher.log_softmax(-1), torch.tensor(lengths), SHIFT_S)
    loss = frame_kl(student, torch.tensor(lengths), target, blank_id=0, student_frame_shift_s=SHIFT_S, temperature=2.0)
    (gradient,) = torch.autograd.grad(loss, student)
    expected = 2.0 * ((student / 2).softmax(-1) - (teacher / 2).softmax(-1)).detach()
    for row, length in enumerate(lengths):
        torch.testing.assert_close(gradient[row, :length], expected[row, :length], rtol=1e-9, atol=1e-9)
        assert not gradient[row, length:].any()


@pytest.mark.parametrize("options", [{}, {"blank": "decouple"}, {"divergence": "js"}, {"temperature": 3.0}])
def test_zero_at_equality_and_garbage_in_padding_changes_nothing(options: dict[str, Any]) -> None:
    logits, lengths, _, _ = made(2, 3, 6, 5)
    valid = torch.arange(6) < torch.tensor(lengths)[:, None]
    garbage = torch.where(valid.unsqueeze(-1), logits.log_softmax(-1), torch.full_like(logits, 7.0))
    target = Frames(garbage, torch.tensor(lengths), SHIFT_S)
    loss = FrameKL(0, SHIFT_S, **options)(logits, torch.tensor(lengths), target)
    assert float(loss) == pytest.approx(0.0, abs=1e-5)


def topk(log_probs: Tensor, lengths: Tensor, k: int) -> TopK:
    values, ids = log_probs.topk(k, -1)
    tail = torch.log1p(-values.exp().sum(-1).clamp(max=1 - 1e-15))
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
    assert -1e-9 <= fewer <= more + 1e-9
    assert more <= dense + 1e-9


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


@pytest.mark.parametrize("window", ["utterance", "frame"])
@pytest.mark.parametrize("stored", [False, True])
def test_windows_are_the_least_of_the_fixed_delays(window: Any, stored: bool) -> None:
    student, student_lengths, teacher, teacher_lengths = made(8, 3, 9, 5)
    student.requires_grad_()
    kept = 2 if stored else None
    expected = torch.zeros((), dtype=torch.float64)
    for b in range(3):
        spans = [(0, teacher_lengths[b])] if window == "utterance" else [(t, t + 1) for t in range(teacher_lengths[b])]
        for first, last in spans:
            means = []
            for delay in range(1, 4):
                count = max(0, min(last, student_lengths[b] - delay) - first)
                if count:
                    part, own = student[b : b + 1, first:], [student_lengths[b] - first]
                    total = slow(part, own, teacher[b : b + 1, first:], [last - first], delay=delay, kept=kept)
                    means.append((float(total.detach()) / count, total))
            if means:
                expected = expected + min(means, key=lambda pair: pair[0])[1]
    lengths, log_probs = torch.tensor(teacher_lengths), teacher.log_softmax(-1)
    target = topk(log_probs, lengths, 2) if stored else Frames(log_probs, lengths, SHIFT_S)
    options: dict[str, Any] = {"blank_id": 0, "student_frame_shift_s": SHIFT_S, "window": window}
    found = frame_kl(student, torch.tensor(student_lengths), target, delay_ms=40, max_delay_ms=120, **options)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    ours, theirs = (torch.autograd.grad(value, student)[0] for value in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 2.0, "blank": "decouple", "blank_weight": 0.3}, {"delay_ms": 40.0, "blank": "drop"}],
)
def test_from_the_output_layer_it_is_the_same(options: dict[str, Any], stored: bool) -> None:
    _, lengths, teacher, teacher_lengths = made(9, 3, 8, 6)
    torch.manual_seed(0)
    leaves = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 8, 4), (6, 4), (6,))]
    log_probs, length = teacher.log_softmax(-1), torch.tensor(teacher_lengths)
    target = topk(log_probs, length, 3) if stored else Frames(log_probs, length, SHIFT_S)
    own = {"blank_id": 5, "student_frame_shift_s": SHIFT_S, "reduction": "mean", **options}
    found = linear_frame_kl(leaves[0], torch.tensor(lengths), leaves[1], leaves[2], target, **own)
    expected = frame_kl(leaves[0] @ leaves[1].T + leaves[2], torch.tensor(lengths), target, **own)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(*(torch.autograd.grad(value, leaves) for value in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("layout", ["transposed", "strided"])
def test_any_memory_layout_gives_the_same(layout: str) -> None:
    student, lengths, teacher, teacher_lengths = made(10, 2, 6, 5)
    target = Frames(teacher.log_softmax(-1), torch.tensor(teacher_lengths), SHIFT_S)
    options: dict[str, Any] = {"blank_id": 0, "student_frame_shift_s": SHIFT_S}
    expected = frame_kl(student, torch.tensor(lengths), target, **options)
    if layout == "transposed":
        other = student.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    else:
        other = torch.stack((student, student), -1).flatten(2)[..., ::2]
    assert not other.is_contiguous()
    other.requires_grad_()
    found = frame_kl(other, torch.tensor(lengths), target, **options)
    torch.testing.assert_close(found.detach(), expected)
    (gradient,) = torch.autograd.grad(found, other)
    assert torch.isfinite(gradient).all()


def test_many_frames_take_many_chunks() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 300, 900, requires_grad=True), torch.randn(2, 280, 900).log_softmax(-1)
    lengths, teacher_lengths = torch.tensor([300, 211]), torch.tensor([280, 230])
    target = Frames(teacher, teacher_lengths, SHIFT_S)
    found = frame_kl(student, lengths, target, blank_id=0, student_frame_shift_s=SHIFT_S, delay_ms=120)
    parts = []
    for b, shared in enumerate([280, 208]):
        q = student[b, 3 : 3 + shared].log_softmax(-1)
        parts.append(torch.nn.functional.kl_div(q, teacher[b, :shared], log_target=True, reduction="sum"))
    torch.testing.assert_close(found, sum(parts))
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in (found, sum(parts))))


def test_the_gradient_is_handed_out_once() -> None:
    student, lengths, teacher, _ = made(11, 2, 5, 4)
    student.requires_grad_()
    target = Frames(teacher.log_softmax(-1), torch.tensor(lengths), SHIFT_S)
    loss = 0.5 * frame_kl(student, torch.tensor(lengths), target, blank_id=0, student_frame_shift_s=SHIFT_S)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda s, t: (s.softmax(-1), t),
            "logits: expected unnormalised scores or log-probabilities, found probabilities",
        ),
        (lambda s, t: (s, t.exp()), "teacher: expected log-probabilities"),
        (lambda s, t: (s[:, :3], t), "lengths: expected at most T = 3, found"),
        (lambda s, t: (s, t[..., :4]), r"teacher: expected \(B, T, 5\), found shape"),
    ],
)
def test_wrong_tensors_are_named(spoil: Any, message: str) -> None:
    student, _, teacher, _ = made(12, 2, 6, 5)
    lengths = torch.tensor([6, 4])
    student, log_probs = spoil(student, teacher.log_softmax(-1))
    with pytest.raises(ValueError, match=message):
        frame_kl(student, lengths, Frames(log_probs, lengths, SHIFT_S), blank_id=0, student_frame_shift_s=SHIFT_S)
    stored = topk(teacher.log_softmax(-1), lengths, 2)
    with pytest.raises(ValueError, match=r"teacher\.vocab_size: expected 6, found 5"):
        frame_kl(torch.randn(2, 6, 6), lengths, stored, blank_id=0, student_frame_shift_s=SHIFT_S)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_pooled_posteriors_equal_loops(pooling: Any) -> None:
    _, _, teacher, _ = made(13, 1, 7, 4)
    probs, length = teacher[0].softmax(-1), 5
    rows = []
    for start in range(0, length, 2):
        group = probs[start : min(start + 2, length)]
        pooled = group.mean(0) if pooling == "mean" else torch.stack([group[:, 0].min(), *group[:, 1:].max(0).values])
        rows.append(pooled / pooled.sum())
    student = torch.randn(1, 4, 4, dtype=torch.float64)
    options: dict[str, Any] = {"blank_id": 0, "student_frame_shift_s": SHIFT_S}
    fast = Frames(teacher.log_softmax(-1), torch.tensor([length]), SHIFT_S / 2)
    expected = frame_kl(
        student, torch.tensor([4]), Frames(torch.stack(rows).log()[None], torch.tensor([3]), SHIFT_S), **options
    )
    torch.testing.assert_close(frame_kl(student, torch.tensor([4]), fast, pooling=pooling, **options), expected)
    with pytest.raises(ValueError, match="pooling: expected spikes for stored targets"):
        frame_kl(student, torch.tensor([4]), topk_at(fast, 2), pooling=pooling, **options)


def topk_at(frames: Frames, k: int) -> TopK:
    kept = topk(frames.values, frames.lengths, k)
    return TopK(kept.ids, kept.log_probs, kept.tail_log_prob, kept.lengths, frames.frame_shift_s, kept.vocab_size)
