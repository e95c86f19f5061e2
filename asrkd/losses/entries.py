"""How each loss of the catalogue is computed from one batch: which tensors it takes, and what it counts.

Every entry is ``(inputs, **options) -> (sum over the batch, count)``; what is missing has been refused before it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asrkd.losses.alignment import alignment_kl, guided_ctc
from asrkd.losses.attention import decoder_kl, nbest_attention
from asrkd.losses.consistency import consistency, dual_mode
from asrkd.losses.delay import delay_penalised_ctc
from asrkd.losses.frame import frame_kl
from asrkd.losses.inputs import LossInputs
from asrkd.losses.mvq import mvq
from asrkd.losses.sequence import mwer
from asrkd.losses.supervised import attention_ce, ctc, labelled_only
from asrkd.losses.transducer import collapsed, collapsed_kl, one_best_kl, rnnt
from asrkd.types import Frames, NBest, TeacherTargets, TopK

Term = tuple[Tensor, float | Tensor]
"""A sum over the batch (in nats, but for losses that have another unit), and the count of what it runs over."""

Entry = Callable[..., Term]


def supervised_ctc(inputs: LossInputs, **options: Any) -> Term:
    """CTC on the reference."""
    return _on_references(ctc, inputs, _logits(inputs), **options)


def other_view_ctc(inputs: LossInputs, **options: Any) -> Term:
    """CTC on the reference, of the second view."""
    assert inputs.other_view is not None
    return _on_references(ctc, inputs, inputs.other_view, **options)


def penalised_ctc(inputs: LossInputs, **options: Any) -> Term:
    """Delay-penalised CTC."""
    return _on_references(delay_penalised_ctc, inputs, _logits(inputs), **options)


def _on_references(function: Callable[..., Tensor], inputs: LossInputs, logits: Frames, **options: Any) -> Term:
    tokens, lengths = _reference(inputs)
    blank_id = inputs.vocabulary.blank_id
    losses = function(logits.values, logits.lengths, tokens, lengths, blank_id=blank_id, reduction="none", **options)
    return labelled_only(losses, inputs.labelled).sum(), _label_count(inputs)


def supervised_attention(inputs: LossInputs, **options: Any) -> Term:
    """Cross-entropy of the attention decoder on the reference."""
    tokens, lengths = _reference(inputs)
    assert inputs.decoder_logits is not None
    end_id = _end_id(inputs)
    losses = attention_ce(inputs.decoder_logits, tokens, lengths, end_id=end_id, reduction="none", **options)
    return labelled_only(losses, inputs.labelled).sum(), _label_count(inputs)


def transducer(inputs: LossInputs, **options: Any) -> Term:
    """RNN-T on the reference."""
    return _transducer_term(rnnt, inputs, (), **options)


def transducer_collapsed(inputs: LossInputs, **options: Any) -> Term:
    """Collapsed lattice from the teacher's joint network."""
    tokens, lengths = _reference(inputs)
    teacher = collapsed(_lattice(inputs), tokens, lengths, blank_id=inputs.vocabulary.blank_id)
    return _transducer_term(collapsed_kl, inputs, (teacher,), **options)


def transducer_one_best(inputs: LossInputs, **options: Any) -> Term:
    """KL along the teacher's best path."""
    return _transducer_term(one_best_kl, inputs, (_lattice(inputs),), **options)


def _transducer_term(function: Callable[..., Tensor], inputs: LossInputs, more: Sequence[Any], **options: Any) -> Term:
    tokens, token_lengths = _reference(inputs)
    encoded = inputs.encoded if inputs.encoded is not None else _logits(inputs)
    blank_id = inputs.vocabulary.blank_id
    losses = function(
        inputs.transducer_logits,
        encoded.lengths,
        tokens,
        token_lengths,
        *more,
        blank_id=blank_id,
        reduction="none",
        **options,
    )
    return labelled_only(losses, inputs.labelled).sum(), _label_count(inputs)


def teacher_frames(inputs: LossInputs, **options: Any) -> Term:
    """Frame KL from the teacher's posteriors."""
    logits = _logits(inputs)
    total = frame_kl(logits.values, logits.lengths, _posteriors(inputs), **_frame_options(inputs), **options)
    return total, logits.lengths.sum()


def teacher_alignment(inputs: LossInputs, *, transcript: str = "reference", **options: Any) -> Term:
    """Frame KL from the teacher's alignment of the reference, or of its own best transcript."""
    logits = _logits(inputs)
    if transcript == "reference":
        tokens, token_lengths = _reference(inputs)
    else:
        tokens, token_lengths = _best_transcripts(_targets(inputs).nbest or (), logits.values.device)
    losses = alignment_kl(
        logits.values,
        logits.lengths,
        _posteriors(inputs),
        tokens,
        token_lengths,
        reduction="none",
        **_frame_options(inputs),
        **options,
    )
    labelled = inputs.labelled if transcript == "reference" else None
    return labelled_only(losses, labelled).sum(), logits.lengths.sum()


def teacher_guide(inputs: LossInputs, **options: Any) -> Term:
    """Guided CTC by the teacher's spikes."""
    logits = _logits(inputs)
    total = guided_ctc(logits.values, logits.lengths, _posteriors(inputs), **_frame_options(inputs), **options)
    return total, logits.lengths.sum()


def teacher_list(function: Callable[..., Tensor]) -> Entry:
    """The entry of a CTC loss over the teacher's N-best list."""

    def compute(inputs: LossInputs, **options: Any) -> Term:
        logits, nbest = _logits(inputs), _targets(inputs).nbest or ()
        blank_id = inputs.vocabulary.blank_id
        total = function(logits.values, logits.lengths, nbest, blank_id=blank_id, **options)
        return total, float(sum(len(h[0].tokens) for h in nbest if h))

    return compute


def teacher_list_risk(inputs: LossInputs, **options: Any) -> Term:
    """MWER over the teacher's list."""
    logits, (tokens, token_lengths) = _logits(inputs), _reference(inputs)
    nbest, blank_id = _targets(inputs).nbest or (), inputs.vocabulary.blank_id
    losses = mwer(
        logits.values, logits.lengths, nbest, tokens, token_lengths, blank_id=blank_id, reduction="none", **options
    )
    return labelled_only(losses, inputs.labelled).sum(), _label_count(inputs)


def teacher_list_attention(inputs: LossInputs, **options: Any) -> Term:
    """Cross-entropy of the decoder on the teacher's list."""
    assert inputs.decode is not None
    nbest, device = _targets(inputs).nbest or (), _logits(inputs).values.device
    total = nbest_attention(inputs.decode, nbest, end_id=_end_id(inputs), device=device, **options)
    return total, float(sum(len(h[0].tokens) for h in nbest if h))


def teacher_decoder(inputs: LossInputs, **options: Any) -> Term:
    """Token KL between the decoders, the student's forced on what the teacher's was."""
    targets = _targets(inputs)
    assert targets.decoder is not None and targets.decoder_tokens is not None and inputs.decode is not None
    tokens, token_lengths = targets.decoder_tokens
    rows = torch.arange(len(tokens), device=tokens.device)
    student = inputs.decode(rows, tokens, token_lengths)
    return decoder_kl(student, token_lengths + 1, targets.decoder.values, **options), token_lengths.sum()


def full_context(inputs: LossInputs, **options: Any) -> Term:
    """In-place distillation from the full-context mode."""
    logits = _logits(inputs)
    assert inputs.other_view is not None
    total = dual_mode(logits.values, logits.lengths, inputs.other_view.values, **_frame_options(inputs), **options)
    return total, logits.lengths.sum()


def two_views(inputs: LossInputs, **options: Any) -> Term:
    """CR-CTC consistency."""
    logits = _logits(inputs)
    assert inputs.other_view is not None
    blank_id = inputs.vocabulary.blank_id
    total = consistency(logits.values, inputs.other_view.values, logits.lengths, blank_id=blank_id, **options)
    return total, logits.lengths.sum()


def hidden_pair(function: Callable[..., Tensor]) -> Entry:
    """The entry of a loss between a student's and a teacher's layer."""

    def compute(
        inputs: LossInputs,
        *,
        head: nn.Module | None = None,
        student_layer: str,
        teacher_layer: str,
        student_dim: int | None = None,
        teacher_dim: int | None = None,
        **options: Any,
    ) -> Term:
        student, teacher = inputs.hidden[student_layer], _targets(inputs).hidden[teacher_layer]
        values = student.values if head is None else head(student.values)
        total = function(values, student.lengths, teacher, student_frame_shift_s=student.frame_shift_s, **options)
        return total, student.lengths.sum()

    return compute


def codebooks(
    inputs: LossInputs,
    *,
    head: nn.Module | None = None,
    student_layer: str,
    teacher_layer: str,
    student_dim: int,
    num_codebooks: int,
    codebook_size: int = 256,
) -> Term:
    """Prediction of the teacher's codebook indexes, which stand among its hidden layers."""
    assert head is not None
    student, codes = inputs.hidden[student_layer], _targets(inputs).hidden[teacher_layer]
    if codes.values.shape[2] != num_codebooks:
        raise ValueError(
            f"num_codebooks: expected {codes.values.shape[2]} as in {teacher_layer}, found {num_codebooks}"
        )
    logits = head(student.values)
    total = mvq(logits, student.lengths, codes, student_frame_shift_s=student.frame_shift_s)
    return total, student.lengths.sum()


def _logits(inputs: LossInputs) -> Frames:
    if inputs.ctc_logits is None:
        raise ValueError("ctc_logits: expected the student's CTC logits; found none")
    return inputs.ctc_logits


def _reference(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    assert inputs.tokens is not None and inputs.token_lengths is not None
    return inputs.tokens, inputs.token_lengths


def _label_count(inputs: LossInputs) -> Tensor:
    lengths = _reference(inputs)[1]
    return lengths.sum() if inputs.labelled is None else (lengths * inputs.labelled).sum()


def _targets(inputs: LossInputs) -> TeacherTargets:
    assert inputs.targets is not None
    return inputs.targets


def _posteriors(inputs: LossInputs) -> Frames | TopK:
    posteriors = _targets(inputs).posteriors
    assert posteriors is not None
    return posteriors


def _lattice(inputs: LossInputs) -> Tensor:
    """The teacher's ``(B, T, U+1, V)`` with as many frames, padding included, as the student's."""
    lattice = _targets(inputs).lattice
    assert lattice is not None
    if inputs.encoded is not None and abs(lattice.frame_shift_s - inputs.encoded.frame_shift_s) > 1e-6:
        raise ValueError(
            f"targets.lattice: expected frames of {1000 * inputs.encoded.frame_shift_s:g} ms as the student's, found "
            f"{1000 * lattice.frame_shift_s:g} ms"
        )
    assert inputs.transducer_logits is not None
    missing = inputs.transducer_logits.shape[1] - lattice.values.shape[1]
    return torch.nn.functional.pad(lattice.values, (0, 0, 0, 0, 0, missing))


def _frame_options(inputs: LossInputs) -> dict[str, Any]:
    return {"blank_id": inputs.vocabulary.blank_id, "student_frame_shift_s": _logits(inputs).frame_shift_s}


def _end_id(inputs: LossInputs) -> int:
    if "</s>" not in inputs.vocabulary.tokens:
        raise ValueError("vocabulary: expected the token </s> for the attention decoder; found none")
    return inputs.vocabulary.tokens.index("</s>")


def _best_transcripts(nbest: Sequence[NBest], device: torch.device) -> tuple[Tensor, Tensor]:
    """Labels of the first hypotheses, padded; an empty list is an empty transcript."""
    best = [hypotheses[0].tokens if hypotheses else () for hypotheses in nbest]
    longest = max([1, *map(len, best)])
    tokens = torch.tensor([[*t, *[0] * (longest - len(t))] for t in best], dtype=torch.long, device=device)
    return tokens, torch.tensor([len(t) for t in best], dtype=torch.long, device=device)
