"""Augmentation of audio and features. What an utterance gets depends on the seed and its id alone.

Neither the batch it stands in, nor its place there, nor the number of processes changes what is drawn, so that one
process and two, or a run and its resumption, train on the same. Dimensions: B utterances, S samples, T frames, F bins.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asrkd.data.acoustics import add_noise_at_snr, coloured_noise
from asrkd.types import Frames


@dataclass(frozen=True)
class SpecAugment:
    """Masks over time and frequency (Park et al. 2019, without time warping).

    Args:
        time_masks: Number of masks over time in each utterance.
        max_time_frames: Longest mask over time; lengths are drawn evenly from 0 on.
        max_time_share: No mask is longer than this share of its utterance (the paper's p), so that short ones survive.
        freq_masks: Number of masks over frequency.
        max_freq_bins: Widest mask over frequency.

    Raises:
        ValueError: If a number is negative or the share above 1.
    """

    time_masks: int = 2
    max_time_frames: int = 40
    max_time_share: float = 0.2
    freq_masks: int = 2
    max_freq_bins: int = 20

    def __post_init__(self) -> None:
        for name in ("time_masks", "max_time_frames", "freq_masks", "max_freq_bins"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, found {getattr(self, name)}")
        if not 0.0 <= self.max_time_share <= 1.0:
            raise ValueError(f"max_time_share: expected 0 to 1, found {self.max_time_share}")

    def __call__(self, features: Frames, ids: Sequence[str], seed: Sequence[int]) -> Frames:
        """Masks a copy of the features.

        Args:
            features: ``(B, T, F)``, normalised: masked places become 0, which should be the mean.
            ids: B utterance ids.
            seed: What the masks depend on besides the id, such as the run's seed and the step.

        Returns:
            Features of the same shape and lengths.
        """
        batch, frames, bins = features.values.shape
        masked_time = torch.zeros(batch, frames, dtype=torch.bool)
        masked_bins = torch.zeros(batch, bins, dtype=torch.bool)
        for row, (identity, length) in enumerate(zip(ids, features.lengths.tolist(), strict=True)):
            draw = random.Random(_key(seed, identity, "spec"))
            longest = min(self.max_time_frames, int(self.max_time_share * length))
            for _ in range(self.time_masks):
                width = draw.randint(0, longest)
                start = draw.randint(0, length - width)
                masked_time[row, start : start + width] = True
            for _ in range(self.freq_masks):
                width = draw.randint(0, min(self.max_freq_bins, bins))
                start = draw.randint(0, bins - width)
                masked_bins[row, start : start + width] = True
        device = features.values.device
        masked = masked_time.to(device)[:, :, None] | masked_bins.to(device)[:, None, :]
        return Frames(features.values.masked_fill(masked, 0.0), features.lengths, features.frame_shift_s)


def add_noise(
    audio: Tensor,
    lengths: Tensor,
    ids: Sequence[str],
    *,
    snr_db: tuple[float, float],
    probability: float,
    sample_rate_hz: int,
    seed: Sequence[int],
) -> Tensor:
    """Adds noise of a random colour, between white and brown, to some of the utterances.

    Args:
        audio: ``(B, S)`` samples.
        lengths: ``(B,)`` int64 samples; what lies beyond is left alone.
        ids: B utterance ids.
        snr_db: Lowest and highest signal-to-noise ratio, drawn evenly (mean powers over the whole utterance).
        probability: Share of utterances that get noise.
        sample_rate_hz: Of ``audio``.
        seed: What is drawn depends on this and the id alone (and on whether the device is a CPU or a GPU).

    Returns:
        ``(B, S)`` a new tensor.
    """
    noisy = audio.clone()
    generator = torch.Generator(device=audio.device)
    for row, (identity, length) in enumerate(zip(ids, lengths.tolist(), strict=True)):
        key = _key(seed, identity, "noise")
        draw = random.Random(key)
        if draw.random() >= probability or length == 0:
            continue
        generator.manual_seed(key)
        noise = coloured_noise(length, draw.uniform(0.0, 2.0), sample_rate_hz, generator)
        noisy[row, :length] = add_noise_at_snr(audio[row, :length], noise, draw.uniform(*snr_db))
    return noisy


def _key(seed: Sequence[int], identity: str, purpose: str) -> int:
    text = "/".join([*map(str, seed), identity, purpose])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little")
