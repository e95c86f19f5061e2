"""PCM of any kind to mono float samples at the model's rate, piece by piece."""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
_INTEGER_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}


def check_pcm(pcm: NDArray[np.generic], sample_rate_hz: int) -> None:
    """Refuse what cannot be heard.

    Args:
        pcm: See :meth:`PcmInput.accept`.
        sample_rate_hz: Of ``pcm``.

    Raises:
        ValueError: For another type, shape or an impossible rate.
    """
    if not MIN_RATE_HZ <= sample_rate_hz <= MAX_RATE_HZ:
        raise ValueError(f"sample_rate_hz: expected {MIN_RATE_HZ} to {MAX_RATE_HZ}, found {sample_rate_hz}")
    if pcm.ndim not in (1, 2) or (pcm.ndim == 2 and pcm.shape[1] == 0):
        raise ValueError(f"pcm: expected shape (samples,) or (samples, channels), found {pcm.shape}")
    if pcm.dtype not in _INTEGER_SCALE and not np.issubdtype(pcm.dtype, np.floating):
        raise ValueError(f"pcm: expected int16, int32 or float samples, found {pcm.dtype}")


class PcmInput:
    """One stream's way in.

    Args:
        sample_rate_hz: Rate of what comes out.

    Attributes:
        repaired_samples: Samples that were NaN or infinite and were replaced by zero.
    """

    def __init__(self, sample_rate_hz: int) -> None:
        self.sample_rate_hz = sample_rate_hz
        self.repaired_samples = 0
        self._input_rate_hz = sample_rate_hz
        self._resampler: soxr.ResampleStream | None = None

    def accept(self, pcm: NDArray[np.generic], sample_rate_hz: int | None = None) -> NDArray[np.float32]:
        """Convert the next piece.

        Args:
            pcm: ``(S,)`` or ``(S, channels)``: int16, int32, or float in ``[-1, 1]``; any S, also 0.
            sample_rate_hz: Of ``pcm``; ``None``: the model's. It may change from one piece to the next.

        Returns:
            ``(S',)`` float32; while resampling, some samples come out with a later piece.

        Raises:
            ValueError: For another type, shape or an impossible rate; the stream goes on unchanged.
        """
        rate = self.sample_rate_hz if sample_rate_hz is None else sample_rate_hz
        pcm = np.asarray(pcm)
        check_pcm(pcm, rate)
        samples = self._mono(pcm)
        pieces = []
        if rate != self._input_rate_hz:
            pieces.append(self.flush())
            self._input_rate_hz = rate
        if rate == self.sample_rate_hz:
            pieces.append(samples)
        else:
            if self._resampler is None:
                self._resampler = soxr.ResampleStream(rate, self.sample_rate_hz, 1, dtype="float32")
            pieces.append(self._resampler.resample_chunk(samples))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def flush(self) -> NDArray[np.float32]:
        """What the resampler still holds, at the end of the stream."""
        if self._resampler is None:
            return np.zeros(0, dtype=np.float32)
        rest: NDArray[np.float32] = self._resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
        self._resampler = None
        return rest

    def _mono(self, pcm: NDArray[np.generic]) -> NDArray[np.float32]:
        if pcm.dtype in _INTEGER_SCALE:
            samples = pcm.astype(np.float32) * np.float32(1.0 / _INTEGER_SCALE[pcm.dtype])
        else:
            samples = pcm.astype(np.float32)
        if not np.isfinite(samples).all():
            broken = ~np.isfinite(samples)
            self.repaired_samples += int(broken.sum())
            samples = np.where(broken, np.float32(0.0), samples)
        return samples.mean(axis=1, dtype=np.float32) if samples.ndim == 2 else samples
