"""How far a student's spikes lag behind its teacher's. Legend: B utterances, T frames, V tokens.

Sources: the delayed-KD idea of aligning a streaming student's later spikes to a full-context teacher's (2025); the CTC delay
penalty of k2/icefall (Yao et al. 2023, "Delay-penalized CTC implemented based on finite state transducer").
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from asrkd.types import Frames


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


def _mass(blank: Frames) -> Tensor:
    inside = torch.arange(blank.values.shape[1], device=blank.values.device) < blank.lengths[:, None]
    return torch.where(inside, -torch.expm1(blank.values.clamp(max=0.0)), 0.0)
