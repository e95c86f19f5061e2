"""Losses on reference transcripts. Legend: B utterances, T frames, V tokens, U labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asrkd.losses.lattice import Transcripts, transcript_losses
from asrkd.losses.reduction import Reduction, check_logits, reduce, valid_frames, working


def ctc(
    logits: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    *,
    blank_id: int,
    reduction: Reduction = "sum",
) -> Tensor:
    """Connectionist temporal classification (Graves et al. 2006): ``-log p(tokens | logits)``.

    An utterance whose transcript does not fit into its frames adds nothing.

    Args:
        logits: ``(B, T, V)`` unnormalised scores.
        lengths: ``(B,)`` frames.
        tokens: ``(B, U)`` label ids without blanks; anything beyond ``token_lengths``.
        token_lengths: ``(B,)`` labels; 0 is allowed.
        blank_id: Of the vocabulary.
        reduction: ``sum`` in nats, ``mean`` by labels, or ``none`` for ``(B,)``.

    Raises:
        ValueError: For shapes, lengths or a blank that do not fit.
    """
    check_logits(logits, lengths, blank_id)
    check_tokens(tokens, token_lengths, logits.shape[0], logits.shape[2], blank_id)
    transcripts = Transcripts.of_references(tokens, token_lengths, blank_id)
    return reduce(transcript_losses(logits, lengths, transcripts), token_lengths, reduction)


def check_tokens(
    tokens: Tensor, token_lengths: Tensor, batch: int, num_tokens: int, blank_id: int | None = None
) -> None:
    """Refuse labels that do not fit their batch or vocabulary (values are looked at on the CPU only).

    Raises:
        ValueError: For shapes, lengths or ids that do not fit.
    """
    if tokens.ndim != 2 or tokens.shape[0] != batch:
        raise ValueError(f"tokens: expected (B = {batch}, U), found shape {tuple(tokens.shape)}")
    if token_lengths.shape != (batch,):
        raise ValueError(f"token_lengths: expected shape ({batch},), found {tuple(token_lengths.shape)}")
    if tokens.device.type != "cpu" or token_lengths.device.type != "cpu" or not batch:
        return
    if int(token_lengths.max()) > tokens.shape[1]:
        raise ValueError(f"token_lengths: expected at most U = {tokens.shape[1]}, found {int(token_lengths.max())}")
    labels = tokens[valid_frames(token_lengths, tokens.shape[1])]
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_tokens:
        raise ValueError(f"tokens: expected 0 to {num_tokens - 1}, found {int(labels.min())} to {int(labels.max())}")
    if blank_id is not None and bool((labels == blank_id).any()):
        raise ValueError(f"tokens: expected no blank among the labels, found blank_id {blank_id}")


def attention_ce(
    decoder_logits: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    *,
    end_id: int,
    label_smoothing: float = 0.0,
    reduction: Reduction = "sum",
) -> Tensor:
    """Cross-entropy of an attention decoder under teacher forcing, end of sentence included.

    Args:
        decoder_logits: ``(B, U+1, V)``; row u predicts label u, the row after the last label predicts ``end_id``.
        tokens: ``(B, U)`` label ids.
        token_lengths: ``(B,)`` labels.
        end_id: Id of the end of sentence.
        label_smoothing: Share of the target spread evenly over V (Szegedy et al. 2016).
        reduction: ``sum`` in nats, ``mean`` by predicted tokens, or ``none``.

    Raises:
        ValueError: If the decoder's rows do not fit the labels.
    """
    if decoder_logits.shape[1] != tokens.shape[1] + 1:
        raise ValueError(f"decoder_logits: expected U+1 = {tokens.shape[1] + 1} rows, found {decoder_logits.shape[1]}")
    check_tokens(tokens, token_lengths, decoder_logits.shape[0], decoder_logits.shape[2])
    targets = F.pad(tokens, (0, 1)).masked_fill(~valid_frames(token_lengths, tokens.shape[1] + 1), -100)
    targets = targets.scatter(1, token_lengths[:, None], end_id)
    losses = F.cross_entropy(
        working(decoder_logits).transpose(1, 2),
        targets,
        ignore_index=-100,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    return reduce(losses.sum(1), token_lengths + 1, reduction)


class CTC(nn.Module):
    """Module form of :func:`ctc`."""

    def __init__(self, blank_id: int, reduction: Reduction = "sum") -> None:
        super().__init__()
        self.blank_id = blank_id
        self.reduction: Reduction = reduction

    def forward(self, logits: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        """See :func:`ctc`."""
        return ctc(logits, lengths, tokens, token_lengths, blank_id=self.blank_id, reduction=self.reduction)


class AttentionCE(nn.Module):
    """Module form of :func:`attention_ce`."""

    def __init__(self, end_id: int, label_smoothing: float = 0.0, reduction: Reduction = "sum") -> None:
        super().__init__()
        self.end_id = end_id
        self.label_smoothing = label_smoothing
        self.reduction: Reduction = reduction

    def forward(self, decoder_logits: Tensor, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        """See :func:`attention_ce`."""
        return attention_ce(
            decoder_logits,
            tokens,
            token_lengths,
            end_id=self.end_id,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )


def labelled_only(losses: Tensor, labelled: Tensor | None) -> Tensor:
    """``(B,)`` losses, zero for utterances without a reference."""
    return losses if labelled is None else torch.where(labelled, losses, torch.zeros_like(losses))
