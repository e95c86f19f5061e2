"""Masks and reductions that every loss shares."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, ParamSpec

import torch
from torch import Tensor

Reduction = Literal["sum", "mean", "none"]
_P = ParamSpec("_P")


def full_precision(loss: Callable[_P, Tensor]) -> Callable[_P, Tensor]:
    """Run ``loss`` outside autocast on any device, so that its matrix products are not rounded to half precision."""

    @functools.wraps(loss)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> Tensor:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return loss(*args, **kwargs)

    return run


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


def relative_to_absolute(relative: Tensor, num_frames: int) -> Tensor:
    """SpeechBrain's relative lengths as frame counts.

    Args:
        relative: ``(B,)`` lengths as shares of the longest, in ``[0, 1]``.
        num_frames: T of the padded batch.

    Returns:
        ``(B,)`` int64 frames, rounded as SpeechBrain's own losses round them.
    """
    return torch.round(relative * num_frames).long()


def working(values: Tensor) -> Tensor:
    """``values`` in the precision that losses compute in: float64 stays, everything else becomes float32."""
    return values if values.dtype == torch.float64 else values.float()


def check_logits(logits: Tensor, lengths: Tensor, blank_id: int | None = None) -> None:
    """Refuse what is no batch of logits.

    What has to be read from the tensors is looked at on the CPU only (on a GPU it would stall the queue), and in one frame.

    Raises:
        ValueError: For a wrong shape, lengths that do not fit, a blank outside the vocabulary, or probabilities.
    """
    if logits.ndim != 3:
        raise ValueError(f"logits: expected (B, T, V), found shape {tuple(logits.shape)}")
    if lengths.shape != logits.shape[:1]:
        raise ValueError(f"lengths: expected shape ({logits.shape[0]},), found {tuple(lengths.shape)}")
    if lengths.is_floating_point():
        raise ValueError("lengths: expected whole frames, found floats (relative lengths: see relative_to_absolute)")
    if blank_id is not None and not 0 <= blank_id < logits.shape[2]:
        raise ValueError(f"blank_id: expected 0 to {logits.shape[2] - 1}, found {blank_id}")
    if lengths.device.type != "cpu" or not lengths.numel():
        return
    longest, row = lengths.max(0)
    if int(longest) > logits.shape[1]:
        raise ValueError(f"lengths: expected at most T = {logits.shape[1]}, found {int(longest)}")
    if int(longest) > 0 and logits.device.type == "cpu" and _is_distribution(logits.detach()[int(row), 0]):
        raise ValueError("logits: expected unnormalised scores or log-probabilities, found probabilities")


def check_log_probs(log_probs: Tensor, lengths: Tensor, num_tokens: int) -> None:
    """Refuse what is no batch of a teacher's log-probabilities over ``num_tokens`` tokens.

    Raises:
        ValueError: For a wrong shape, lengths that do not fit, or values that are no log-probabilities.
    """
    if log_probs.ndim != 3 or log_probs.shape[2] != num_tokens:
        raise ValueError(f"teacher: expected (B, T, {num_tokens}), found shape {tuple(log_probs.shape)}")
    if lengths.shape != log_probs.shape[:1]:
        raise ValueError(f"teacher: expected lengths of shape ({log_probs.shape[0]},), found {tuple(lengths.shape)}")
    if lengths.device.type != "cpu" or log_probs.device.type != "cpu" or not lengths.numel():
        return
    longest, row = lengths.max(0)
    if int(longest) > log_probs.shape[1]:
        raise ValueError(f"teacher: expected lengths of at most T = {log_probs.shape[1]}, found {int(longest)}")
    if int(longest) > 0:
        mass = float(working(log_probs[int(row), 0]).logsumexp(-1).exp())
        # Half-precision posteriors may miss 1 by a few hundredths; logits and probabilities miss it by far.
        if not abs(mass - 1) < 0.1:
            raise ValueError(f"teacher: expected log-probabilities (mass 1 a frame), found mass {mass:.3g}")


def _is_distribution(frame: Tensor) -> bool:
    return frame.numel() > 1 and bool(frame.min() >= 0) and abs(float(working(frame).sum()) - 1) < 1e-4
