"""A model that teaches itself. Legend: B utterances, T frames, V tokens.

Sources: Yu et al. 2021 (dual-mode ASR with in-place distillation); Yao et al. 2025 (CR-CTC).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from asrkd.losses.frame import frame_kl
from asrkd.losses.reduction import Reduction, check_logits, working
from asrkd.types import Frames


def consistency(
    logits: Tensor,
    other_logits: Tensor,
    lengths: Tensor,
    *,
    blank_id: int,
    temperature: float = 1.0,
    reduction: Reduction = "sum",
) -> Tensor:
    """CR-CTC: ``½ Σ_t [KL(sg(q_b) ‖ q_a) + KL(sg(q_a) ‖ q_b)]`` between two augmented views of the same audio.

    Each view is the other's target with its gradient stopped (sg). To be used beside CTC on both views.

    Args:
        logits: ``(B, T, V)`` of one view.
        other_logits: ``(B, T, V)`` of the other.
        lengths: ``(B,)`` frames, of both.
        blank_id: Of the vocabulary.
        temperature: τ.
        reduction: ``sum`` in nats, ``mean`` by frames, ``none`` for ``(B,)``.

    Raises:
        ValueError: For shapes that do not fit.
    """
    if other_logits.shape != logits.shape:
        raise ValueError(f"other_logits: expected shape {tuple(logits.shape)}, found {tuple(other_logits.shape)}")
    options: dict[str, Any] = {"blank_id": blank_id, "student_frame_shift_s": 1.0, "reduction": reduction}
    views = (logits, other_logits)
    parts = [
        frame_kl(view, lengths, _as_teacher(other, lengths, 1.0), temperature=temperature, **options)
        for view, other in (views, views[::-1])
    ]
    return 0.5 * (parts[0] + parts[1])


def dual_mode(
    logits: Tensor,
    lengths: Tensor,
    full_context_logits: Tensor,
    *,
    blank_id: int,
    student_frame_shift_s: float,
    temperature: float = 1.0,
    delay_ms: float = 0.0,
    reduction: Reduction = "sum",
) -> Tensor:
    """In-place distillation: the same weights run with full context teach their own streaming mode.

    ``τ² Σ_t KL(sg(p_full^τ(t)) ‖ p_stream^τ(t + d))``. To be used beside a supervised loss on both modes.

    Args:
        logits: ``(B, T, V)`` in streaming mode.
        lengths: ``(B,)`` frames.
        full_context_logits: ``(B, T, V)`` of the same audio with full context.
        blank_id: Of the vocabulary.
        student_frame_shift_s: Seconds from one frame to the next.
        temperature: τ.
        delay_ms: d, how far the streaming mode may lag.
        reduction: ``sum`` in nats, ``mean`` by frames, ``none`` for ``(B,)``.

    Raises:
        ValueError: For shapes that do not fit.
    """
    return frame_kl(
        logits,
        lengths,
        _as_teacher(full_context_logits, lengths, student_frame_shift_s),
        blank_id=blank_id,
        student_frame_shift_s=student_frame_shift_s,
        temperature=temperature,
        delay_ms=delay_ms,
        reduction=reduction,
    )


def _as_teacher(logits: Tensor, lengths: Tensor, frame_shift_s: float) -> Frames:
    check_logits(logits, lengths)
    return Frames(working(logits.detach()).log_softmax(-1), lengths, frame_shift_s)
