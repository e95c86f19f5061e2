"""Causal convolutional subsampling: no output sees beyond its own group of feature frames.

Dimension legend: B utterances, T frames, F mel bins, C channels, D hidden units.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalSubsampling(nn.Module):
    """Stride-2 3x3 convolutions, padded by one frame on the left only, then a projection.

    Output j of one stage sees its inputs 2j-1 to 2j+1, so ``factor * n`` feature frames give exactly n outputs and
    nothing later is needed; the one frame of the past that each stage needs is its cache. The first stage is a full
    convolution, the others are depthwise-separable.

    Args:
        num_mel_bins: F of the features; a multiple of ``factor``.
        channels: Channels of every stage.
        d_model: Width of the output.
        factor: 2, 4 or 8 feature frames for each output frame.
        dropout: On the output.

    Raises:
        ValueError: If ``factor`` or ``num_mel_bins`` do not fit.
    """

    def __init__(self, num_mel_bins: int, channels: int, d_model: int, factor: int, dropout: float) -> None:
        super().__init__()
        if factor not in (2, 4, 8) or num_mel_bins % factor:
            raise ValueError(f"factor: expected 2, 4 or 8 that divides num_mel_bins={num_mel_bins}, found {factor}")
        self.factor = factor
        self.num_mel_bins = num_mel_bins
        self.channels = channels
        stages: list[nn.Module] = [nn.Conv2d(1, channels, 3, stride=2, padding=(0, 1))]
        for _ in range(factor.bit_length() - 2):
            depthwise = nn.Conv2d(channels, channels, 3, stride=2, padding=(0, 1), groups=channels)
            stages.append(nn.Sequential(depthwise, nn.Conv2d(channels, channels, 1)))
        self.stages = nn.ModuleList(stages)
        self.projection = nn.Linear(channels * (num_mel_bins // factor), d_model)
        self.dropout = nn.Dropout(dropout)

    def initial_caches(self, batch: int, device: torch.device | str) -> tuple[Tensor, ...]:
        """Zeros ``(B, C, 1, F)`` for each stage: what :meth:`forward` pads with at the start."""
        bins = self.num_mel_bins
        caches = []
        for index in range(len(self.stages)):
            caches.append(torch.zeros(batch, self.channels if index else 1, 1, bins >> index, device=device))
        return tuple(caches)

    def forward(self, features: Tensor, caches: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Subsample a whole utterance or the next chunk of one.

        Args:
            features: ``(B, T, F)``, T a multiple of ``factor``.
            caches: What the previous chunk returned; ``None`` at the start.

        Returns:
            ``(B, T / factor, D)`` and the caches for the next chunk.
        """
        x = features.unsqueeze(1)
        next_caches = []
        for index, stage in enumerate(self.stages):
            x = F.pad(x, (0, 0, 1, 0)) if caches is None else torch.cat((caches[index].to(x.dtype), x), dim=2)
            next_caches.append(x[:, :, -1:])
            x = F.relu(stage(x))
        x = x.transpose(1, 2).flatten(2)
        return self.dropout(self.projection(x)), tuple(next_caches)


def pad_to_multiple(features: Tensor, lengths: Tensor, factor: int) -> Tensor:
    """Zero what lies beyond ``lengths`` and pad T up to a multiple of ``factor`` (at least one).

    Args:
        features: ``(B, T, F)``.
        lengths: ``(B,)`` valid frames.
        factor: Of the subsampling.
    """
    num_frames = features.shape[1]
    beyond = torch.arange(num_frames, device=features.device) >= lengths[:, None]
    features = features.masked_fill(beyond.unsqueeze(-1), 0.0)
    padded = max(-(-num_frames // factor), 1) * factor
    return F.pad(features, (0, 0, 0, padded - num_frames)) if padded > num_frames else features
