"""CTC over the few tokens that transcripts name. Legend: B utterances, M transcripts, T frames, V tokens, U labels, K columns.

A CTC lattice reads only blank and the labels' columns of the posteriors. Taking just those, once an utterance, makes the
lattices of a whole N-best list cheap: no hypothesis needs a copy of the encoder output, and the gradient by the logits is one
pass whatever the number of hypotheses. The lattice itself is PyTorch's own CTC.

Source: Graves et al. 2006, equations 7 to 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from asrkd.losses.reduction import valid_frames
from asrkd.losses.rows import Pairs
from asrkd.losses.stored import kept_log_probs


@dataclass(frozen=True)
class Transcripts:
    """M label sequences over a batch, and the columns of the vocabulary that they read.

    Args:
        rows: ``(M,)`` int64, the utterance of each.
        columns: ``(B, K)`` int64 token ids; column 0 is blank, unused columns repeat it.
        labels: ``(M, U)`` int64 places in ``columns``, at least 1; what lies beyond ``lengths`` is 1.
        lengths: ``(M,)`` int64.
    """

    rows: Tensor
    columns: Tensor
    labels: Tensor
    lengths: Tensor

    @classmethod
    def of_references(cls, tokens: Tensor, token_lengths: Tensor, blank_id: int) -> Transcripts:
        """One transcript an utterance; no values are read back from the device.

        Args:
            tokens: ``(B, U)``, padded with anything.
            token_lengths: ``(B,)``.
            blank_id: Of the vocabulary.
        """
        inside = valid_frames(token_lengths, tokens.shape[1])
        clean = tokens.masked_fill(~inside, blank_id)
        columns = F.pad(clean, (1, 0), value=blank_id)
        # A label that comes twice must be one column, or the lattice would not see the repetition.
        same = clean.unsqueeze(2) == clean.unsqueeze(1)
        labels = same.to(torch.int8).argmax(2) + 1 if tokens.shape[1] else clean
        rows = torch.arange(len(tokens), device=tokens.device)
        return cls(rows, columns, labels.masked_fill(~inside, 1), token_lengths)

    @classmethod
    def of_lists(cls, lists: Sequence[Sequence[Sequence[int]]], blank_id: int, device: torch.device) -> Transcripts:
        """All hypotheses of all utterances.

        Args:
            lists: For each utterance its hypotheses' token ids.
            blank_id: Of the vocabulary.
            device: Where the tensors go.
        """
        places = [
            {token: place for place, token in enumerate(dict.fromkeys((blank_id, *(t for h in lst for t in h))))}
            for lst in lists
        ]
        num_columns = max([2, *map(len, places)])
        columns = [[*place, *[blank_id] * (num_columns - len(place))] for place in places]
        flat = [(row, [places[row][t] for t in h]) for row, lst in enumerate(lists) for h in lst]
        longest = max([1, *(len(labels) for _, labels in flat)])
        labels = [[*labels, *[1] * (longest - len(labels))] for _, labels in flat]
        return cls(
            torch.tensor([row for row, _ in flat], dtype=torch.long, device=device),
            torch.tensor(columns, dtype=torch.long, device=device).view(len(lists), num_columns),
            torch.tensor(labels, dtype=torch.long, device=device).view(len(flat), longest),
            torch.tensor([len(labels) for _, labels in flat], dtype=torch.long, device=device),
        )


def transcript_losses(logits: Tensor, lengths: Tensor, transcripts: Transcripts) -> Tensor:
    """``(M,)`` CTC losses ``-log p(transcript | logits)``; 0, without gradient, where one does not fit into its frames.

    Args:
        logits: ``(B, T, V)`` unnormalised scores.
        lengths: ``(B,)`` frames.
        transcripts: Of the batch.
    """
    columns = column_log_probs(logits, lengths, transcripts.columns)
    losses: Tensor = _LatticeLoss.apply(columns[transcripts.rows], lengths[transcripts.rows], transcripts)  # type: ignore[no-untyped-call]
    return losses


def column_log_probs(logits: Tensor, lengths: Tensor, columns: Tensor) -> Tensor:
    """``(B, T, K)`` log-probabilities of ``columns (B, K)`` in every valid frame, ``FLOOR`` elsewhere."""
    mask = valid_frames(lengths, logits.shape[1])
    frames = torch.arange(logits.shape[1], device=logits.device).expand(mask.shape)
    ids = columns.unsqueeze(1).expand(-1, logits.shape[1], -1)
    return kept_log_probs(logits, ids, mask.unsqueeze(-1).expand(ids.shape), Pairs(mask, frames))


def lattice(log_probs: Tensor, lengths: Tensor, transcripts: Transcripts) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and occupancies of CTC lattices over columns.

    Args:
        log_probs: ``(M, T, K)`` log-probabilities of the columns, blank first.
        lengths: ``(M,)`` frames.
        transcripts: Their labels.

    Returns:
        ``(M,)`` losses, 0 where the transcript does not fit; ``(M, T, K)`` occupancies γ, the posterior of reading the
        column in a frame given the transcript; ``(M,)`` bool, whether the transcript fits.
    """
    if log_probs.numel() == 0:
        nothing = log_probs.new_zeros(len(log_probs))
        return nothing, torch.zeros_like(log_probs), nothing.bool()
    with torch.enable_grad():
        leaf = log_probs.detach().requires_grad_()
        losses = F.ctc_loss(
            leaf.transpose(0, 1), transcripts.labels, lengths.clamp(min=1), transcripts.lengths, reduction="none"
        )
        fits = torch.isfinite(losses) & (lengths > 0)
        (gradient,) = torch.autograd.grad(losses, leaf, torch.ones_like(losses))
    # PyTorch gives exp(log_probs) - γ, the gradient by logits under a log-softmax; here the columns are not the whole.
    inside = fits[:, None, None] & valid_frames(lengths, log_probs.shape[1]).unsqueeze(-1)
    occupancies = torch.where(inside, log_probs.detach().exp() - gradient, 0.0).clamp(min=0.0)
    return torch.where(fits, losses.detach(), 0.0), occupancies, fits


class _LatticeLoss(torch.autograd.Function):
    """``(M,)`` losses by column log-probabilities ``(M, T, K)``, whose gradient is minus the occupancy."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, lengths: Tensor, transcripts: Transcripts) -> Tensor:
        losses, occupancies, _ = lattice(log_probs, lengths, transcripts)
        ctx.save_for_backward(occupancies)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (occupancies,) = ctx.saved_tensors
        return -grad.view(-1, 1, 1) * occupancies, None, None


def edit_distances(lists: Sequence[Sequence[Sequence[int]]], references: Sequence[Sequence[int]]) -> list[list[int]]:
    """Levenshtein distance of each hypothesis from its utterance's reference.

    Args:
        lists: For each utterance its hypotheses' token ids.
        references: For each utterance its token ids.
    """
    return [
        [_edits(hypothesis, reference) for hypothesis in lst] for lst, reference in zip(lists, references, strict=True)
    ]


def _edits(first: Sequence[int], second: Sequence[int]) -> int:
    previous = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        current = [i]
        for j, b in enumerate(second, 1):
            current.append(min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (a != b)))
        previous = current
    return previous[-1]
