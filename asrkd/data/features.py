"""Kaldi-compatible log-mel filterbank features: a whole batch in one pass on any device, or chunk by chunk.

Dimensions: B utterances, S audio samples, T frames, W window samples, F mel bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from asrkd.types import Frames

FRAME_SHIFT_S = 0.010
FRAME_LENGTH_S = 0.025
_PREEMPHASIS = 0.97
_LOW_HZ = 20.0
_HIGH_OFFSET_HZ = 400.0  # the highest filter ends this far below Nyquist (Kaldi's --high-freq=-400)
_CPU_BLOCK_FRAMES = 1000
_SAMPLE_SCALE = 32768.0  # Kaldi's samples are 16-bit integers, ours lie in [-1, 1]


@dataclass(frozen=True)
class FbankState:
    """What a stream of audio has left to be used by frames still to come.

    Args:
        samples: ``(B, P)`` the signal from the start of the next frame on (mirrored edge included once begun).
        received: ``(B,)`` int64 samples accepted so far; the rows of one batch advance together.
    """

    samples: Tensor
    received: Tensor


class Fbank(nn.Module):
    """Log-mel filterbank energies as Kaldi's ``compute-fbank-feats --snip-edges=false --dither=0 --high-freq=-400``.

    Each frame: mean removed, pre-emphasis 0.97, Povey window, power spectrum, triangular mel filters, natural log
    floored at float32 epsilon. Frame t is centred on sample ``(t + 0.5) * shift``; the signal is mirrored at its own
    two ends, so an utterance has ``(S + shift // 2) // shift`` frames and its padding in a batch never matters.

    Args:
        sample_rate_hz: Of the audio.
        num_mel_bins: F.

    Raises:
        ValueError: If the sample rate leaves no room for the filters.
    """

    window: Tensor
    mel_filters: Tensor

    def __init__(self, sample_rate_hz: int = 16000, num_mel_bins: int = 80) -> None:
        super().__init__()
        if sample_rate_hz < 2000:
            raise ValueError(f"sample_rate_hz: expected at least 2000, found {sample_rate_hz}")
        if num_mel_bins < 4:
            raise ValueError(f"num_mel_bins: expected at least 4, found {num_mel_bins}")
        self.sample_rate_hz = sample_rate_hz
        self.num_mel_bins = num_mel_bins
        self.frame_shift_s = FRAME_SHIFT_S
        self.shift = int(sample_rate_hz * FRAME_SHIFT_S)
        self.length = int(sample_rate_hz * FRAME_LENGTH_S)
        self.fft_length = 1 << (self.length - 1).bit_length()
        self.left_edge = self.length // 2 - self.shift // 2  # mirrored samples before the first
        povey = torch.hann_window(self.length, periodic=False, dtype=torch.float64).pow(0.85)
        # Not persistent: the geometry follows from the two arguments, so weights files need not carry it.
        self.register_buffer("window", povey.float(), persistent=False)
        self.register_buffer(
            "mel_filters", _mel_filters(num_mel_bins, self.fft_length, sample_rate_hz).float(), persistent=False
        )

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Frames of utterances with so many samples; both int64, any shape."""
        return torch.div(num_samples + self.shift // 2, self.shift, rounding_mode="floor")

    def forward(self, audio: Tensor, lengths: Tensor) -> Frames:
        """Features of whole utterances.

        Args:
            audio: ``(B, S)`` float samples in ``[-1, 1]``; what lies beyond ``lengths`` is not looked at.
            lengths: ``(B,)`` int64 samples, at most S.

        Returns:
            ``(B, T, F)`` float32 with T the frames of the longest; frames beyond each length are zero.
        """
        lengths = lengths.to(audio.device)
        frame_counts = self.num_frames(lengths)
        total = (audio.shape[1] + self.shift // 2) // self.shift
        padded = self._mirror_both_ends(audio.float(), lengths)
        windows = padded.unfold(1, self.length, self.shift)[:, :total]
        if windows.numel() == 0:
            return Frames(audio.new_zeros(audio.shape[0], total, self.num_mel_bins), frame_counts, self.frame_shift_s)
        # On a CPU a few rows at a time stay in the cache: twice as fast as the whole batch, and little memory.
        rows = max(1, _CPU_BLOCK_FRAMES // total) if audio.device.type == "cpu" else audio.shape[0]
        values = torch.cat([self._log_mel(block) for block in torch.split(windows, rows)])
        beyond = torch.arange(total, device=audio.device)[None, :] >= frame_counts[:, None]
        return Frames(values.masked_fill(beyond[:, :, None], 0.0), frame_counts, self.frame_shift_s)

    def initial_state(self, batch: int, device: torch.device | str = "cpu") -> FbankState:
        """The state of ``batch`` streams that have heard nothing yet."""
        return FbankState(torch.zeros(batch, 0, device=device), torch.zeros(batch, dtype=torch.int64, device=device))

    def step(self, audio: Tensor, state: FbankState, final: bool = False) -> tuple[Tensor, FbankState]:
        """Features of the next piece of a stream; the pieces' features in a row equal those of the whole.

        Args:
            audio: ``(B, S)`` the next samples, any number of them (0 too).
            state: From :meth:`initial_state` or the step before.
            final: That nothing follows: frames that need the mirrored end come out too, and the state begins anew.

        Returns:
            ``(B, T, F)`` the frames complete by now (T may be 0), and the state for the next step.
        """
        buffer = torch.cat([state.samples, audio.float()], dim=1)
        received = state.received + audio.shape[1]
        begun = int(state.received[0]) >= self.length - self.left_edge
        if not begun and (final or buffer.shape[1] >= self.length - self.left_edge):
            index = _mirrored(torch.arange(-self.left_edge, 0, device=audio.device), max(1, buffer.shape[1]))
            buffer = torch.cat([buffer[:, index], buffer], dim=1) if buffer.shape[1] else buffer
            begun = True
        if not begun:
            return audio.new_zeros(audio.shape[0], 0, self.num_mel_bins, dtype=torch.float32), FbankState(
                buffer, received
            )
        if final:
            heard = buffer.shape[1] - self.left_edge  # counted from where an unmirrored next frame would start
            frames = max(0, (heard + self.shift // 2) // self.shift)
            # The frames left need at most half a window beyond the end, and the mirror image lies within the buffer.
            buffer = torch.cat([buffer, buffer.flip(1)[:, : self.length // 2]], dim=1)
        else:
            frames = max(0, (buffer.shape[1] - self.length) // self.shift + 1)
        if frames == 0:
            values = audio.new_zeros(audio.shape[0], 0, self.num_mel_bins, dtype=torch.float32)
        else:
            values = self._log_mel(buffer.unfold(1, self.length, self.shift)[:, :frames])
        if final:
            return values, self.initial_state(audio.shape[0], audio.device)
        return values, FbankState(buffer[:, frames * self.shift :], received)

    def _mirror_both_ends(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """``(B, left_edge + S + W)`` with each utterance mirrored at its own start and its own end."""
        right_edge = self.length
        size = lengths.clamp(min=1)[:, None]
        left = _mirrored(torch.arange(-self.left_edge, 0, device=audio.device)[None, :], size)
        after = lengths[:, None] + torch.arange(right_edge, device=audio.device)[None, :]
        padded = functional.pad(audio, (self.left_edge, right_edge))
        if audio.shape[1] == 0:
            return padded
        padded[:, : self.left_edge] = audio.gather(1, left)
        return padded.scatter(1, after + self.left_edge, audio.gather(1, _mirrored(after, size)))

    def _log_mel(self, frames: Tensor) -> Tensor:
        """``(B, T, W)`` raw windows to ``(B, T, F)`` log energies, in float32 whatever autocast says."""
        with torch.autocast(frames.device.type, enabled=False):
            frames = frames * _SAMPLE_SCALE
            frames = frames - frames.mean(dim=-1, keepdim=True)
            previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
            frames = (frames - _PREEMPHASIS * previous) * self.window
            spectrum = torch.fft.rfft(frames, n=self.fft_length)
            power = spectrum.real.square() + spectrum.imag.square()
            energies = power @ self.mel_filters
            return energies.clamp(min=torch.finfo(torch.float32).eps).log()


def _mirrored(index: Tensor, size: Tensor | int) -> Tensor:
    """Where a signal of ``size`` samples, mirrored at both ends without end (…1 0 0 1 … n-1 n-1 …), finds ``index``."""
    index = torch.remainder(index, 2 * size)
    return torch.where(index < size, index, 2 * size - 1 - index)


def _mel_filters(num_mel_bins: int, fft_length: int, sample_rate_hz: int) -> Tensor:
    """``(fft_length // 2 + 1, F)`` triangles on the scale mel = 1127 ln(1 + f / 700), as Kaldi lays them."""
    mel_low = 1127.0 * math.log1p(_LOW_HZ / 700.0)
    mel_high = 1127.0 * math.log1p((sample_rate_hz / 2 - _HIGH_OFFSET_HZ) / 700.0)
    delta = (mel_high - mel_low) / (num_mel_bins + 1)
    edges = mel_low + delta * torch.arange(num_mel_bins + 2, dtype=torch.float64)
    bins_hz = torch.arange(fft_length // 2, dtype=torch.float64) * (sample_rate_hz / fft_length)
    mel = 1127.0 * torch.log1p(bins_hz / 700.0)[:, None]
    rising = (mel - edges[:-2]) / delta
    falling = (edges[2:] - mel) / delta
    triangles = torch.minimum(rising, falling).clamp(min=0.0)
    return functional.pad(triangles, (0, 0, 0, 1))  # Kaldi leaves the Nyquist bin out
