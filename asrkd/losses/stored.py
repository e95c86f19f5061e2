"""Divergence from stored (top-k) targets without a dense scatter. Legend: B utterances, T frames, V tokens, K kept entries.

Only the log-probabilities of the kept tokens are taken from the student; the rest of every row enters through one number
a frame. All policies then work on ``(B, T, K + 1)`` events, and the gradient ``q · c + kept`` is one pass over the logits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from asrkd.losses.clock import FLOOR, Events
from asrkd.losses.reduction import working
from asrkd.losses.rows import Measure, Pairs, chunk_rows


def stored_divergence(logits: Tensor, events: Events, pairs: Pairs, measure: Measure, blank_id: int) -> Tensor:
    """``(B, Tt)`` divergences over the events, 0 where nothing counts; differentiable by ``logits``.

    Args:
        logits: ``(B, T, V)``.
        events: The teacher's, with ids.
        pairs: Which frames meet.
        measure: Temperature acts on the K + 1 events of both sides, the rest being one event; ``decouple_blank`` is
            only looked at for being ``None`` or not, since blank's place differs from frame to frame.
        blank_id: Of the vocabulary.
    """
    assert events.ids is not None
    student = student_events(logits, events.ids, events.log_probs[..., :-1] <= FLOOR, pairs)
    teacher, student = _tempered(events.log_probs, measure.temperature), _tempered(student, measure.temperature)
    if measure.decouple_blank is None:
        losses = event_divergence(teacher, student, measure.divergence)
    else:
        is_blank = F.pad((events.ids == blank_id) & (events.log_probs[..., :-1] > FLOOR), (0, 1))
        losses = _decoupled(teacher, student, is_blank, measure)
    return torch.where(pairs.mask, measure.temperature**2 * losses, 0.0)


def student_events(logits: Tensor, ids: Tensor, unused: Tensor, pairs: Pairs) -> Tensor:
    """``(B, Tt, K+1)`` student log-probabilities of the teacher's events, frame by paired frame.

    Args:
        logits: ``(B, T, V)``.
        ids: ``(B, Tt, K)``.
        unused: ``(B, Tt, K)`` bool, places without an entry.
        pairs: Which frames meet.
    """
    used = ~unused & pairs.mask.unsqueeze(-1)
    kept = kept_log_probs(logits, ids, used, pairs)
    # A rest below the precision of the sum (1e-7 in float32) cannot be told from none.
    rest = torch.log1p(-(kept.exp().sum(-1, keepdim=True)).clamp(max=1 - torch.finfo(kept.dtype).eps))
    return torch.cat((kept, rest), -1)


def kept_log_probs(logits: Tensor, ids: Tensor, used: Tensor, pairs: Pairs) -> Tensor:
    """``(B, Tt, K)`` log-probabilities of ``ids`` at the paired frames of ``logits (B, T, V)``, ``FLOOR`` where not used."""
    if not torch.is_grad_enabled():
        logits = logits.detach()
    with torch.autocast(logits.device.type, enabled=False):
        kept: Tensor = _KeptLogProbs.apply(logits, ids, used, pairs)  # type: ignore[no-untyped-call]
    return kept


def _tempered(log_probs: Tensor, temperature: float) -> Tensor:
    return log_probs if temperature == 1.0 else (log_probs / temperature).log_softmax(-1)


def event_divergence(teacher: Tensor, student: Tensor, kind: str) -> Tensor:
    """``(..., E)`` finite log-probabilities to ``(...)`` divergence in nats.

    Args:
        teacher: log p.
        student: log q.
        kind: ``forward`` KL(p‖q), ``reverse`` KL(q‖p), ``js``.
    """
    if kind == "forward":
        return (teacher.exp() * (teacher - student)).sum(-1)
    if kind == "reverse":
        return (student.exp() * (student - teacher)).sum(-1)
    middle = torch.logaddexp(teacher, student) - math.log(2)
    return 0.5 * ((teacher.exp() * (teacher - middle)).sum(-1) + (student.exp() * (student - middle)).sum(-1))


def _decoupled(teacher: Tensor, student: Tensor, is_blank: Tensor, measure: Measure) -> Tensor:
    """``w · D(blank against rest) + p(rest) · D(among the rest)`` over events."""

    def binary(log_probs: Tensor) -> Tensor:
        blank = log_probs.masked_fill(~is_blank, FLOOR).logsumexp(-1)
        return torch.stack((blank, log_probs.masked_fill(is_blank, FLOOR).logsumexp(-1)), -1)

    def among(log_probs: Tensor) -> Tensor:
        return log_probs.masked_fill(is_blank, FLOOR).log_softmax(-1)

    of_teacher = binary(teacher)
    rest = of_teacher[..., 1].exp() * event_divergence(among(teacher), among(student), measure.divergence)
    return measure.blank_weight * event_divergence(of_teacher, binary(student), measure.divergence) + rest


class _KeptLogProbs(torch.autograd.Function):
    """``(B, Tt, K)`` log-probabilities of ``ids`` at the paired student frames; ``FLOOR`` where not ``used``.

    The forward pass leaves the student's probabilities, which the backward pass turns into the gradient in place.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, used: Tensor, pairs: Pairs) -> Tensor:
        batch, num_frames, num_tokens = logits.shape
        frames = pairs.student_frames.clamp(min=0, max=max(0, num_frames - 1))
        asked = torch.zeros(batch, num_frames, dtype=torch.int8, device=logits.device)
        asked.scatter_reduce_(1, frames, pairs.mask.to(torch.int8), "amax")
        places = frames.unsqueeze(-1) * num_tokens + ids
        kept = working(logits.flatten(1).gather(1, places.flatten(1)).view(ids.shape))
        if ctx.needs_input_grad[0] and logits.device.type == "cpu" and logits.dtype == kept.dtype:
            probs: Tensor | None = _softmax(logits, asked.bool())
            assert probs is not None
            log_z = _normalisers_of_kept(logits, probs, kept, places, frames)
        else:
            of_frames, probs = _normalisers(logits, asked.bool(), ctx.needs_input_grad[0])
            log_z = of_frames.gather(1, frames)
        kept = (kept - log_z.unsqueeze(-1)).clamp(min=FLOOR)
        ctx.save_for_backward(probs, places, frames, used)
        return torch.where(used, kept, FLOOR)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        probs, places, frames, used = ctx.saved_tensors
        grad = torch.where(used, grad, 0.0).to(probs.dtype)
        factor = torch.zeros(probs.shape[:2], dtype=probs.dtype, device=probs.device)
        factor.scatter_add_(1, frames, -grad.sum(-1))
        probs.mul_(factor.unsqueeze(-1))
        probs.flatten(1).scatter_add_(1, places.flatten(1), grad.flatten(1))
        return probs, None, None, None


def _softmax(logits: Tensor, asked: Tensor) -> Tensor:
    """``(B, T, V)`` softmax of the asked frames, 0 elsewhere, written once."""
    probs = torch.empty(logits.shape, dtype=logits.dtype)
    flat, target = logits.reshape(-1, logits.shape[2]), probs.view(-1, logits.shape[2])
    size = chunk_rows(flat.shape[1], flat.device)
    for start in range(0, len(flat), size):
        torch.softmax(flat[start : start + size], -1, out=target[start : start + size])
    return probs if bool(asked.all()) else probs.masked_fill_(~asked.unsqueeze(-1), 0.0)


def _normalisers_of_kept(logits: Tensor, probs: Tensor, kept: Tensor, places: Tensor, frames: Tensor) -> Tensor:
    """``(B, Tt)`` logsumexp of the paired frames, from the likeliest kept token of each: ``log Z = s - log softmax(s)``.

    Frames where the student gives next to nothing to every kept token (or that keep none) are summed over V instead.
    """
    if kept.shape[2] == 0:
        likeliest = log_z = torch.zeros(frames.shape, dtype=kept.dtype)
    else:
        likeliest, place = probs.flatten(1).gather(1, places.flatten(1)).view(kept.shape).max(-1)
        log_z = kept.gather(2, place.unsqueeze(-1)).squeeze(-1) - likeliest.log()
    rows, columns = (~(likeliest > 1e-20)).nonzero(as_tuple=True)
    if len(rows):
        log_z = log_z.index_put((rows, columns), logits[rows, frames[rows, columns]].logsumexp(-1))
    return log_z


def _normalisers(logits: Tensor, asked: Tensor, want_probs: bool) -> tuple[Tensor, Tensor | None]:
    """``(B, T)`` logsumexp and, where wanted, ``(B, T, V)`` softmax of the asked frames; 0 elsewhere."""
    flat, wanted = logits.reshape(-1, logits.shape[2]), asked.flatten()
    log_z = torch.zeros(flat.shape[0], dtype=working(logits[:0]).dtype, device=logits.device)
    probs = torch.empty(flat.shape, dtype=logits.dtype, device=logits.device) if want_probs else None
    size = chunk_rows(flat.shape[1], flat.device)
    for start in range(0, flat.shape[0], size):
        rows = slice(start, start + size)
        chunk = working(flat[rows])
        softmax = chunk.softmax(-1)
        # The likeliest token's probability gives log Z without a second exponential.
        log_z[rows] = torch.where(wanted[rows], chunk.amax(-1) - softmax.amax(-1).log(), 0.0)
        if probs is not None:
            if wanted.device.type != "cpu" or not bool(wanted[rows].all()):
                softmax.masked_fill_(~wanted[rows].unsqueeze(-1), 0.0)
            probs[rows] = softmax
    return log_z.view(asked.shape), None if probs is None else probs.view(logits.shape)
