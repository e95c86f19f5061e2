"""Distillation of inner representations. Legend: B utterances, T frames, D units, H relation heads.

Every loss is a sum over the frames that both models have; where widths differ, a learned projection of the student's
comes first, or a loss that compares frames with frames (CKA, similarities, relations) needs none.

Sources: Chang et al. 2022 (DistilHuBERT, L1 and cosine); Kornblith et al. 2019 (CKA); Tung & Mori 2019 (similarity-preserving);
Wang et al. 2020, 2021 (MiniLM's relations and attention maps).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from asrkd.losses.reduction import Reduction, full_precision, reduce, valid_frames, working
from asrkd.types import Frames


@full_precision
def hidden_mse(
    student: Tensor, lengths: Tensor, teacher: Frames, *, student_frame_shift_s: float, reduction: Reduction = "sum"
) -> Tensor:
    """Mean squared difference of the units: ``Σ_t (1/D) ‖h_S(t) - h_T(t)‖²``.

    Args:
        student: ``(B, T, D)``, projected to the teacher's width where they differ.
        lengths: ``(B,)`` frames.
        teacher: ``(B, T', D)``; another frame shift is averaged or repeated to the student's.
        student_frame_shift_s: Seconds from one student frame to the next.
        reduction: ``sum``, ``mean`` by frames, ``none`` for ``(B,)``.

    Raises:
        ValueError: For widths or frame shifts that do not fit.
    """
    ours, theirs, mask = _met(student, lengths, teacher, student_frame_shift_s, same_width=True)
    return _over_frames((ours - theirs).square().mean(-1), mask, reduction)


@full_precision
def hidden_l1_cosine(
    student: Tensor,
    lengths: Tensor,
    teacher: Frames,
    *,
    student_frame_shift_s: float,
    cosine_weight: float = 1.0,
    reduction: Reduction = "sum",
) -> Tensor:
    """DistilHuBERT's loss: ``Σ_t (1/D) ‖h_S(t) - h_T(t)‖₁ - λ log σ(cos(h_S(t), h_T(t)))``.

    At equality it is ``λ log(1 + 1/e)`` a frame, not zero.

    Args:
        student: ``(B, T, D)``, projected to the teacher's width where they differ.
        lengths: ``(B,)`` frames.
        teacher: ``(B, T', D)``; another frame shift is averaged or repeated to the student's.
        student_frame_shift_s: Seconds from one student frame to the next.
        cosine_weight: λ.
        reduction: ``sum``, ``mean`` by frames, ``none`` for ``(B,)``.

    Raises:
        ValueError: For widths or frame shifts that do not fit.
    """
    ours, theirs, mask = _met(student, lengths, teacher, student_frame_shift_s, same_width=True)
    distance = (ours - theirs).abs().mean(-1)
    return _over_frames(
        distance - cosine_weight * F.logsigmoid(F.cosine_similarity(ours, theirs, dim=-1)), mask, reduction
    )


@full_precision
def hidden_cka(
    student: Tensor, lengths: Tensor, teacher: Frames, *, student_frame_shift_s: float, reduction: Reduction = "sum"
) -> Tensor:
    """``1 - CKA`` of the frames of each utterance, weighed by its frames; widths may differ.

    Linear CKA: ``‖Ȳᵀ X̄‖²_F / (‖X̄ᵀ X̄‖_F ‖Ȳᵀ Ȳ‖_F)`` of the centred ``(T, D)`` matrices, which rotation and scale leave as it is.

    Args:
        student: ``(B, T, D)``.
        lengths: ``(B,)`` frames.
        teacher: ``(B, T', D')``; another frame shift is averaged or repeated to the student's.
        student_frame_shift_s: Seconds from one student frame to the next.
        reduction: ``sum`` over frames, ``mean`` by frames, ``none`` for ``(B,)`` (each its ``T · (1 - CKA)``).

    Raises:
        ValueError: For frame shifts that do not fit.
    """
    ours, theirs, mask = _met(student, lengths, teacher, student_frame_shift_s)
    x, y = _centred(ours, mask), _centred(theirs, mask)
    cross = (y.transpose(1, 2) @ x).square().sum((1, 2))
    own = _self_norm(x) * _self_norm(y)
    # An utterance without variance (one frame, or none) has no CKA and says nothing.
    varied = own > 1e-12
    alignment = cross / torch.where(varied, own, 1.0)
    counts = mask.sum(1)
    return reduce(torch.where(varied, counts * (1 - alignment), 0.0), counts, reduction)


@full_precision
def similarity_preserving(
    student: Tensor, lengths: Tensor, teacher: Frames, *, student_frame_shift_s: float, reduction: Reduction = "sum"
) -> Tensor:
    """``(1/T) ‖G_T - G_S‖²_F`` with ``G`` the row-normalised similarities ``H Hᵀ`` among the frames of an utterance.

    Args:
        student: ``(B, T, D)``.
        lengths: ``(B,)`` frames.
        teacher: ``(B, T', D')``; another frame shift is averaged or repeated to the student's.
        student_frame_shift_s: Seconds from one student frame to the next.
        reduction: ``sum`` (each utterance T times the paper's ``1/T²`` mean), ``mean`` by frames, ``none`` for ``(B,)``.

    Raises:
        ValueError: For frame shifts that do not fit.
    """
    ours, theirs, mask = _met(student, lengths, teacher, student_frame_shift_s)
    ours, theirs = (torch.where(mask.unsqueeze(2), values, 0.0) for values in (ours, theirs))
    difference = _similarities(ours) - _similarities(theirs)
    counts = mask.sum(1)
    return reduce(difference.square().sum((1, 2)) / counts.clamp(min=1), counts, reduction)


@full_precision
def relation_kl(
    student: Tensor,
    lengths: Tensor,
    teacher: Frames,
    *,
    student_frame_shift_s: float,
    heads: int = 1,
    reduction: Reduction = "sum",
) -> Tensor:
    """MiniLM's relations: ``Σ_t (1/H) Σ_h KL(R_T ‖ R_S)`` with ``R = softmax(V_h V_hᵀ / √d)`` among an utterance's frames.

    On the values of attention it is the paper's value relation; any inner representation will do. Widths may differ.

    Args:
        student: ``(B, T, D)``.
        lengths: ``(B,)`` frames.
        teacher: ``(B, T', D')``; another frame shift is averaged or repeated to the student's.
        student_frame_shift_s: Seconds from one student frame to the next.
        heads: H, into which both widths are cut.
        reduction: ``sum`` in nats, ``mean`` by frames, ``none`` for ``(B,)``.

    Raises:
        ValueError: For widths or frame shifts that do not fit.
    """
    ours, theirs, mask = _met(student, lengths, teacher, student_frame_shift_s)
    for name, values in (("student", ours), ("teacher", theirs)):
        if heads < 1 or values.shape[2] % heads:
            raise ValueError(f"heads: expected a divisor of the {name}'s {values.shape[2]} units, found {heads}")
    return attention_map_kl(_relations(ours, heads), _relations(theirs, heads), mask.sum(1), reduction=reduction)


@full_precision
def attention_map_kl(
    student_scores: Tensor, teacher_scores: Tensor, lengths: Tensor, *, reduction: Reduction = "sum"
) -> Tensor:
    """``Σ_t (1/H) Σ_h KL(A_T(t) ‖ A_S(t))`` between attention maps (MiniLM).

    Args:
        student_scores: ``(B, H, T, T)`` attention scores before the softmax (or log-probabilities), queries first.
        teacher_scores: The same of the teacher, with as many heads.
        lengths: ``(B,)`` frames.
        reduction: ``sum`` in nats, ``mean`` by frames, ``none`` for ``(B,)``.

    Raises:
        ValueError: For shapes that do not fit.
    """
    if student_scores.shape != teacher_scores.shape:
        expected, found = tuple(teacher_scores.shape), tuple(student_scores.shape)
        raise ValueError(f"student_scores: expected the teacher's shape {expected}, found {found}")
    mask = valid_frames(lengths, student_scores.shape[-1])
    keys = mask[:, None, None]
    ours, theirs = (
        working(scores).masked_fill(~keys, -1e4).log_softmax(-1) for scores in (student_scores, teacher_scores.detach())
    )
    divergence = (theirs.exp() * (theirs - ours)).masked_fill(~keys, 0.0).sum(-1).mean(1)
    return _over_frames(divergence, mask, reduction)


def on_clock(teacher: Frames, student_frame_shift_s: float) -> Frames:
    """Hidden states averaged or repeated to the student's frame shift.

    Raises:
        ValueError: If the shifts are no whole multiples of each other.
    """
    ratio = student_frame_shift_s / teacher.frame_shift_s
    values, lengths = working(teacher.values.detach()), teacher.lengths
    if abs(ratio - 1) < 1e-6:
        return Frames(values, lengths, student_frame_shift_s)
    faster, slower = round(ratio), round(1 / ratio)
    if slower >= 2 and abs(1 / ratio - slower) < 1e-6 * slower:
        return Frames(values.repeat_interleave(slower, 1), lengths * slower, student_frame_shift_s)
    if faster >= 2 and abs(ratio - faster) < 1e-6 * faster:
        inside = valid_frames(lengths, values.shape[1]).unsqueeze(2)
        pad = (0, 0, 0, -values.shape[1] % faster)
        total = F.pad(torch.where(inside, values, 0.0), pad).view(len(values), -1, faster, values.shape[2]).sum(2)
        count = F.pad(inside.to(values.dtype), pad).view(len(values), -1, faster, 1).sum(2).clamp(min=1)
        return Frames(total / count, -(-lengths // faster), student_frame_shift_s)
    raise ValueError(
        f"frame_shift_s: expected the teacher's to be a whole multiple or part of the student's "
        f"{student_frame_shift_s:g} s, found {teacher.frame_shift_s:g} s"
    )


def _met(
    student: Tensor, lengths: Tensor, teacher: Frames, frame_shift_s: float, same_width: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Both on one clock and cut to the frames that both have, and ``(B, T)`` which of them are valid."""
    if student.ndim != 3 or teacher.values.ndim != 3 or len(student) != len(teacher.values):
        raise ValueError(
            f"hidden: expected (B, T, D) twice, found {tuple(student.shape)}, {tuple(teacher.values.shape)}"
        )
    if same_width and student.shape[2] != teacher.values.shape[2]:
        raise ValueError(
            f"hidden: expected {teacher.values.shape[2]} units like the teacher's, found {student.shape[2]} (project first)"
        )
    teacher = on_clock(teacher, frame_shift_s)
    shared = min(student.shape[1], teacher.values.shape[1])
    mask = valid_frames(torch.minimum(lengths, teacher.lengths), shared)
    ours = torch.where(mask.unsqueeze(2), working(student[:, :shared]), 0.0)
    theirs = torch.where(mask.unsqueeze(2), teacher.values[:, :shared].to(ours.dtype), 0.0)
    return ours, theirs, mask


def _over_frames(values: Tensor, mask: Tensor, reduction: Reduction) -> Tensor:
    return reduce(torch.where(mask, values, 0.0).sum(1), mask.sum(1), reduction)


def _centred(values: Tensor, mask: Tensor) -> Tensor:
    inside = mask.unsqueeze(2)
    mean = values.sum(1, keepdim=True) / inside.sum(1, keepdim=True).clamp(min=1)
    return torch.where(inside, values - mean, 0.0)


def _self_norm(x: Tensor) -> Tensor:
    # The gradient of a norm at zero is not a number; the square is floored instead.
    return (x.transpose(1, 2) @ x).square().sum((1, 2)).clamp(min=1e-24).sqrt()


def _similarities(values: Tensor) -> Tensor:
    return F.normalize(values @ values.transpose(1, 2), dim=2)


def _relations(values: Tensor, heads: int) -> Tensor:
    split = values.view(*values.shape[:2], heads, values.shape[2] // heads).transpose(1, 2)
    return split @ split.transpose(2, 3) / split.shape[3] ** 0.5
