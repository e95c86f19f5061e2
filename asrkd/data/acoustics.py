"""Rooms and noise: what lies between a mouth and a microphone, as far as a simulation goes. Mono float32 tensors."""

from __future__ import annotations

import math

import scipy.fft
import torch
from torch import Tensor

_EARLY_END_S = 0.050  # reflections later than this blur into the tail
_REFLECTIONS = 8
_FLAT_BELOW_HZ = 50.0  # a slope continued to 0 Hz would leave nothing but drift


def coloured_noise(num_samples: int, exponent: float, sample_rate_hz: int, generator: torch.Generator) -> Tensor:
    """Gaussian noise with power falling as ``1 / f ** exponent`` above 50 Hz: 0 white, 1 pink, 2 brown.

    Args:
        num_samples: S.
        exponent: Slope of the power spectrum.
        sample_rate_hz: Of the noise.
        generator: Where the randomness comes from; the noise is made on its device.

    Returns:
        ``(S,)`` float32 with a root mean square of 1.
    """
    if num_samples == 0:
        return torch.zeros(0, device=generator.device)
    fft_length = scipy.fft.next_fast_len(num_samples + 64, real=True)  # cut from a longer one: its ends do not meet
    bins = fft_length // 2 + 1
    spectrum = torch.view_as_complex(torch.randn(bins, 2, generator=generator, device=generator.device))
    frequency_hz = torch.arange(bins, device=generator.device) * (sample_rate_hz / fft_length)
    noise = torch.fft.irfft(spectrum * frequency_hz.clamp(min=_FLAT_BELOW_HZ).pow(-exponent / 2), fft_length)
    noise = noise[:num_samples]
    return noise / noise.square().mean().sqrt().clamp(min=1e-20)


def room_impulse_response(
    rt60_s: float, direct_to_reverberant_db: float, sample_rate_hz: int, generator: torch.Generator
) -> Tensor:
    """A made-up room: the direct sound, early reflections, and an exponentially decaying noise tail (Polack's model).

    Args:
        rt60_s: Time in which the tail falls by 60 dB.
        direct_to_reverberant_db: Energy of the direct sound over that of all the rest.
        sample_rate_hz: Of the response.
        generator: Where the randomness comes from.

    Returns:
        ``(N,)`` float32, N the samples of ``rt60_s``; the direct sound is sample 0 and has amplitude 1. Shorter than
        4 ms there is no room, only the direct sound.
    """
    num_samples = max(1, round(rt60_s * sample_rate_hz))
    response = torch.zeros(num_samples)
    first = round(0.002 * sample_rate_hz)
    if num_samples > 2 * first:
        time_s = torch.arange(num_samples) / sample_rate_hz
        envelope = torch.exp(-math.log(1000.0) * time_s / rt60_s)
        tail = torch.randn(num_samples, generator=generator) * envelope
        tail[:first] = 0.0
        early_end = min(num_samples, round(_EARLY_END_S * sample_rate_hz))
        places = torch.randint(first, early_end, (_REFLECTIONS,), generator=generator)
        strengths = torch.empty(_REFLECTIONS).uniform_(2.0, 6.0, generator=generator)
        signs = torch.randint(0, 2, (_REFLECTIONS,), generator=generator) * 2 - 1
        tail.index_add_(0, places, signs * strengths * envelope[places])
        response = tail * (10 ** (-direct_to_reverberant_db / 20) / tail.square().sum().sqrt())
    response[0] = 1.0
    return response


def reverberate(speech: Tensor, response: Tensor) -> Tensor:
    """``speech`` ``(S,)`` as heard in the room, cut to its own length."""
    length = scipy.fft.next_fast_len(speech.numel() + response.numel() - 1, real=True)
    product = torch.fft.rfft(speech, length) * torch.fft.rfft(response, length)
    return torch.fft.irfft(product, length)[: speech.numel()]


def add_noise_at_snr(speech: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    """``speech`` plus ``noise``, both ``(S,)``, with the ratio of their mean powers over the utterance at ``snr_db``.

    Silence stays silence: no ratio can be had.
    """
    scale = (speech.square().mean() / noise.square().mean().clamp(min=1e-20)).sqrt() * 10 ** (-snr_db / 20)
    return speech + scale * noise
