"""Frame-level distillation of CTC posteriors. Legend: B utterances, T frames, V tokens, K kept entries, E events.

A teacher's frame is a distribution over E events: the V tokens, or, as stored, the K kept tokens and one bucket for all the
rest. Merging events can only lose divergence, so the loss against stored targets is a lower bound of the dense one.

Sources: Hinton et al. 2015 (temperature KL); Li et al. 2014 (in acoustics); Agarwal et al. 2024 (divergences); Zhao et al. 2022
(decoupling); Kurata & Saon 2019, 2020 (where CTC spikes stand).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asrkd.losses.reduction import Reduction, check_logits, reduce, valid_frames
from asrkd.types import Frames, TopK

Divergence = Literal["forward", "reverse", "js"]
BlankPolicy = Literal["keep", "drop", "decouple"]
Selection = Literal["all", "spikes"]
Window = Literal["none", "utterance", "frame"]

_NEVER = -1e4  # stands for log 0 where -inf would make NaN gradients


def frame_kl(
    student_logits: Tensor,
    student_lengths: Tensor,
    teacher: Frames | TopK,
    *,
    blank_id: int,
    student_frame_shift_s: float,
    temperature: float = 1.0,
    divergence: Divergence = "forward",
    blank: BlankPolicy = "keep",
    blank_threshold: float = 0.95,
    blank_weight: float = 1.0,
    select: Selection = "all",
    neighbourhood_frames: int = 1,
    delay_ms: float = 0.0,
    window: Window = "none",
    max_delay_ms: float = 0.0,
    pooling: Literal["spikes", "mean"] = "spikes",
    reduction: Reduction = "sum",
) -> Tensor:
    """Divergence between teacher and student posteriors, frame by frame.

    ``τ² Σ_t KL(p_T^τ(t) ‖ p_S^τ(t + d))`` over the frames that both have and that the policies leave in. Zero at equality.
    With stored targets temperature acts on the distribution over the K+1 events.

    Args:
        student_logits: ``(B, T, V)`` unnormalised scores.
        student_lengths: ``(B,)`` frames.
        teacher: Log-probabilities: dense ``Frames`` or ``TopK``. Another frame shift must be a whole multiple (or part)
            of the student's; it is pooled or repeated to the student's clock.
        blank_id: Of the vocabulary that both share.
        student_frame_shift_s: Seconds from one student frame to the next.
        temperature: τ.
        divergence: ``forward`` KL(T‖S), ``reverse`` KL(S‖T), ``js`` the Jensen–Shannon divergence.
        blank: ``keep`` all frames; ``drop`` those with ``p_T(blank) > blank_threshold``; ``decouple`` into
            ``blank_weight`` · binary KL of blank against the rest + p_T(not blank) · KL among the rest.
        blank_threshold: θ of ``drop``.
        blank_weight: Of ``decouple``'s binary part.
        select: ``all`` frames, or those within ``neighbourhood_frames`` of a frame whose likeliest token is no blank.
        neighbourhood_frames: On both sides of a spike.
        delay_ms: d, the student's frames lag so far behind the teacher's.
        window: Beyond the fixed delay take the best d up to ``max_delay_ms``: one for each ``utterance``, or for each
            ``frame``.
        max_delay_ms: D of ``window``.
        pooling: For a faster teacher: ``spikes`` keeps the frame with the least blank, ``mean`` averages probabilities.
        reduction: ``sum`` in nats, ``mean`` by frames left in, ``none`` for ``(B,)``.

    Raises:
        ValueError: For shapes, lengths, frame shifts or options that do not fit.
    """
    check_logits(student_logits, student_lengths, blank_id)
    _check_options(temperature, delay_ms, window, max_delay_ms)
    events = _Events.of(teacher, student_frame_shift_s, blank_id, pooling)
    first = round(delay_ms / 1000 / student_frame_shift_s)
    last = first if window == "none" else max(first, round(max_delay_ms / 1000 / student_frame_shift_s))
    chosen = events.chosen(blank, blank_threshold, select, neighbourhood_frames)
    per_delay = [
        _at_delay(student_logits, student_lengths, events, chosen, d, temperature, divergence, blank, blank_weight)
        for d in range(first, last + 1)
    ]
    losses = torch.stack([loss for loss, _ in per_delay])  # (delays, B, T)
    masks = torch.stack([mask for _, mask in per_delay])
    if window == "frame":
        frames = losses.masked_fill(~masks, math.inf).amin(0)
        any_valid = masks.any(0)
        frames = torch.where(any_valid, frames, torch.zeros_like(frames))
        return reduce(frames.sum(1), any_valid.sum(1), reduction)
    sums, counts = losses.sum(2), masks.sum(2)
    best = (sums.detach() / counts.clamp(min=1)).argmin(0, keepdim=True)
    return reduce(sums.gather(0, best).squeeze(0), counts.gather(0, best).squeeze(0), reduction)


def _check_options(temperature: float, delay_ms: float, window: str, max_delay_ms: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature: expected more than 0, found {temperature}")
    if delay_ms < 0:
        raise ValueError(f"delay_ms: expected 0 or more, found {delay_ms}")
    if window not in ("none", "utterance", "frame"):
        raise ValueError(f"window: expected none, utterance or frame; found {window!r}")
    if window != "none" and max_delay_ms < delay_ms:
        raise ValueError(f"max_delay_ms: expected at least delay_ms = {delay_ms:g}, found {max_delay_ms:g}")


class _Events:
    """The teacher on the student's clock: ``log_probs (B, T, E)``, token ids of the events, and where blank is."""

    def __init__(self, log_probs: Tensor, ids: Tensor | None, blank_log_prob: Tensor, lengths: Tensor) -> None:
        self.log_probs = log_probs
        self.ids = ids
        self.blank_log_prob = blank_log_prob
        self.lengths = lengths

    @classmethod
    def of(cls, teacher: Frames | TopK, frame_shift_s: float, blank_id: int, pooling: str) -> _Events:
        if isinstance(teacher, TopK):
            log_probs = torch.cat((teacher.log_probs, teacher.tail_log_prob.unsqueeze(-1)), -1).float()
            used = torch.isfinite(teacher.log_probs)
            is_blank = (teacher.ids == blank_id) & used
            blank = log_probs[..., :-1].masked_fill(~is_blank, _NEVER).amax(-1) if is_blank.shape[-1] else None
            events = cls(log_probs.clamp(min=_NEVER), teacher.ids, blank, teacher.lengths)  # type: ignore[arg-type]
        else:
            log_probs = teacher.values.float().clamp(min=_NEVER)
            events = cls(log_probs, None, log_probs[..., blank_id], teacher.lengths)
        return events._on_clock(teacher.frame_shift_s, frame_shift_s, pooling)

    def _on_clock(self, own_shift_s: float, wanted_shift_s: float, pooling: str) -> _Events:
        ratio = wanted_shift_s / own_shift_s
        if abs(ratio - 1) < 1e-6:
            return self
        faster, slower = round(ratio), round(1 / ratio)
        if faster >= 2 and abs(ratio - faster) < 1e-6:
            return self._pooled(faster, pooling)
        if slower >= 2 and abs(1 / ratio - slower) < 1e-6:
            ids = None if self.ids is None else self.ids.repeat_interleave(slower, 1)
            blank = self.blank_log_prob.repeat_interleave(slower, 1)
            return _Events(self.log_probs.repeat_interleave(slower, 1), ids, blank, self.lengths * slower)
        raise ValueError(
            f"frame_shift_s: expected the teacher's to be a whole multiple or part of the student's {wanted_shift_s:g} s, "
            f"found {own_shift_s:g} s"
        )

    def _pooled(self, factor: int, pooling: str) -> _Events:
        batch, frames, num_events = self.log_probs.shape
        groups = -(-frames // factor)
        pad = groups * factor - frames
        lengths = -(-self.lengths // factor)
        invalid = ~valid_frames(self.lengths, frames)
        if pooling == "mean" and self.ids is None:
            probs = F.pad(self.log_probs.exp().masked_fill(invalid.unsqueeze(-1), 0.0), (0, 0, 0, pad))
            summed = probs.view(batch, groups, factor, num_events).sum(2)
            log_probs = (summed / summed.sum(-1, keepdim=True).clamp(min=1e-30)).clamp(min=1e-38).log()
            counts = F.pad((~invalid).float(), (0, pad)).view(batch, groups, factor).sum(2).clamp(min=1)
            blank = F.pad(self.blank_log_prob.exp().masked_fill(invalid, 0.0), (0, pad))
            blank = (blank.view(batch, groups, factor).sum(2) / counts).clamp(min=1e-38).log()
            return _Events(log_probs, None, blank, lengths)
        if pooling not in ("mean", "spikes"):
            raise ValueError(f"pooling: expected spikes or mean; found {pooling!r}")
        # The frame with the least blank carries the spike; stored targets cannot be averaged, their events differ.
        blank = F.pad(self.blank_log_prob.masked_fill(invalid, 1.0), (0, pad), value=1.0).view(batch, groups, factor)
        place = blank.argmin(2) + torch.arange(groups, device=blank.device) * factor

        def pick(values: Tensor) -> Tensor:
            index = place if values.ndim == 2 else place.unsqueeze(-1).expand(-1, -1, values.shape[2])
            return values.gather(1, index.clamp(max=frames - 1))

        return _Events(
            pick(self.log_probs), None if self.ids is None else pick(self.ids), pick(self.blank_log_prob), lengths
        )

    def chosen(self, blank: str, threshold: float, select: str, neighbourhood: int) -> Tensor:
        """``(B, T)`` bool: frames that the policies leave in."""
        if blank not in ("keep", "drop", "decouple"):
            raise ValueError(f"blank: expected keep, drop or decouple; found {blank!r}")
        keep = valid_frames(self.lengths, self.log_probs.shape[1])
        if blank == "drop":
            keep = keep & (self.blank_log_prob <= math.log(threshold))
        if select == "spikes":
            tokens = self.log_probs if self.ids is None else self.log_probs[..., :-1]
            spike = (tokens.amax(-1) > self.blank_log_prob) & valid_frames(self.lengths, tokens.shape[1])
            width = 2 * neighbourhood + 1
            near = F.max_pool1d(spike.float().unsqueeze(1), width, stride=1, padding=neighbourhood).squeeze(1) > 0
            keep = keep & near
        elif select != "all":
            raise ValueError(f"select: expected all or spikes; found {select!r}")
        return keep


def _at_delay(
    logits: Tensor,
    lengths: Tensor,
    events: _Events,
    chosen: Tensor,
    delay: int,
    temperature: float,
    divergence: str,
    blank: str,
    blank_weight: float,
) -> tuple[Tensor, Tensor]:
    """``(B, T_teacher)`` divergence of teacher frame t from student frame t + delay, and which of them count."""
    num_frames = events.log_probs.shape[1]
    shared = max(0, min(num_frames, logits.shape[1] - delay))
    mask = chosen & valid_frames((lengths - delay).clamp(min=0), num_frames)
    ids = None if events.ids is None else events.ids[:, :shared]
    student = _student_events(logits[:, delay : delay + shared].float(), ids, events.log_probs[:, :shared])
    teacher = events.log_probs[:, :shared]
    blank_at = events.blank_log_prob[:, :shared]
    if blank == "decouple":
        blank_student = _blank_of(logits[:, delay : delay + shared], ids, student, blank_at, events, shared)
        loss = _decoupled(teacher, student, blank_at, blank_student, temperature, divergence, blank_weight)
    else:
        loss = _divergence(_tempered(teacher, temperature), _tempered(student, temperature), divergence)
        loss = loss * temperature**2
    loss = torch.where(mask[:, :shared], loss, torch.zeros_like(loss))
    return F.pad(loss, (0, num_frames - shared)), mask


def _student_events(logits: Tensor, ids: Tensor | None, teacher: Tensor) -> Tensor:
    """Student log-probabilities of the teacher's events; the tail holds what the kept ones leave."""
    if ids is None:
        return logits.log_softmax(-1).clamp(min=_NEVER)
    log_z = logits.logsumexp(-1, keepdim=True)
    kept = logits.gather(-1, ids) - log_z
    unused = teacher[..., :-1] <= _NEVER
    kept = kept.clamp(min=_NEVER).masked_fill(unused, _NEVER)
    tail = torch.log1p(-kept.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-7))
    return torch.cat((kept, tail), -1)


def _tempered(log_probs: Tensor, temperature: float) -> Tensor:
    return log_probs if temperature == 1.0 else (log_probs / temperature).log_softmax(-1)


def _divergence(teacher: Tensor, student: Tensor, kind: str) -> Tensor:
    """``(..., E)`` log-probabilities to ``(...)`` divergence in nats."""
    if kind == "forward":
        return (teacher.exp() * (teacher - student)).sum(-1)
    if kind == "reverse":
        return (student.exp() * (student - teacher)).sum(-1)
    if kind == "js":
        middle = torch.logaddexp(teacher, student) - math.log(2)
        return 0.5 * ((teacher.exp() * (teacher - middle)).sum(-1) + (student.exp() * (student - middle)).sum(-1))
    raise ValueError(f"divergence: expected forward, reverse or js; found {kind!r}")


def _blank_of(
    logits: Tensor, ids: Tensor | None, student: Tensor, blank_at: Tensor, events: _Events, shared: int
) -> Tensor:
    """``(B, T, 1)`` bool-like one-hot over events marking blank (all false where blank is in the tail)."""
    is_blank = (events.log_probs[:, :shared] == blank_at.unsqueeze(-1)) & (blank_at > _NEVER).unsqueeze(-1)
    if ids is None:
        return is_blank
    return is_blank & F.pad(torch.ones_like(ids, dtype=torch.bool), (0, 1), value=False)


def _decoupled(
    teacher: Tensor,
    student: Tensor,
    blank_teacher: Tensor,
    is_blank: Tensor,
    temperature: float,
    kind: str,
    weight: float,
) -> Tensor:
    """Binary divergence of blank against the rest, and the divergence among the rest, weighed by the teacher's mass there."""
    teacher, student = _tempered(teacher, temperature), _tempered(student, temperature)

    def binary(log_probs: Tensor) -> Tensor:
        blank = log_probs.masked_fill(~is_blank, _NEVER).logsumexp(-1)
        rest = log_probs.masked_fill(is_blank, _NEVER).logsumexp(-1)
        return torch.stack((blank, rest), -1)

    def among(log_probs: Tensor) -> Tensor:
        return log_probs.masked_fill(is_blank, _NEVER).log_softmax(-1)

    both_t, both_s = binary(teacher), binary(student)
    rest = both_t[..., 1].exp() * _divergence(among(teacher), among(student), kind)
    return temperature**2 * (weight * _divergence(both_t, both_s, kind) + rest)


class FrameKL(nn.Module):
    """Module form of :func:`frame_kl`; ``options`` are its keyword arguments."""

    def __init__(self, blank_id: int, student_frame_shift_s: float, **options: object) -> None:
        super().__init__()
        self.options = {"blank_id": blank_id, "student_frame_shift_s": student_frame_shift_s, **options}

    def forward(self, student_logits: Tensor, student_lengths: Tensor, teacher: Frames | TopK) -> Tensor:
        """See :func:`frame_kl`."""
        return frame_kl(student_logits, student_lengths, teacher, **self.options)  # type: ignore[arg-type]
