"""Sequence-level distillation: the teacher's transcripts as labels. Legend: B utterances, N hypotheses, T frames, U labels.

Sources: Kim & Rush 2016 (1-best); Takashima et al. 2018, 2019 and Huang et al. 2018 (weighted N-best for CTC).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from asrkd.losses.reduction import Reduction, check_logits, reduce
from asrkd.losses.supervised import ctc_of_log_probs
from asrkd.types import NBest


def nbest_ctc(
    logits: Tensor,
    lengths: Tensor,
    nbest: Sequence[NBest],
    *,
    blank_id: int,
    sequence_temperature: float = 1.0,
    max_hypotheses: int | None = None,
    reduction: Reduction = "sum",
) -> Tensor:
    """Weighted N-best CTC: ``Σ_n w_n · CTC(logits, y_n)`` with ``w = softmax(score / τ_seq)`` over the teacher's list.

    The encoder output and its log-softmax are computed once; each hypothesis reads them in place.

    Args:
        logits: ``(B, T, V)`` unnormalised scores.
        lengths: ``(B,)`` frames.
        nbest: For each utterance the teacher's hypotheses, best first, in the student's token ids; an empty list adds
            nothing.
        blank_id: Of the vocabulary.
        sequence_temperature: τ_seq; small values leave the best hypothesis alone.
        max_hypotheses: Take only so many of each list.
        reduction: ``sum`` in nats, ``mean`` by utterances with a list, ``none`` for ``(B,)``.

    Raises:
        ValueError: For shapes or options that do not fit.
    """
    check_logits(logits, lengths, blank_id)
    if len(nbest) != logits.shape[0]:
        raise ValueError(f"nbest: expected {logits.shape[0]} lists, found {len(nbest)}")
    if not sequence_temperature > 0:
        raise ValueError(f"sequence_temperature: expected more than 0, found {sequence_temperature}")
    lists = [hypotheses[:max_hypotheses] for hypotheses in nbest]
    log_probs = logits.float().log_softmax(-1)
    total = log_probs.new_zeros(len(lists)) + 0.0 * log_probs.sum((1, 2))
    weights = [_weights([h.score for h in hypotheses], sequence_temperature) for hypotheses in lists]
    for rank in range(max(map(len, lists), default=0)):
        rows = [b for b, hypotheses in enumerate(lists) if len(hypotheses) > rank]
        tokens, token_lengths = _padded([lists[b][rank].tokens for b in rows], logits.device)
        index = torch.tensor(rows, device=logits.device)
        whole = len(rows) == len(lists)
        losses = ctc_of_log_probs(
            log_probs if whole else log_probs[index], lengths[index], tokens, token_lengths, blank_id
        )
        share = torch.tensor([weights[b][rank] for b in rows], device=logits.device)
        total = total.index_add(0, index, share * losses)
    has_list = torch.tensor([int(len(hypotheses) > 0) for hypotheses in lists], device=logits.device)
    return reduce(total, has_list, reduction)


def _weights(scores: list[float], temperature: float) -> list[float]:
    return torch.tensor(scores, dtype=torch.float64).div(temperature).softmax(0).tolist() if scores else []


def _padded(sequences: list[tuple[int, ...]], device: torch.device) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(s) for s in sequences], device=device)
    tokens = torch.zeros(len(sequences), max(1, int(lengths.max())), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return tokens.to(device), lengths


class NBestCTC(nn.Module):
    """Module form of :func:`nbest_ctc`."""

    def __init__(self, blank_id: int, sequence_temperature: float = 1.0, reduction: Reduction = "sum") -> None:
        super().__init__()
        self.blank_id = blank_id
        self.sequence_temperature = sequence_temperature
        self.reduction: Reduction = reduction

    def forward(self, logits: Tensor, lengths: Tensor, nbest: Sequence[NBest]) -> Tensor:
        """See :func:`nbest_ctc`."""
        return nbest_ctc(
            logits,
            lengths,
            nbest,
            blank_id=self.blank_id,
            sequence_temperature=self.sequence_temperature,
            reduction=self.reduction,
        )
