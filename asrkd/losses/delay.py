"""How far a student's spikes lag behind its teacher's, and what pulls them forward. Legend: B utterances, T frames, V tokens.

Sources: the delayed-KD idea of aligning a streaming student's later spikes to a full-context teacher's (2025); the CTC delay
penalty of k2/icefall (Yao et al. 2023, "Delay-penalized CTC implemented based on finite state transducer").
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from asrkd.losses.clock import on_student_clock
from asrkd.losses.reduction import Reduction, check_logits, reduce, valid_frames, working
from asrkd.losses.rows import Pairs
from asrkd.losses.stored import kept_log_probs
from asrkd.losses.supervised import check_tokens
from asrkd.types import Frames, TopK

_NEVER = -1e9  # score of a path that does not exist; finite, so that gradients are


def correlated_delays(student_blank: Frames, teacher_blank: Frames, delays: range) -> Tensor:
    """``(B,)`` for each utterance the delay in frames at which the non-blank mass of both correlates best.

    Args:
        student_blank: ``(B, T)`` log-probabilities of blank.
        teacher_blank: The same of the teacher, at the same frame shift.
        delays: Candidates in frames, 0 or more; among equals the smallest wins.
    """
    return delays[0] + correlations(student_blank, teacher_blank, delays).argmax(1)


def correlations(student_blank: Frames, teacher_blank: Frames, delays: range) -> Tensor:
    """``(B, len(delays))`` of ``Σ_t (1 - p_T(blank, t)) · (1 - p_S(blank, t + d))``."""
    student, teacher = (_mass(frames) for frames in (student_blank, teacher_blank))
    span = teacher.shape[1] + delays[-1]
    student = F.pad(student, (0, max(0, span - student.shape[1])))
    shifted = student.unfold(1, teacher.shape[1], 1)[:, delays.start : delays.stop]  # (B, delays, Tt)
    return torch.einsum("bdt,bt->bd", shifted, teacher)


def estimate_delay_ms(
    logits: Tensor,
    lengths: Tensor,
    teacher: Frames | TopK,
    *,
    blank_id: int,
    student_frame_shift_s: float,
    max_delay_ms: float = 400.0,
) -> float:
    """The one delay of the student behind its teacher at which their non-blank mass correlates best over a batch.

    Args:
        logits: ``(B, T, V)`` of the student.
        lengths: ``(B,)`` frames.
        teacher: Log-probabilities, dense or stored.
        blank_id: Of the vocabulary.
        student_frame_shift_s: Seconds from one student frame to the next.
        max_delay_ms: Largest delay looked at.

    Raises:
        ValueError: For shapes, lengths or frame shifts that do not fit.
    """
    check_logits(logits, lengths, blank_id)
    events = on_student_clock(teacher, logits.shape[2], blank_id, student_frame_shift_s, "spikes")
    student = Frames(working(logits.detach()).log_softmax(-1)[..., blank_id], lengths, student_frame_shift_s)
    delays = range(round(max_delay_ms / 1000 / student_frame_shift_s) + 1)
    found = correlations(student, Frames(events.blank_log_prob, events.lengths, student_frame_shift_s), delays)
    return 1000 * student_frame_shift_s * int(found.sum(0).argmax())


def _mass(blank: Frames) -> Tensor:
    inside = torch.arange(blank.values.shape[1], device=blank.values.device) < blank.lengths[:, None]
    return torch.where(inside, -torch.expm1(blank.values.clamp(max=0.0)), 0.0)


def delay_penalised_ctc(
    logits: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    *,
    blank_id: int,
    penalty: float = 0.01,
    reduction: Reduction = "sum",
) -> Tensor:
    """CTC that favours early emission: every path gains ``λ Σ ((T - 1) / 2 - t)`` over the frames t where a label begins.

    The sawtooth sums to nothing over an utterance whose labels are evenly spread, so it moves labels without changing the
    loss's scale (Yao et al. 2023, delay-penalised CTC; k2's ``delay_penalty``). To be used in place of CTC, beside
    distillation.

    Args:
        logits: ``(B, T, V)`` unnormalised scores.
        lengths: ``(B,)`` frames.
        tokens: ``(B, U)`` labels.
        token_lengths: ``(B,)``.
        blank_id: Of the vocabulary.
        penalty: λ in nats a frame; 0 is plain CTC.
        reduction: ``sum``, ``mean`` by labels, ``none`` for ``(B,)``.

    Raises:
        ValueError: For shapes, lengths or ids that do not fit.
    """
    check_logits(logits, lengths, blank_id)
    check_tokens(tokens, token_lengths, logits.shape[0], logits.shape[2], blank_id)
    if logits.shape[1] == 0:
        return reduce(working(logits).flatten(1).sum(1), token_lengths, reduction)
    inside = valid_frames(token_lengths, tokens.shape[1])
    labels = tokens.masked_fill(~inside, blank_id)
    states = torch.full((len(tokens), 2 * tokens.shape[1] + 1), blank_id, device=tokens.device)
    states[:, 1::2] = labels
    frames = torch.arange(logits.shape[1], device=logits.device)
    mask = frames < lengths.unsqueeze(1)
    pairs = Pairs(mask, frames.expand(mask.shape))
    ids = states.unsqueeze(1).expand(-1, logits.shape[1], -1)
    emissions = kept_log_probs(logits, ids, mask.unsqueeze(2).expand(ids.shape), pairs)
    bonus = penalty * ((lengths.unsqueeze(1) - 1) / 2 - frames).to(emissions.dtype)
    scores = _path_scores(emissions, states, bonus, lengths, token_lengths)
    fits = (scores > _NEVER / 2) & (lengths > 0)
    return reduce(torch.where(fits, -scores, 0.0), token_lengths, reduction)


def _path_scores(emissions: Tensor, states: Tensor, bonus: Tensor, lengths: Tensor, token_lengths: Tensor) -> Tensor:
    """``(B,)`` log of the summed path weights; a bonus is gained on entering a label's state, not on staying in it."""
    num_states = states.shape[1]
    place = torch.arange(num_states, device=states.device)
    is_label = place % 2 == 1
    skips = torch.zeros_like(states, dtype=torch.bool)
    skips[:, 3::2] = states[:, 3::2] != states[:, 1:-2:2]
    exists = place < 2 * token_lengths.unsqueeze(1) + 1
    entry = torch.where(is_label, bonus.unsqueeze(2), 0.0)
    alpha = torch.where((place < 2) & exists, emissions[:, 0] + entry[:, 0], _NEVER)
    for t in range(1, emissions.shape[1]):
        one = F.pad(alpha, (1, 0), value=_NEVER)[:, :num_states] + entry[:, t]
        two = F.pad(alpha, (2, 0), value=_NEVER)[:, :num_states] + entry[:, t]
        moved = torch.stack((alpha, one, torch.where(skips, two, _NEVER))).logsumexp(0) + emissions[:, t]
        alpha = torch.where((t < lengths).unsqueeze(1), torch.where(exists, moved, _NEVER), alpha)
    last = 2 * token_lengths.unsqueeze(1)
    ends = torch.cat((last, (last - 1).clamp(min=0)), 1)
    final = alpha.gather(1, ends)
    final = torch.where(torch.stack((ends[:, 0] >= 0, token_lengths > 0), 1), final, _NEVER)
    return final.logsumexp(1)
