"""What the objective hands to every loss of the catalogue. Legend: B utterances, T frames, V tokens, U labels, M rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from asrkd.types import Frames, TeacherTargets, Vocabulary


@dataclass(frozen=True)
class LossInputs:
    """One batch as the losses see it; a loss takes what it needs.

    Args:
        vocabulary: Of the student; gives ``blank_id`` and V.
        ctc_logits: ``(B, T, V)`` of the student's CTC head.
        tokens: ``(B, U)`` reference labels, padded with anything.
        token_lengths: ``(B,)``.
        labelled: ``(B,)`` bool, which utterances have a reference; ``None``: all. Losses on references skip the others.
        encoded: ``(B, T, D)`` encoder output of the student.
        hidden: Named inner layers of the student.
        decoder_logits: ``(B, U+1, V)`` of the student's attention decoder, forced on ``tokens``.
        decode: Runs the student's decoder: ``(rows (M,), tokens (M, U), lengths (M,)) -> (M, U+1, V)`` logits.
        targets: What the teacher said.
        other_view: Student logits of a second view (other masks, or full context), where a loss needs one.
        transducer_logits: ``(B, T, U+1, V)`` of the student's joint network on ``tokens``, T as in ``encoded``.
    """

    vocabulary: Vocabulary
    ctc_logits: Frames | None = None
    tokens: Tensor | None = None
    token_lengths: Tensor | None = None
    labelled: Tensor | None = None
    encoded: Frames | None = None
    hidden: Mapping[str, Frames] = field(default_factory=dict)
    decoder_logits: Tensor | None = None
    decode: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    targets: TeacherTargets | None = None
    other_view: Frames | None = None
    transducer_logits: Tensor | None = None
