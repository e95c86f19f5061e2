"""Masks and reductions that every loss shares."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["sum", "mean", "none"]


def valid_frames(lengths: Tensor, num_frames: int) -> Tensor:
    """``(B, T)`` bool, true on frames before each row's length.

    Args:
        lengths: ``(B,)``.
        num_frames: T.
    """
    return torch.arange(num_frames, device=lengths.device) < lengths[:, None]


def reduce(per_utterance: Tensor, counts: Tensor, reduction: Reduction) -> Tensor:
    """Sum over the batch, mean over everything counted, or one value an utterance.

    Args:
        per_utterance: ``(B,)`` sums.
        counts: ``(B,)`` what each sum runs over (frames or labels).
        reduction: ``sum``, ``mean`` (total sum by total count) or ``none``.

    Raises:
        ValueError: For an unknown reduction.
    """
    if reduction == "none":
        return per_utterance
    total = per_utterance.sum()
    if reduction == "sum":
        return total
    if reduction == "mean":
        return total / counts.sum().clamp(min=1)
    raise ValueError(f"reduction: expected sum, mean or none; found {reduction!r}")


def check_logits(logits: Tensor, lengths: Tensor, blank_id: int | None = None) -> None:
    """Refuse what is no batch of logits.

    Raises:
        ValueError: For a wrong shape, lengths that do not fit, or a blank outside the vocabulary.
    """
    if logits.ndim != 3:
        raise ValueError(f"logits: expected (B, T, V), found shape {tuple(logits.shape)}")
    if lengths.shape != logits.shape[:1]:
        raise ValueError(f"lengths: expected shape ({logits.shape[0]},), found {tuple(lengths.shape)}")
    if lengths.device.type == "cpu" and lengths.numel() and int(lengths.max()) > logits.shape[1]:
        raise ValueError(f"lengths: expected at most T = {logits.shape[1]}, found {int(lengths.max())}")
    if blank_id is not None and not 0 <= blank_id < logits.shape[2]:
        raise ValueError(f"blank_id: expected 0 to {logits.shape[2] - 1}, found {blank_id}")
