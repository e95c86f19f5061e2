"""The one face of every teacher."""

from __future__ import annotations

from typing import Protocol

from asrkd.types import SpeechBatch, TeacherTargets, Vocabulary


class Teacher(Protocol):
    """Hears a batch and says what it heard; whatever it needs (rate, features, device) is its own matter.

    Attributes:
        identity: Hash over everything that changes what it says: weights, vocabulary, features, search.
        vocabulary: Of its posteriors and hypotheses.
        sample_rate_hz: Of the audio that it takes.
        frame_shift_s: Of its posteriors.
    """

    identity: str
    vocabulary: Vocabulary
    sample_rate_hz: int
    frame_shift_s: float

    def __call__(self, batch: SpeechBatch) -> TeacherTargets:
        """What the teacher says of ``batch``, on the CPU or its own device."""
        ...
