"""Divergences of many frames in one pass over small chunks. Legend: B utterances, T frames, V tokens, E events, n rows.

The loss and its gradient are made together in the forward pass, chunk by chunk while the rows are in the cache, so that
nothing of size ``(B, T, V)`` exists but the gradient itself. On a GPU the same code runs on large chunks and without any
read-back to the host.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from asrkd.losses.clock import FLOOR
from asrkd.losses.reduction import working

CACHED_ELEMENTS = 160_000  # of one chunk on a CPU: three such float32 buffers fit into a core's second-level cache
GPU_ELEMENTS = 2**25

Rows = slice | Tensor


@dataclass(frozen=True)
class Measure:
    """Which divergence of a frame. Args: as those of :func:`asrkd.losses.frame.frame_kl`; ``decouple_blank`` is the blank's
    place among the events if it is decoupled."""

    divergence: str = "forward"
    temperature: float = 1.0
    decouple_blank: int | None = None
    blank_weight: float = 1.0


@dataclass(frozen=True)
class Pairs:
    """Which student frame meets which teacher frame.

    Args:
        mask: ``(B, Tt)`` bool, the teacher frames that count.
        student_frames: ``(B, Tt)`` int64, the student frame that each meets.
        repeated: Whether a student frame may meet several teacher frames.
    """

    mask: Tensor
    student_frames: Tensor
    repeated: bool = False


def chunk_rows(num_tokens: int, device: torch.device) -> int:
    """Rows of one chunk."""
    return max(1, (CACHED_ELEMENTS if device.type == "cpu" else GPU_ELEMENTS) // num_tokens)


def divergence_rows(student: Tensor, teacher: Tensor, measure: Measure, gradient: Tensor | None) -> Tensor:
    """``(n,)`` divergences of logits ``(n, E)`` from log-probabilities ``(n, E)``; their gradients into ``gradient (n, E)``."""
    tau = measure.temperature
    if tau != 1.0:
        student, teacher = student / tau, teacher / tau
        if measure.decouple_blank is not None or measure.divergence != "forward":
            teacher = teacher.log_softmax(-1)
    if measure.decouple_blank is None:
        loss = _KINDS[measure.divergence](student, teacher, gradient)
    else:
        loss = _decoupled(student, teacher, measure, gradient)
    if tau != 1.0:
        loss = loss * tau**2
        if gradient is not None:
            gradient.mul_(tau)
    return loss


def _forward(student: Tensor, teacher: Tensor, gradient: Tensor | None) -> Tensor:
    """``Σ p (log p - log q)``, gradient ``q - p``, of scores whose normalisers need not be 1.

    As ``Σ p = 1``, the divergence of scores s and t is ``Σ p (t - s) + log Z_s - log Z_t``.
    """
    q = torch.empty_like(student) if gradient is None else gradient
    torch.softmax(student, -1, out=q)
    p = teacher.softmax(-1)  # also where t is normalised: a softmax is quicker than exp
    loss = torch.linalg.vecdot(p, teacher - student) + _log_z(student, q) - _log_z(teacher, p)
    if gradient is not None:
        gradient.sub_(p)
    return loss


def _log_z(scores: Tensor, probs: Tensor) -> Tensor:
    """``logsumexp`` from the likeliest token, whose probability is at least 1/V: no second exponential."""
    return scores.amax(-1) - probs.amax(-1).log()


def _reverse(student: Tensor, teacher: Tensor, gradient: Tensor | None) -> Tensor:
    """``L = Σ q (log q - log p)``, gradient ``q (log q - log p - L)``."""
    log_q = student.log_softmax(-1)
    difference = log_q - teacher
    q = torch.exp(log_q, out=log_q)
    loss = (q * difference).sum(-1)
    if gradient is not None:
        torch.mul(q, difference.sub_(loss.unsqueeze(-1)), out=gradient)
    return loss


def _jensen_shannon(student: Tensor, teacher: Tensor, gradient: Tensor | None) -> Tensor:
    """``½ KL(p‖m) + ½ KL(q‖m)``, ``m = (p + q) / 2``; with ``h = ½ log(q/m)`` the gradient is ``q (h - Σ q h)``."""
    log_q = student.log_softmax(-1)
    middle = torch.logaddexp(teacher, log_q).sub_(math.log(2))
    q = log_q.exp()
    h = log_q.sub_(middle).mul_(0.5)
    of_student = (q * h).sum(-1)
    if gradient is not None:
        torch.mul(q, h - of_student.unsqueeze(-1), out=gradient)
    return of_student + 0.5 * ((teacher - middle).mul_(teacher.exp())).sum(-1)


_KINDS = {"forward": _forward, "reverse": _reverse, "js": _jensen_shannon}


def _decoupled(student: Tensor, teacher: Tensor, measure: Measure, gradient: Tensor | None) -> Tensor:
    """``w · D(blank against rest) + p(rest) · D(among the rest)`` (Zhao et al. 2022), gradients composed of the parts'."""
    if measure.divergence == "forward":
        return _decoupled_forward(student, teacher, measure, gradient)
    kind, blank = _KINDS[measure.divergence], measure.decouple_blank
    assert blank is not None
    rest, rest_teacher = student.clone(), teacher.clone()
    rest[:, blank] = rest_teacher[:, blank] = FLOOR
    z, teacher_z = rest.logsumexp(-1), rest_teacher.logsumexp(-1)
    two = torch.stack((student[:, blank], z), -1)
    two_teacher = torch.stack((teacher[:, blank], teacher_z), -1).clamp(min=FLOOR)
    two_gradient = None if gradient is None else torch.empty_like(two)
    binary = kind(two, two_teacher, two_gradient)
    among = kind(rest, rest_teacher.sub_(teacher_z.unsqueeze(-1)), gradient)
    share = teacher_z.exp()
    if gradient is not None and two_gradient is not None:
        spread = rest.sub_(z.unsqueeze(-1)).exp_()
        gradient.mul_(share.unsqueeze(-1)).add_(spread.mul_(measure.blank_weight * two_gradient[:, 1:]))
        gradient[:, blank] = measure.blank_weight * two_gradient[:, 0]
    return measure.blank_weight * binary + share * among


def _decoupled_forward(student: Tensor, teacher: Tensor, measure: Measure, gradient: Tensor | None) -> Tensor:
    """The same for the forward KL, where ``KL = binary + p(rest) · among``: so ``KL + (w - 1) · binary``, in fewer passes.

    The binary part's gradient is ``q_b - p_b`` at blank and ``q_v (p_b - q_b) / q(rest)`` elsewhere: a scale of the row.
    """
    blank, extra = measure.decouple_blank, measure.blank_weight - 1
    assert blank is not None
    q = torch.empty_like(student) if gradient is None else gradient
    torch.softmax(student, -1, out=q)
    log_z = _log_z(student, q)
    q_blank, log_q_blank = q[:, blank].clone(), student[:, blank] - log_z
    q[:, blank] = 0.0
    q_rest = q.sum(-1).clamp(min=torch.finfo(q.dtype).tiny)  # summed, not 1 - q_b, which has no digits left near 1
    p = teacher.softmax(-1)  # of log-probabilities, so that it is their exp, only quicker
    p_blank, log_p_blank = p[:, blank].clone(), teacher[:, blank]
    p_rest = -torch.expm1(log_p_blank.clamp(max=0.0))
    loss = torch.linalg.vecdot(p, teacher - student) + log_z
    binary = p_blank * (log_p_blank - log_q_blank) + torch.xlogy(p_rest, p_rest) - torch.xlogy(p_rest, q_rest)
    if gradient is not None:
        scale = 1 + extra * (p_blank - q_blank) / q_rest
        gradient.mul_(scale.unsqueeze(-1)).sub_(p)
        gradient[:, blank] = measure.blank_weight * (q_blank - p_blank)
    return loss + extra * binary


def paired_chunks(pairs: Pairs, num_student_frames: int, num_tokens: int) -> Iterator[tuple[Rows, Rows]]:
    """Chunks of ``(teacher rows, student rows)`` over the flattened ``(B·T)``: slices where rows are consecutive.

    On the CPU only rows that count are visited; on a GPU all are, masked later, since counting them would stall it.
    """
    mask = pairs.mask
    offsets = torch.arange(mask.shape[0], device=mask.device).unsqueeze(1) * num_student_frames
    student = (pairs.student_frames.clamp(min=0, max=max(0, num_student_frames - 1)) + offsets).flatten()
    size = chunk_rows(num_tokens, mask.device)
    if mask.device.type != "cpu":
        teacher = torch.arange(mask.numel(), device=mask.device)
        yield from zip(torch.split(teacher, size), torch.split(student, size), strict=True)
        return
    teacher = mask.flatten().nonzero().squeeze(1)
    student = student[teacher]
    if teacher.numel() == 0:
        return
    # A chunk without a break between neighbours is a view; gathered rows are a copy.
    breaks = (torch.diff(teacher) != 1) | (torch.diff(student) != 1)
    broken = torch.nn.functional.pad(breaks.long().cumsum(0), (1, 0)).tolist()
    for start in range(0, len(broken), size):
        end = min(start + size, len(broken))
        if broken[start] == broken[end - 1]:
            t, s = int(teacher[start]), int(student[start])
            yield slice(t, t + end - start), slice(s, s + end - start)
        else:
            yield teacher[start:end], student[start:end]


def dense_divergence(
    logits: Tensor, teacher: Tensor, pairs: Pairs, measure: Measure, want_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """``(B, Tt)`` divergences (0 where nothing counts) and, where wanted, their gradient ``(B, T, V)``."""
    flat, flat_teacher = logits.reshape(-1, logits.shape[2]), teacher.reshape(-1, teacher.shape[2])
    losses, gradient = _pass(flat, flat_teacher, logits.shape, pairs, measure, want_gradient, floored=False)
    # -inf scores make 0 · inf; they are rare, so the pass is only then repeated with a floor under them.
    if losses.device.type == "cpu" and not bool(torch.isfinite(losses).all()):
        losses, gradient = _pass(flat, flat_teacher, logits.shape, pairs, measure, want_gradient, floored=True)
    return losses, gradient


def _pass(
    logits: Tensor,
    teacher: Tensor,
    shape: torch.Size,
    pairs: Pairs,
    measure: Measure,
    want_gradient: bool,
    floored: bool,
) -> tuple[Tensor, Tensor | None]:
    on_cpu = logits.device.type == "cpu"
    floored = floored or not on_cpu
    losses = torch.zeros(pairs.mask.numel(), dtype=working(logits[:0]).dtype, device=logits.device)
    mask = pairs.mask.flatten()
    gradient = _empty_gradient(logits, pairs, shape[1]) if want_gradient else None
    for teacher_rows, student_rows in paired_chunks(pairs, shape[1], shape[2]):
        s, t = working(logits[student_rows]), working(teacher[teacher_rows]).to(losses.dtype)
        if floored:
            s, t = s.clamp(min=FLOOR), t.clamp(min=FLOOR)
        view = isinstance(student_rows, slice) and logits.dtype == s.dtype and not pairs.repeated
        made = gradient[student_rows] if view and gradient is not None else None
        made = torch.empty_like(s) if want_gradient and made is None else made
        values = divergence_rows(s, t, measure, made)
        if not on_cpu:
            kept = mask[teacher_rows]
            values = torch.where(kept, values, 0.0)
            made = None if made is None else torch.where(kept.unsqueeze(-1), made, 0.0)
        losses[teacher_rows] = values
        if gradient is not None and made is not None and not view:
            _store(gradient, student_rows, made.to(gradient.dtype), pairs.repeated or not on_cpu)
    return losses.view(pairs.mask.shape), None if gradient is None else gradient.view(shape)


def _empty_gradient(logits: Tensor, pairs: Pairs, num_frames: int) -> Tensor:
    """``(B·T, V)``: zero where nothing will be written (everywhere if rows are added up)."""
    if pairs.repeated or logits.device.type != "cpu":
        return torch.zeros(logits.shape, dtype=logits.dtype, device=logits.device)
    gradient = torch.empty(logits.shape, dtype=logits.dtype)
    unused = torch.ones(logits.shape[0], dtype=torch.bool)
    offsets = torch.arange(pairs.mask.shape[0]).unsqueeze(1) * num_frames
    unused[(pairs.student_frames + offsets)[pairs.mask]] = False
    return gradient.index_fill_(0, unused.nonzero().squeeze(1), 0.0)


def _store(gradient: Tensor, rows: Rows, made: Tensor, add: bool) -> None:
    if isinstance(rows, slice):
        gradient[rows] = gradient[rows] + made if add else made
    elif add:
        gradient.index_add_(0, rows, made)
    else:
        gradient.index_copy_(0, rows, made)


class DenseDivergence(torch.autograd.Function):
    """``(B,)`` sums of frame divergences; the gradient is made in the forward pass and handed out once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, teacher: Tensor, pairs: Pairs, measure: Measure) -> Tensor:
        losses, gradient = dense_divergence(logits, teacher, pairs, measure, ctx.needs_input_grad[0])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses.sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        if grad.device.type != "cpu" or not bool((grad == 1).all()):
            # In place, so that no second tensor of this size is made; a second backward through the same graph is
            # refused by autograd's own version check.
            gradient.mul_(grad.view(-1, 1, 1).to(gradient.dtype))
        return gradient, None, None, None
