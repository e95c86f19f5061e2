"""Teacher and student on one clock. Legend: B utterances, T frames, V tokens, K kept entries, E events.

A teacher's frame is a distribution over E events: the V tokens, or, as stored, the K kept tokens and one bucket for the rest.
Frame shifts are compared in seconds, never guessed from lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from asrkd.losses.reduction import check_log_probs, valid_frames, working
from asrkd.types import Frames, TopK

FLOOR = -1e4
"""Stands for log 0 where -inf would make NaN gradients: ``exp(FLOOR)`` is 0 in every precision."""


@dataclass(frozen=True)
class Events:
    """A teacher's posteriors at the student's frame shift.

    Args:
        log_probs: ``(B, T, E)``; for stored targets the last event is the rest.
        ids: ``(B, T, K)`` tokens of the events but the last, or ``None`` for dense posteriors.
        blank_log_prob: ``(B, T)``; ``FLOOR`` where blank is not among the kept entries.
        lengths: ``(B,)`` frames.
    """

    log_probs: Tensor
    ids: Tensor | None
    blank_log_prob: Tensor
    lengths: Tensor

    def chosen(self, blank: str, threshold: float, select: str, neighbourhood_frames: int) -> Tensor:
        """``(B, T)`` bool: the frames that policies of :func:`asrkd.losses.frame.frame_kl` leave in."""
        keep = valid_frames(self.lengths, self.log_probs.shape[1])
        if blank == "drop":
            keep = keep & (self.blank_log_prob <= math.log(threshold))
        if select == "spikes" and keep.numel():
            width = 2 * neighbourhood_frames + 1
            spikes = self.spikes().to(self.log_probs.dtype).unsqueeze(1)
            keep = keep & (F.max_pool1d(spikes, width, stride=1, padding=neighbourhood_frames).squeeze(1) > 0)
        return keep

    def spikes(self) -> Tensor:
        """``(B, T)`` bool: valid frames whose likeliest token is no blank."""
        tokens = self.log_probs if self.ids is None else self.log_probs[..., :-1]
        if tokens.shape[-1] == 0:
            return torch.zeros_like(self.blank_log_prob, dtype=torch.bool)
        return (tokens.amax(-1) > self.blank_log_prob) & valid_frames(self.lengths, tokens.shape[1])


def on_student_clock(
    teacher: Frames | TopK, num_tokens: int, blank_id: int, student_frame_shift_s: float, pooling: str
) -> Events:
    """The teacher's posteriors pooled or repeated to the student's frame shift.

    Args:
        teacher: Log-probabilities.
        num_tokens: V.
        blank_id: Of the shared vocabulary.
        student_frame_shift_s: Seconds from one student frame to the next; a whole multiple or part of the teacher's.
        pooling: For a faster teacher: ``spikes`` takes of each group the frame with the least blank, ``mean`` averages
            probabilities, ``max`` takes each token's largest probability (blank's smallest) and renormalises. Stored
            targets know only ``spikes``: the kept tokens differ from frame to frame.

    Raises:
        ValueError: If shapes, vocabulary sizes or frame shifts do not fit.
    """
    events = (
        _stored(teacher, num_tokens, blank_id) if isinstance(teacher, TopK) else _dense(teacher, num_tokens, blank_id)
    )
    ratio = student_frame_shift_s / teacher.frame_shift_s
    if abs(ratio - 1) < 1e-6:
        return events
    faster, slower = round(ratio), round(1 / ratio)
    if faster >= 2 and abs(ratio - faster) < 1e-6 * faster:
        return _pooled(events, faster, blank_id, pooling)
    if slower >= 2 and abs(1 / ratio - slower) < 1e-6 * slower:
        return _map(events, lambda values: values.repeat_interleave(slower, 1), events.lengths * slower)
    raise ValueError(
        f"frame_shift_s: expected the teacher's to be a whole multiple or part of the student's "
        f"{student_frame_shift_s:g} s, found {teacher.frame_shift_s:g} s"
    )


def _dense(teacher: Frames, num_tokens: int, blank_id: int) -> Events:
    check_log_probs(teacher.values, teacher.lengths, num_tokens)
    values = teacher.values.detach()
    return Events(values, None, working(values[..., blank_id]).clamp(min=FLOOR), teacher.lengths)


def _stored(teacher: TopK, num_tokens: int, blank_id: int) -> Events:
    if teacher.vocab_size != num_tokens:
        raise ValueError(f"teacher.vocab_size: expected {num_tokens}, found {teacher.vocab_size}")
    log_probs = working(teacher.log_probs.detach())
    is_blank = (teacher.ids == blank_id) & (log_probs > FLOOR)
    events = torch.cat((log_probs, working(teacher.tail_log_prob.detach()).unsqueeze(-1)), -1).clamp(min=FLOOR)
    blank = F.pad(log_probs.masked_fill(~is_blank, FLOOR), (1, 0), value=FLOOR).amax(-1)
    return Events(events, teacher.ids, blank, teacher.lengths)


def _map(events: Events, change: Callable[[Tensor], Tensor], lengths: Tensor) -> Events:
    ids = None if events.ids is None else change(events.ids)
    return Events(change(events.log_probs), ids, change(events.blank_log_prob), lengths)


def _pooled(events: Events, factor: int, blank_id: int, pooling: str) -> Events:
    lengths = -(-events.lengths // factor)
    if pooling == "spikes":
        place = _least_blank(events, factor)

        def pick(values: Tensor) -> Tensor:
            index = place if values.ndim == 2 else place.unsqueeze(-1).expand(-1, -1, values.shape[2])
            return values.gather(1, index)

        return _map(events, pick, lengths)
    if events.ids is not None:
        raise ValueError(f"pooling: expected spikes for stored targets, found {pooling!r}")
    frames, num_frames = events.log_probs, events.log_probs.shape[1]
    outside = ~valid_frames(events.lengths, num_frames).unsqueeze(-1)
    pad = -num_frames % factor
    probs = F.pad(working(frames).exp().masked_fill(outside, 0.0), (0, 0, 0, pad))
    probs = probs.view(len(probs), -1, factor, probs.shape[2])
    pooled = probs.sum(2) if pooling == "mean" else probs.amax(2)
    if pooling == "max":
        blank = F.pad(working(frames[..., blank_id]).exp().masked_fill(outside.squeeze(-1), 1.0), (0, pad), value=1.0)
        pooled[..., blank_id] = blank.view(len(blank), -1, factor).amin(2)
    pooled = pooled / pooled.sum(-1, keepdim=True).clamp(min=1e-30)
    log_probs = pooled.log().clamp(min=FLOOR)
    return Events(log_probs, None, log_probs[..., blank_id], lengths)


def _least_blank(events: Events, factor: int) -> Tensor:
    """``(B, ceil(T / factor))`` of each group the frame with the least blank among the valid ones."""
    num_frames = events.blank_log_prob.shape[1]
    outside = ~valid_frames(events.lengths, num_frames)
    blank = F.pad(events.blank_log_prob.masked_fill(outside, 1.0), (0, -num_frames % factor), value=1.0)
    first = torch.arange(0, blank.shape[1], factor, device=blank.device)
    return (blank.view(len(blank), -1, factor).argmin(2) + first).clamp(max=num_frames - 1)
