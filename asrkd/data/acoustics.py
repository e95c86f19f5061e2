"""Rooms and noise: what lies between a mouth and a microphone, as far as a simulation goes. NumPy, mono, float32."""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Samples = NDArray[np.float32]

_EARLY_END_S = 0.050  # reflections later than this blur into the tail


def coloured_noise(num_samples: int, exponent: float, generator: np.random.Generator) -> Samples:
    """Gaussian noise with power falling as ``1 / f ** exponent``: 0 white, 1 pink, 2 brown; root mean square 1.

    Args:
        num_samples: Length.
        exponent: Slope of the power spectrum.
        generator: Where the randomness comes from.

    Returns:
        ``(num_samples,)`` float32.
    """
    if num_samples == 0:
        return np.zeros(0, np.float32)
    fft_length = scipy.fft.next_fast_len(num_samples + 64, real=True)  # cut from a longer one: no wrap-around
    white = generator.standard_normal(fft_length // 2 + 1) + 1j * generator.standard_normal(fft_length // 2 + 1)
    # Flat below the sixteenth bin: a slope down to 0 Hz would leave nothing but drift.
    slope = np.maximum(np.arange(white.size), 16.0) ** (-exponent / 2)
    white[0] = 0.0
    noise = scipy.fft.irfft((white * slope).astype(np.complex64), fft_length)[:num_samples]
    return (noise / max(float(np.sqrt(np.mean(noise**2))), 1e-12)).astype(np.float32)


def room_impulse_response(
    rt60_s: float, direct_to_reverberant_db: float, sample_rate_hz: int, generator: np.random.Generator
) -> Samples:
    """A made-up room: the direct sound, early reflections, and an exponentially decaying noise tail (Polack's model).

    Args:
        rt60_s: Time in which the tail falls by 60 dB; 0 gives the direct sound alone.
        direct_to_reverberant_db: Energy of the direct sound over that of all the rest.
        sample_rate_hz: Of the response.
        generator: Where the randomness comes from.

    Returns:
        ``(N,)`` float32, N the samples of ``rt60_s``; the direct sound is sample 0 and has amplitude 1.
    """
    num_samples = max(1, round(rt60_s * sample_rate_hz))
    response = np.zeros(num_samples, np.float32)
    first = round(0.002 * sample_rate_hz)
    if num_samples > 2 * first:
        time_s = np.arange(num_samples) / sample_rate_hz
        envelope = np.exp(-np.log(1000.0) * time_s / rt60_s)
        tail = generator.standard_normal(num_samples) * envelope
        tail[:first] = 0.0
        early_end = min(num_samples, round(_EARLY_END_S * sample_rate_hz))
        places = generator.integers(first, early_end, size=8)
        tail[places] += generator.choice([-1.0, 1.0], size=8) * generator.uniform(2.0, 6.0, size=8) * envelope[places]
        gain = 10 ** (-direct_to_reverberant_db / 20) / np.sqrt(np.sum(tail**2))
        response = (gain * tail).astype(np.float32)
    response[0] = 1.0
    return response


def reverberate(speech: Samples, response: Samples) -> Samples:
    """``speech`` as heard in the room, cut to its own length."""
    length = scipy.fft.next_fast_len(speech.size + response.size - 1, real=True)
    product = scipy.fft.rfft(speech, length) * scipy.fft.rfft(response, length)
    return scipy.fft.irfft(product, length)[: speech.size].astype(np.float32)


def add_noise_at_snr(speech: Samples, noise: Samples, snr_db: float) -> Samples:
    """``speech`` plus ``noise`` scaled so that the ratio of their mean powers over the whole utterance is ``snr_db``.

    Silent speech is returned unchanged: no ratio can be had.
    """
    speech_power = float(np.mean(speech**2)) if speech.size else 0.0
    noise_power = float(np.mean(noise**2)) if noise.size else 0.0
    if speech_power <= 0.0 or noise_power <= 0.0:
        return speech
    scale = np.sqrt(speech_power / noise_power) * 10 ** (-snr_db / 20)
    return (speech + np.float32(scale) * noise).astype(np.float32)
