"""What a student has taken over from its teacher, in figures. Legend: B utterances, T frames, V tokens.

Figures are sums and counts, so that those of many batches add up to those of a corpus.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from asrkd.losses.clock import FLOOR, Events, on_student_clock
from asrkd.losses.reduction import check_logits, valid_frames, working
from asrkd.types import Frames, TopK


@dataclass(frozen=True)
class Diagnostics:
    """Sums over the frames that both models have.

    Args:
        frames: How many.
        offsets_frames: Student's spike minus the teacher's, in student frames, and how often it was seen.
        unmatched_spikes: Teacher spikes without a student spike of the same token near.
        student_blank: Summed probability of blank.
        teacher_blank: The same of the teacher.
        spike_frames: Frames whose likeliest token is no blank for the teacher.
        agreeing_frames: Those of them where the student's likeliest token is the same.
        student_entropy: Summed, in nats.
        teacher_entropy: Summed, in nats; of stored targets that of the kept events, a lower bound.
        frame_shift_s: Of the student.
    """

    frames: int = 0
    offsets_frames: Counter[int] = field(default_factory=Counter)
    unmatched_spikes: int = 0
    student_blank: float = 0.0
    teacher_blank: float = 0.0
    spike_frames: int = 0
    agreeing_frames: int = 0
    student_entropy: float = 0.0
    teacher_entropy: float = 0.0
    frame_shift_s: float = 0.04

    def __add__(self, other: Diagnostics) -> Diagnostics:
        return Diagnostics(
            self.frames + other.frames,
            self.offsets_frames + other.offsets_frames,
            self.unmatched_spikes + other.unmatched_spikes,
            self.student_blank + other.student_blank,
            self.teacher_blank + other.teacher_blank,
            self.spike_frames + other.spike_frames,
            self.agreeing_frames + other.agreeing_frames,
            self.student_entropy + other.student_entropy,
            self.teacher_entropy + other.teacher_entropy,
            self.frame_shift_s if self.frames else other.frame_shift_s,
        )

    def histogram_ms(self) -> dict[float, int]:
        """Offsets of the student's spikes in milliseconds (positive: later than the teacher's) and their counts."""
        return {1000 * self.frame_shift_s * k: self.offsets_frames[k] for k in sorted(self.offsets_frames)}

    def summary(self) -> dict[str, float]:
        """Means for a log, by name; what has no frames is 0."""
        frames, matched = max(1, self.frames), sum(self.offsets_frames.values())
        offset = sum(k * n for k, n in self.offsets_frames.items()) / max(1, matched)
        return {
            "spike_offset_ms": 1000 * self.frame_shift_s * offset,
            "spikes_matched": matched / max(1, matched + self.unmatched_spikes),
            "student_blank": self.student_blank / frames,
            "teacher_blank": self.teacher_blank / frames,
            "spike_agreement": self.agreeing_frames / max(1, self.spike_frames),
            "student_entropy": self.student_entropy / frames,
            "teacher_entropy": self.teacher_entropy / frames,
        }


def diagnose(
    logits: Tensor,
    lengths: Tensor,
    teacher: Frames | TopK,
    *,
    blank_id: int,
    student_frame_shift_s: float,
    max_offset_ms: float = 400.0,
) -> Diagnostics:
    """Compare a batch of student logits with its teacher's posteriors.

    Args:
        logits: ``(B, T, V)`` of the student.
        lengths: ``(B,)`` frames.
        teacher: Log-probabilities, dense or stored; brought to the student's frame shift.
        blank_id: Of the vocabulary.
        student_frame_shift_s: Seconds from one student frame to the next.
        max_offset_ms: How far from a teacher's spike the student's is looked for.

    Raises:
        ValueError: For shapes, lengths or frame shifts that do not fit.
    """
    check_logits(logits, lengths, blank_id)
    events = on_student_clock(teacher, logits.shape[2], blank_id, student_frame_shift_s, "spikes")
    shared = min(logits.shape[1], events.log_probs.shape[1])
    mask = valid_frames(torch.minimum(lengths, events.lengths), shared)
    log_probs = working(logits.detach()[:, :shared]).log_softmax(-1)
    ours, theirs = log_probs.argmax(2), _likeliest(events, blank_id)[:, :shared]
    spikes = (theirs != blank_id) & mask
    offsets, unmatched = _offsets(
        _spikes(ours, mask, blank_id),
        _spikes(theirs, mask, blank_id),
        round(max_offset_ms / 1000 / student_frame_shift_s),
    )
    return Diagnostics(
        frames=int(mask.sum()),
        offsets_frames=offsets,
        unmatched_spikes=unmatched,
        student_blank=_sum(log_probs[..., blank_id].exp(), mask),
        teacher_blank=_sum(events.blank_log_prob[:, :shared].exp(), mask),
        spike_frames=int(spikes.sum()),
        agreeing_frames=int((spikes & (ours == theirs)).sum()),
        student_entropy=_sum(_entropy(log_probs), mask),
        teacher_entropy=_sum(_entropy(working(events.log_probs[:, :shared])), mask),
        frame_shift_s=student_frame_shift_s,
    )


def _likeliest(events: Events, blank_id: int) -> Tensor:
    """``(B, T)`` token ids; blank where nothing is kept."""
    if events.ids is None:
        return events.log_probs.argmax(2)
    if events.ids.shape[2] == 0:
        return torch.full(events.log_probs.shape[:2], blank_id, device=events.log_probs.device)
    best, place = events.log_probs[..., :-1].max(2, keepdim=True)
    return torch.where(best > FLOOR, events.ids.gather(2, place), blank_id).squeeze(2)


def _entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs.clamp(min=FLOOR)).sum(-1)


def _sum(values: Tensor, mask: Tensor) -> float:
    return float(torch.where(mask, values, 0.0).sum())


def _spikes(tokens: Tensor, mask: Tensor, blank_id: int) -> list[list[tuple[int, int]]]:
    """For each utterance ``(frame, token)`` where a token begins."""
    previous = torch.nn.functional.pad(tokens, (1, 0), value=blank_id)[:, :-1]
    begins = (tokens != blank_id) & (tokens != previous) & mask
    found: list[list[tuple[int, int]]] = [[] for _ in tokens]
    for row, frame in begins.nonzero().tolist():
        found[row].append((frame, int(tokens[row, frame])))
    return found


def _offsets(
    ours: list[list[tuple[int, int]]], theirs: list[list[tuple[int, int]]], reach: int
) -> tuple[Counter[int], int]:
    """Each teacher spike with the nearest student spike of its token, none used twice."""
    offsets: Counter[int] = Counter()
    unmatched = 0
    for student, teacher in zip(ours, theirs, strict=True):
        free = list(student)
        for frame, token in teacher:
            near = [s for s in free if s[1] == token and abs(s[0] - frame) <= reach]
            if not near:
                unmatched += 1
                continue
            match = min(near, key=lambda s: abs(s[0] - frame))
            free.remove(match)
            offsets[match[0] - frame] += 1
    return offsets, unmatched
