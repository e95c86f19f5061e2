"""Losses on reference transcripts. Legend: B utterances, T frames, V tokens, U labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asrkd.losses.reduction import Reduction, check_logits, reduce, valid_frames


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
    log_probs = logits.float().log_softmax(-1)
    losses = ctc_of_log_probs(log_probs, lengths, tokens, token_lengths, blank_id)
    return reduce(losses, token_lengths, reduction)


def ctc_of_log_probs(
    log_probs: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor, blank_id: int
) -> Tensor:
    """``(B,)`` CTC losses of log-probabilities ``(B, T, V)``, zero where the transcript does not fit."""
    if log_probs.shape[0] == 0 or log_probs.shape[1] == 0:
        return log_probs.sum((1, 2))
    return F.ctc_loss(
        log_probs.transpose(0, 1),
        tokens.masked_fill(~valid_frames(token_lengths, tokens.shape[1]), 1 if blank_id == 0 else 0),
        lengths,
        token_lengths,
        blank=blank_id,
        reduction="none",
        zero_infinity=True,
    )


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
    targets = F.pad(tokens, (0, 1)).masked_fill(~valid_frames(token_lengths, tokens.shape[1] + 1), -100)
    targets = targets.scatter(1, token_lengths[:, None], end_id)
    losses = F.cross_entropy(
        decoder_logits.float().transpose(1, 2),
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
