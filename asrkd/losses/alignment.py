"""Where a transcript stands in time, as a teacher. Legend: B utterances, T frames, V tokens, U labels, K columns.

Sources: Graves et al. 2006 (forward-backward); Kurata & Saon 2019, 2020 (guided CTC).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from asrkd.losses.clock import FLOOR, on_student_clock
from asrkd.losses.frame import BlankPolicy, Selection, Window, frame_kl, shifted
from asrkd.losses.lattice import Transcripts, lattice
from asrkd.losses.reduction import Reduction, check_logits, reduce, working
from asrkd.losses.stored import kept_log_probs
from asrkd.losses.supervised import check_tokens
from asrkd.types import Frames, TopK


def alignment_posteriors(
    teacher: Frames | TopK, tokens: Tensor, token_lengths: Tensor, *, blank_id: int, num_tokens: int
) -> TopK:
    """CTC state occupancies ``γ_t(v | x, y)`` of the teacher given a transcript: a soft alignment free of its errors.

    They are sparse by nature (blank and the labels of the transcript) and come as ``TopK`` without a rest, so that
    :func:`asrkd.losses.frame.frame_kl` takes them as they are, delay and all. With stored posteriors, a label that a frame
    did not keep gets an even share of the frame's rest.

    Args:
        teacher: Log-probabilities, dense or stored.
        tokens: ``(B, U)`` labels of the transcript.
        token_lengths: ``(B,)``.
        blank_id: Of the vocabulary.
        num_tokens: V.

    Returns:
        ``(B, T, U+1)`` entries; utterances whose transcript does not fit into the frames have length 0.

    Raises:
        ValueError: For shapes, lengths or ids that do not fit.
    """
    check_tokens(tokens, token_lengths, len(teacher.lengths), num_tokens, blank_id)
    transcripts = Transcripts.of_references(tokens, token_lengths, blank_id)
    columns = transcripts.columns
    events = on_student_clock(teacher, num_tokens, blank_id, teacher.frame_shift_s, "spikes")
    if events.ids is None:
        places = columns.unsqueeze(1).expand(-1, events.log_probs.shape[1], -1)
        log_probs = working(events.log_probs.gather(2, places)).clamp(min=FLOOR)
    else:
        log_probs = _stored_columns(events.log_probs, events.ids, columns, num_tokens)
    _, occupancies, fits = lattice(log_probs, events.lengths, transcripts)
    # A label that comes twice has all its occupancy in its first column.
    return TopK(
        columns.unsqueeze(1).expand(occupancies.shape).contiguous(),
        (occupancies / occupancies.sum(2, keepdim=True).clamp(min=1e-30)).log(),
        torch.full(occupancies.shape[:2], -torch.inf, dtype=occupancies.dtype, device=occupancies.device),
        events.lengths * fits,
        teacher.frame_shift_s,
        num_tokens,
    )


def alignment_kl(
    logits: Tensor,
    lengths: Tensor,
    teacher: Frames | TopK,
    tokens: Tensor,
    token_lengths: Tensor,
    *,
    blank_id: int,
    student_frame_shift_s: float,
    blank: BlankPolicy = "keep",
    blank_threshold: float = 0.95,
    blank_weight: float = 1.0,
    select: Selection = "all",
    neighbourhood_frames: int = 1,
    delay_ms: float = 0.0,
    window: Window = "none",
    max_delay_ms: float = 0.0,
    reduction: Reduction = "sum",
) -> Tensor:
    """``Σ_t KL(γ_t ‖ p_S(t + d))``: frame KL from the teacher's alignment of a transcript (:func:`alignment_posteriors`).

    Args:
        logits: ``(B, T, V)`` unnormalised scores.
        lengths: ``(B,)`` frames.
        teacher: Log-probabilities, dense or stored.
        tokens: ``(B, U)`` labels of the transcript.
        token_lengths: ``(B,)``.
        blank_id: Of the vocabulary.
        student_frame_shift_s: Seconds from one student frame to the next.
        blank: This and the other options as in :func:`asrkd.losses.frame.frame_kl`.
        blank_threshold: θ of ``drop``.
        blank_weight: Of ``decouple``.
        select: Frames around the alignment's spikes, or all.
        neighbourhood_frames: On both sides of a spike.
        delay_ms: d.
        window: Best d by ``utterance``, ``frame`` or ``auto``.
        max_delay_ms: D of ``window``.
        reduction: ``sum`` in nats, ``mean`` by frames left in, ``none`` for ``(B,)``.

    Raises:
        ValueError: For shapes, lengths, ids, frame shifts or options that do not fit.
    """
    check_logits(logits, lengths, blank_id)
    targets = alignment_posteriors(teacher, tokens, token_lengths, blank_id=blank_id, num_tokens=logits.shape[2])
    return frame_kl(
        logits,
        lengths,
        targets,
        blank_id=blank_id,
        student_frame_shift_s=student_frame_shift_s,
        blank=blank,
        blank_threshold=blank_threshold,
        blank_weight=blank_weight,
        select=select,
        neighbourhood_frames=neighbourhood_frames,
        delay_ms=delay_ms,
        window=window,
        max_delay_ms=max_delay_ms,
        reduction=reduction,
    )


def _stored_columns(log_probs: Tensor, ids: Tensor, columns: Tensor, num_tokens: int) -> Tensor:
    """``(B, T, C)`` log-probabilities of ``columns (B, C)`` from kept entries ``(B, T, K)`` and a rest."""
    kept = log_probs[..., :-1]
    used = kept > FLOOR
    others = (num_tokens - used.sum(2)).clamp(min=1)
    found = (log_probs[..., -1] - others.log()).unsqueeze(2).expand(-1, -1, columns.shape[1]).clamp(min=FLOOR)
    for place in range(ids.shape[2]):  # K is small, and (B, T, C, K) would be large
        same = (ids[..., place].unsqueeze(2) == columns.unsqueeze(1)) & used[..., place].unsqueeze(2)
        found = torch.where(same, kept[..., place].unsqueeze(2), found)
    return found


def guided_ctc(
    logits: Tensor,
    lengths: Tensor,
    guide: Frames | TopK,
    *,
    blank_id: int,
    student_frame_shift_s: float,
    delay_ms: float = 0.0,
    scale: Literal["posterior", "log"] = "posterior",
    reduction: Reduction = "sum",
) -> Tensor:
    """Ask the student's spikes to stand where the guide's do: ``Σ_t (1 - p_S(v_t, t + d))`` over the guide's spikes.

    ``v_t`` is the guide's likeliest token where that is no blank; frames in which it is blank say nothing. The paper
    maximises ``Σ p_S``; the 1 makes the loss zero when all spikes stand right and changes no gradient.

    Args:
        logits: ``(B, T, V)`` unnormalised scores.
        lengths: ``(B,)`` frames.
        guide: Its log-probabilities, dense or stored; another frame shift is brought to the student's.
        blank_id: Of the vocabulary.
        student_frame_shift_s: Seconds from one student frame to the next.
        delay_ms: d.
        scale: ``posterior`` as in the paper, or ``log`` for ``-Σ log p_S`` in nats.
        reduction: ``sum``, ``mean`` by spikes, ``none`` for ``(B,)``.

    Raises:
        ValueError: For shapes, frame shifts or options that do not fit.
    """
    check_logits(logits, lengths, blank_id)
    if scale not in ("posterior", "log"):
        raise ValueError(f"scale: expected posterior or log; found {scale!r}")
    events = on_student_clock(guide, logits.shape[2], blank_id, student_frame_shift_s, "spikes")
    if events.log_probs.shape[2] < 2 or events.log_probs.shape[1] == 0:
        return reduce(working(logits[:, :0]).flatten(1).sum(1), lengths.new_zeros(len(lengths)), reduction)
    tokens = events.log_probs if events.ids is None else events.log_probs[..., :-1]
    best = tokens.argmax(2, keepdim=True)
    ids = best if events.ids is None else events.ids.gather(2, best)
    pairs = shifted(events.spikes(), lengths, round(delay_ms / 1000 / student_frame_shift_s))
    log_probs = kept_log_probs(logits, ids, pairs.mask.unsqueeze(2), pairs).squeeze(2)
    missing = -log_probs if scale == "log" else -torch.expm1(log_probs)
    return reduce(torch.where(pairs.mask, missing, 0.0).sum(1), pairs.mask.sum(1), reduction)
