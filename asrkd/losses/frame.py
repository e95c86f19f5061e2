"""Frame-level distillation of CTC posteriors. Legend: B utterances, T frames, V tokens, K kept entries, E events, D units.

Sources: Hinton et al. 2015 (temperature KL); Li et al. 2014 (in acoustics); Agarwal et al. 2024 (divergences); Zhao et al. 2022
(decoupling); Kurata & Saon 2019, 2020 (where CTC spikes stand).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from asrkd.losses.clock import Events, on_student_clock
from asrkd.losses.delay import correlated_delays
from asrkd.losses.reduction import Reduction, check_logits, reduce, working
from asrkd.losses.rows import CACHED_ELEMENTS, DenseDivergence, Measure, Pairs, dense_divergence
from asrkd.losses.stored import stored_divergence
from asrkd.types import Frames, TopK

Divergence = Literal["forward", "reverse", "js"]
BlankPolicy = Literal["keep", "drop", "decouple"]
Selection = Literal["all", "spikes"]
Window = Literal["none", "utterance", "frame", "auto"]
Pooling = Literal["spikes", "mean", "max"]


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
    pooling: Pooling = "spikes",
    reduction: Reduction = "sum",
) -> Tensor:
    """Divergence between teacher and student posteriors, frame by frame.

    ``τ² Σ_t KL(p_T^τ(t) ‖ p_S^τ(t + d))`` over the frames that both have and that the policies leave in. Zero at equality.
    Against stored targets it runs over the K kept tokens and one event for all the rest: at τ = 1 a lower bound of the dense
    loss, since merging events can only lose divergence. τ then acts on these K + 1 events on both sides (the rest tempered
    as the one event that it is), which keeps it a divergence but no bound of the dense tempered loss.

    Value and gradient come from one pass over small chunks; nothing of size ``(B, T, V)`` is made but the gradient. The
    gradient is handed out once: a second ``backward`` through the same loss is refused by autograd.

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
        delay_ms: d, the student's frames lag so far behind the teacher's; rounded to whole frames.
        window: Between ``delay_ms`` and ``max_delay_ms`` take the d of least loss for each ``utterance`` or each ``frame``,
            or the one at which the non-blank mass of both correlates best in the utterance (``auto``).
        max_delay_ms: D of ``window``.
        pooling: For a faster teacher: ``spikes`` keeps the frame with the least blank, ``mean`` averages probabilities,
            ``max`` takes each token's largest and renormalises.
        reduction: ``sum`` in nats, ``mean`` by frames left in, ``none`` for ``(B,)``.

    Raises:
        ValueError: For shapes, lengths, frame shifts or options that do not fit.
    """
    check_logits(student_logits, student_lengths, blank_id)
    check_options(locals())
    if not torch.is_grad_enabled():
        student_logits = student_logits.detach()
    events = on_student_clock(teacher, student_logits.shape[2], blank_id, student_frame_shift_s, pooling)
    chosen = events.chosen(blank, blank_threshold, select, neighbourhood_frames)
    measure = Measure(divergence, temperature, blank_id if blank == "decouple" else None, blank_weight)
    delays = _delay_range(delay_ms, max_delay_ms, window, student_frame_shift_s)
    with torch.autocast(student_logits.device.type, enabled=False):
        pairs = _paired(student_logits, student_lengths, events, chosen, measure, blank_id, delays, window)
        if events.ids is not None:
            per_utterance = stored_divergence(student_logits, events, pairs, measure, blank_id).sum(1)
        else:
            per_utterance = DenseDivergence.apply(  # type: ignore[no-untyped-call]
                student_logits, events.log_probs, pairs, measure
            )
    return reduce(per_utterance, pairs.mask.sum(1), reduction)


_CHOICES = {
    "divergence": ("forward", "reverse", "js"),
    "blank": ("keep", "drop", "decouple"),
    "select": ("all", "spikes"),
    "window": ("none", "utterance", "frame", "auto"),
    "pooling": ("spikes", "mean", "max"),
}


def check_choices(given: dict[str, Any]) -> None:
    """Refuse unknown choices, and a temperature that is not positive, by name."""
    for name, known in _CHOICES.items():
        if name in given and given[name] not in known:
            raise ValueError(f"{name}: expected {', '.join(known[:-1])} or {known[-1]}; found {given[name]!r}")
    if not given["temperature"] > 0:
        raise ValueError(f"temperature: expected more than 0, found {given['temperature']}")


def check_options(given: dict[str, Any]) -> None:
    """Refuse options of :func:`frame_kl` that are unknown or out of range, by name."""
    check_choices(given)
    if not 0 < given["blank_threshold"] <= 1:
        raise ValueError(f"blank_threshold: expected more than 0, at most 1; found {given['blank_threshold']}")
    for name in ("delay_ms", "neighbourhood_frames"):
        if given[name] < 0:
            raise ValueError(f"{name}: expected 0 or more, found {given[name]}")
    if given.get("window", "none") != "none" and given["max_delay_ms"] < given["delay_ms"]:
        raise ValueError(
            f"max_delay_ms: expected at least delay_ms = {given['delay_ms']:g}, found {given['max_delay_ms']:g}"
        )


def _delay_range(delay_ms: float, max_delay_ms: float, window: str, frame_shift_s: float) -> range:
    first = round(delay_ms / 1000 / frame_shift_s)
    last = first if window == "none" else max(first, round(max_delay_ms / 1000 / frame_shift_s))
    return range(first, last + 1)


def shifted(chosen: Tensor, student_lengths: Tensor, delay: Tensor | int) -> Pairs:
    """Teacher frame t meets student frame t + delay (an integer, ``(B, 1)`` or ``(B, T)``)."""
    frames = torch.arange(chosen.shape[1], device=chosen.device) + delay
    frames = frames.expand(chosen.shape)
    return Pairs(chosen & (frames < student_lengths.unsqueeze(1)), frames)


def _paired(
    logits: Tensor,
    lengths: Tensor,
    events: Events,
    chosen: Tensor,
    measure: Measure,
    blank_id: int,
    delays: range,
    window: str,
) -> Pairs:
    if len(delays) == 1:
        return shifted(chosen, lengths, delays[0])
    logits = logits.detach()
    if window == "auto":
        blank = Frames(_blank_log_prob(logits, blank_id), lengths, 1.0)
        found = correlated_delays(blank, Frames(events.blank_log_prob, events.lengths, 1.0), delays)
        return shifted(chosen, lengths, found.unsqueeze(1))
    each = [shifted(chosen, lengths, delay) for delay in delays]
    with torch.no_grad():
        losses = torch.stack([_losses(logits, events, pairs, measure, blank_id) for pairs in each])
    masks = torch.stack([pairs.mask for pairs in each])
    if window == "frame":
        best = losses.masked_fill(~masks, math.inf).argmin(0)
        return Pairs(masks.any(0), torch.arange(best.shape[1], device=best.device) + best + delays[0], repeated=True)
    counts = masks.sum(2)
    means = (losses.sum(2) / counts).masked_fill(counts == 0, math.inf)
    return shifted(chosen, lengths, means.argmin(0).unsqueeze(1) + delays[0])


def _losses(logits: Tensor, events: Events, pairs: Pairs, measure: Measure, blank_id: int) -> Tensor:
    if events.ids is not None:
        return stored_divergence(logits, events, pairs, measure, blank_id)
    return dense_divergence(logits, events.log_probs, pairs, measure, False)[0]


def _blank_log_prob(logits: Tensor, blank_id: int) -> Tensor:
    """``(B, T)``, without a copy of all log-probabilities."""
    size = max(1, CACHED_ELEMENTS // max(1, logits.shape[0] * logits.shape[2]))
    parts = [working(part).log_softmax(-1)[..., blank_id] for part in torch.split(logits, size, 1)]
    return torch.cat(parts, 1) if parts else working(logits[..., 0])


class FrameKL(nn.Module):
    """Module form of :func:`frame_kl`; ``options`` are its keyword arguments."""

    def __init__(self, blank_id: int, student_frame_shift_s: float, **options: Any) -> None:
        super().__init__()
        self.options = {"blank_id": blank_id, "student_frame_shift_s": student_frame_shift_s, **options}

    def forward(self, student_logits: Tensor, student_lengths: Tensor, teacher: Frames | TopK) -> Tensor:
        """See :func:`frame_kl`."""
        return frame_kl(student_logits, student_lengths, teacher, **self.options)
