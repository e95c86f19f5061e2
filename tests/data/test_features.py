"""Fbank against torchaudio's Kaldi port, its independence of padding, and streaming equal to whole."""

from __future__ import annotations

import itertools

import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from asrkd.data.features import Fbank


def _oracle(audio: torch.Tensor) -> torch.Tensor:
    return torchaudio.compliance.kaldi.fbank(
        audio[None] * 32768, num_mel_bins=80, snip_edges=False, dither=0.0, high_freq=-400.0, sample_frequency=16000.0
    )


def _speechlike(samples: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, generator=generator) * 0.01
    time = torch.arange(samples) / 16000
    return 0.3 * torch.sin(2 * torch.pi * (120 + 40 * time) * time) * torch.sin(3 * time).abs() + noise + 0.02


@pytest.mark.parametrize("samples", [400, 479, 480, 1000, 16000, 16079, 16080, 16081, 47999])
def test_equals_torchaudio(samples: int) -> None:
    audio = _speechlike(samples)
    expected = _oracle(audio)
    found = Fbank()(audio[None], torch.tensor([samples]))
    assert found.lengths.tolist() == [expected.shape[0]]
    torch.testing.assert_close(found.values[0], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("samples", [80, 119, 121, 250, 399])
def test_shorter_than_a_window_is_mirrored_again_and_again(samples: int) -> None:
    audio = _speechlike(samples)
    copies = torch.cat([audio.flip(0), audio] * 12)  # the mirrored signal, long enough for torchaudio to accept
    start = 13 * samples  # where a copy the right way round begins
    found = Fbank()(audio[None], torch.tensor([samples])).values[0]
    for frame in range(found.shape[0]):
        window = copies[start - 120 + 160 * frame :][:400]
        expected = torchaudio.compliance.kaldi.fbank(
            window[None] * 32768, num_mel_bins=80, snip_edges=True, dither=0.0, high_freq=-400.0
        )
        torch.testing.assert_close(found[frame : frame + 1], expected, atol=1e-3, rtol=0)
    assert found.shape[0] == (samples + 80) // 160


def test_silence_equals_torchaudio() -> None:
    found = Fbank()(torch.zeros(1, 4000), torch.tensor([4000]))
    torch.testing.assert_close(found.values[0], _oracle(torch.zeros(4000)), atol=1e-3, rtol=0)


def test_other_rate_equals_torchaudio() -> None:
    audio = _speechlike(8000)
    expected = torchaudio.compliance.kaldi.fbank(
        audio[None] * 32768, num_mel_bins=40, snip_edges=False, dither=0.0, high_freq=-400.0, sample_frequency=8000.0
    )
    found = Fbank(8000, 40)(audio[None], torch.tensor([8000]))
    torch.testing.assert_close(found.values[0], expected, atol=1e-3, rtol=0)


def test_batch_equals_single_and_padding_never_leaks() -> None:
    lengths = torch.tensor([16000, 12345, 400, 250, 80, 79, 0])
    batch = torch.full((7, 16000), 0.9)  # loud rubbish beyond each end
    for row, length in enumerate(lengths.tolist()):
        batch[row, :length] = _speechlike(length, seed=row)
    found = Fbank()(batch, lengths)
    assert found.lengths.tolist() == [100, 77, 3, 2, 1, 0, 0]
    for row, length in enumerate(lengths.tolist()):
        alone = Fbank()(batch[row : row + 1, :length], torch.tensor([length])).values[0]
        torch.testing.assert_close(found.values[row, : found.lengths[row]], alone, atol=1e-5, rtol=0)
        assert torch.all(found.values[row, found.lengths[row] :] == 0)


@settings(max_examples=40, deadline=None)
@given(total=st.integers(0, 6000), cuts=st.lists(st.integers(0, 6000), max_size=6))
def test_streaming_equals_whole(total: int, cuts: list[int]) -> None:
    audio = torch.stack([_speechlike(total, 1), _speechlike(total, 2)])
    fbank = Fbank()
    whole = fbank(audio, torch.tensor([total, total]))
    edges = [0, *sorted(min(c, total) for c in cuts), total]
    state, pieces = fbank.initial_state(2), []
    for start, end in itertools.pairwise(edges):
        piece, state = fbank.step(audio[:, start:end], state)
        pieces.append(piece)
    piece, state = fbank.step(audio[:, total:], state, final=True)
    pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole.values, atol=1e-4, rtol=0)
    assert state.samples.shape == (2, 0)


def test_streaming_gives_frames_as_soon_as_they_are_complete() -> None:
    fbank, audio = Fbank(), _speechlike(3200)[None]
    first, state = fbank.step(audio[:, :1600], fbank.initial_state(1))
    assert first.shape[1] == 9  # frame 8 ends at sample 8 * 160 + 280 = 1560
    second, _ = fbank.step(audio[:, 1600:], state)
    assert second.shape[1] == 10


def test_float32_under_autocast_and_gradient() -> None:
    audio = _speechlike(3200)[None].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = Fbank()(audio, torch.tensor([3200]))
    assert found.values.dtype == torch.float32
    torch.testing.assert_close(found.values[0].detach(), _oracle(audio[0].detach()), atol=1e-3, rtol=0)
    found.values.sum().backward()
    assert audio.grad is not None
    assert torch.isfinite(audio.grad).all()


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="sample_rate_hz"):
        Fbank(100)
    with pytest.raises(ValueError, match="num_mel_bins"):
        Fbank(16000, 1)
