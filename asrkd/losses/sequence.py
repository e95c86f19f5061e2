"""Sequence-level distillation over transcripts. Legend: B utterances, N hypotheses, M of all utterances, T frames, V tokens.

Sources: Kim & Rush 2016 (1-best); Takashima et al. 2018, 2019 and Huang et al. 2018 (weighted N-best for CTC); Prabhavalkar et
al. 2018 (minimum word error rate).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asrkd.losses.lattice import Transcripts, edit_distances, transcript_losses
from asrkd.losses.reduction import Reduction, check_logits, reduce
from asrkd.types import NBest

_NEVER = -1e30  # a score no softmax sees


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

    The logits are normalised once and only the columns that the list names are read; hypotheses copy nothing.

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
    lists = checked_lists(logits, lengths, nbest, blank_id, max_hypotheses)
    weights = list_weights(lists, sequence_temperature, logits.device)
    losses = _losses(logits, lengths, lists, blank_id)
    has_list = torch.tensor([int(len(hypotheses) > 0) for hypotheses in lists], device=logits.device)
    return reduce((weights.to(losses.dtype) * losses).sum(1), has_list, reduction)


def hypothesis_ctc(
    logits: Tensor, lengths: Tensor, nbest: Sequence[NBest], *, blank_id: int, reduction: Reduction = "sum"
) -> Tensor:
    """Hard sequence distillation: CTC on the teacher's best transcript (Kim & Rush 2016).

    Args:
        logits: ``(B, T, V)`` unnormalised scores.
        lengths: ``(B,)`` frames.
        nbest: For each utterance the teacher's hypotheses; the first is taken, an empty list adds nothing.
        blank_id: Of the vocabulary.
        reduction: ``sum`` in nats, ``mean`` by utterances with a list, ``none`` for ``(B,)``.

    Raises:
        ValueError: For shapes that do not fit.
    """
    return nbest_ctc(logits, lengths, nbest, blank_id=blank_id, max_hypotheses=1, reduction=reduction)


def listwise_kl(
    logits: Tensor,
    lengths: Tensor,
    nbest: Sequence[NBest],
    *,
    blank_id: int,
    sequence_temperature: float = 1.0,
    max_hypotheses: int | None = None,
    reduction: Reduction = "sum",
) -> Tensor:
    """``KL(w ‖ q)`` between both models' posteriors renormalised over the same list.

    ``w = softmax(score / τ_seq)`` of the teacher's scores, ``q = softmax(log p_S(y_n | x) / τ_seq)`` of the student's CTC.
    Lists of one hypothesis have nothing to say and add 0.

    Args:
        logits: ``(B, T, V)`` unnormalised scores.
        lengths: ``(B,)`` frames.
        nbest: For each utterance the teacher's hypotheses in the student's token ids.
        blank_id: Of the vocabulary.
        sequence_temperature: τ_seq, for both.
        max_hypotheses: Take only so many of each list.
        reduction: ``sum`` in nats, ``mean`` by utterances with a list, ``none`` for ``(B,)``.

    Raises:
        ValueError: For shapes or options that do not fit.
    """
    lists = checked_lists(logits, lengths, nbest, blank_id, max_hypotheses)
    losses = _losses(logits, lengths, lists, blank_id)
    weights = list_weights(lists, sequence_temperature, logits.device).to(losses.dtype)
    student = _renormalised(-losses / sequence_temperature, lists)
    divergence = (torch.xlogy(weights, weights) - weights * student).sum(1)
    has_list = torch.tensor([int(len(hypotheses) > 0) for hypotheses in lists], device=logits.device)
    return reduce(torch.where(has_list > 0, divergence, 0.0), has_list, reduction)


def mwer(
    logits: Tensor,
    lengths: Tensor,
    nbest: Sequence[NBest],
    tokens: Tensor,
    token_lengths: Tensor,
    *,
    blank_id: int,
    max_hypotheses: int | None = None,
    reduction: Reduction = "sum",
) -> Tensor:
    """Expected errors over a list: ``Σ_n q_n · (W(y_n, y*) - mean_n W)``, ``q`` the student's renormalised posterior.

    The list may be the student's own (as in the paper) or the teacher's. W counts token errors (Levenshtein); the mean is
    subtracted for a smaller variance and changes no gradient.

    Args:
        logits: ``(B, T, V)`` unnormalised scores.
        lengths: ``(B,)`` frames.
        nbest: For each utterance the hypotheses; an empty list adds nothing.
        tokens: ``(B, U)`` reference labels.
        token_lengths: ``(B,)``.
        blank_id: Of the vocabulary.
        max_hypotheses: Take only so many of each list.
        reduction: ``sum`` in errors, ``mean`` by utterances with a list, ``none`` for ``(B,)``.

    Raises:
        ValueError: For shapes or options that do not fit.
    """
    lists = checked_lists(logits, lengths, nbest, blank_id, max_hypotheses)
    losses = _losses(logits, lengths, lists, blank_id)
    references = [row[:length] for row, length in zip(tokens.tolist(), token_lengths.tolist(), strict=True)]
    errors = [
        [e - sum(row) / len(row) for e in row]
        for row in edit_distances([[h.tokens for h in lst] for lst in lists], references)
    ]
    risk = _padded(errors, losses.shape[1], 0.0, logits.device).to(losses.dtype)
    has_list = torch.tensor([int(len(hypotheses) > 0) for hypotheses in lists], device=logits.device)
    return reduce((_renormalised(-losses, lists).exp() * risk).sum(1), has_list, reduction)


def checked_lists(
    logits: Tensor, lengths: Tensor, nbest: Sequence[NBest], blank_id: int, max_hypotheses: int | None
) -> list[NBest]:
    """The lists cut to ``max_hypotheses``.

    Raises:
        ValueError: For shapes, counts or token ids that do not fit.
    """
    check_logits(logits, lengths, blank_id)
    if len(nbest) != logits.shape[0]:
        raise ValueError(f"nbest: expected {logits.shape[0]} lists, found {len(nbest)}")
    if max_hypotheses is not None and max_hypotheses < 1:
        raise ValueError(f"max_hypotheses: expected 1 or more, found {max_hypotheses}")
    lists = [hypotheses[:max_hypotheses] for hypotheses in nbest]
    for token in {t for lst in lists for h in lst for t in h.tokens}:
        if not 0 <= token < logits.shape[2] or token == blank_id:
            raise ValueError(f"nbest: expected ids 0 to {logits.shape[2] - 1} without blank {blank_id}, found {token}")
    return lists


def list_weights(lists: Sequence[NBest], temperature: float, device: torch.device) -> Tensor:
    """``(B, N)`` float64 ``softmax(score / τ)`` of each list; 0 in unused places.

    Raises:
        ValueError: For a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"sequence_temperature: expected more than 0, found {temperature}")
    longest = max([1, *map(len, lists)])
    scores = _padded([[h.score for h in lst] for lst in lists], longest, _NEVER, device) / temperature
    return torch.where(_used(lists, longest, device), scores.softmax(1), 0.0)


def _losses(logits: Tensor, lengths: Tensor, lists: Sequence[NBest], blank_id: int) -> Tensor:
    """``(B, N)`` CTC losses of all hypotheses, 0 in unused places."""
    longest = max([1, *map(len, lists)])
    used = _used(lists, longest, logits.device)
    transcripts = Transcripts.of_lists([[h.tokens for h in lst] for lst in lists], blank_id, logits.device)
    losses = transcript_losses(logits, lengths, transcripts)
    return losses.new_zeros(len(lists), longest).masked_scatter(used, losses)


def _renormalised(scores: Tensor, lists: Sequence[NBest]) -> Tensor:
    """``(B, N)`` log-softmax over the used places."""
    return scores.masked_fill(~_used(lists, scores.shape[1], scores.device), _NEVER).log_softmax(1)


def _used(lists: Sequence[NBest], longest: int, device: torch.device) -> Tensor:
    sizes = torch.tensor([len(lst) for lst in lists], dtype=torch.long, device=device)
    return torch.arange(longest, device=device) < sizes.unsqueeze(1)


def _padded(rows: Sequence[Sequence[float]], longest: int, value: float, device: torch.device) -> Tensor:
    padded = [[*row, *[value] * (longest - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.float64, device=device).view(len(rows), longest)


class NBestCTC(nn.Module):
    """Module form of :func:`nbest_ctc`; ``options`` are its keyword arguments."""

    def __init__(self, blank_id: int, **options: Any) -> None:
        super().__init__()
        self.options = {"blank_id": blank_id, **options}

    def forward(self, logits: Tensor, lengths: Tensor, nbest: Sequence[NBest]) -> Tensor:
        """See :func:`nbest_ctc`."""
        return nbest_ctc(logits, lengths, nbest, **self.options)
