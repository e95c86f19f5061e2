"""Augmentation: what is drawn, that it hangs on seed and id alone, and that it keeps to its bounds."""

from __future__ import annotations

import pytest
import torch

from asrkd.data.acoustics import add_noise_at_snr, coloured_noise, reverberate, room_impulse_response
from asrkd.data.augment import SpecAugment, add_noise
from asrkd.types import Frames

IDS = ("a", "b", "c", "d")
LENGTHS = torch.tensor([300, 200, 40, 1])


def _features() -> Frames:
    return Frames(torch.ones(4, 300, 80), LENGTHS, 0.01)


def test_masks_hang_on_seed_and_id_alone() -> None:
    masks = SpecAugment()
    whole = masks(_features(), IDS, seed=(1, 2)).values
    assert torch.equal(masks(_features(), IDS, seed=(1, 2)).values, whole)
    assert not torch.equal(masks(_features(), IDS, seed=(1, 3)).values, whole)
    alone = masks(Frames(torch.ones(1, 200, 80), torch.tensor([200]), 0.01), ("b",), seed=(1, 2)).values
    assert torch.equal(alone[0], whole[1, :200])
    turned = masks(Frames(torch.ones(4, 300, 80), LENGTHS.flip(0), 0.01), IDS[::-1], seed=(1, 2)).values
    assert torch.equal(turned.flip(0), whole)


def test_masks_keep_their_bounds_and_average_as_stated() -> None:
    masks = SpecAugment(time_masks=1, max_time_frames=40, max_time_share=0.1, freq_masks=1, max_freq_bins=20)
    time_widths, freq_widths = [], []
    for step in range(400):
        values = masks(_features(), IDS, seed=(step,)).values
        for row, (length, longest) in enumerate(((300, 30), (200, 20), (40, 4), (1, 0))):
            frames_masked = (values[row, :length] == 0).all(dim=1).sum().item()
            bins_masked = (values[row, :length] == 0).all(dim=0).sum().item()
            assert frames_masked <= longest
            if length > 1:
                assert bins_masked <= 20
            assert (values[row, length:].sum(dim=1) >= 60).all()
            if row == 0:
                time_widths.append(frames_masked)
                freq_widths.append(bins_masked)
    assert sum(time_widths) / 400 == pytest.approx(15, abs=2)
    assert sum(freq_widths) / 400 == pytest.approx(10, abs=1.5)
    assert max(time_widths) == 30
    assert max(freq_widths) == 20


def test_features_given_are_not_changed_and_no_masks_change_nothing() -> None:
    features = _features()
    SpecAugment()(features, IDS, seed=(0,))
    assert (features.values == 1).all()
    assert torch.equal(SpecAugment(0, 0, 0.0, 0, 0)(features, IDS, seed=(0,)).values, features.values)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="time_masks"):
        SpecAugment(time_masks=-1)
    with pytest.raises(ValueError, match="max_time_share"):
        SpecAugment(max_time_share=1.5)


def _audio() -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([16000, 8000, 100, 0])
    audio = torch.zeros(4, 16000)
    for row, length in enumerate(lengths.tolist()):
        audio[row, :length] = 0.1 * torch.sin(torch.arange(length) * 0.2)
    return audio, lengths


def _noisy(ids: tuple[str, ...] = IDS, seed: int = 0, probability: float = 1.0) -> torch.Tensor:
    audio, lengths = _audio()
    return add_noise(
        audio, lengths, ids, snr_db=(10.0, 10.0), probability=probability, sample_rate_hz=16000, seed=(seed,)
    )


def test_noise_has_the_ratio_asked_for_and_leaves_padding_alone() -> None:
    audio, lengths = _audio()
    noise = _noisy() - audio
    for row, length in enumerate(lengths.tolist()):
        if length:
            ratio = audio[row].square().sum() / noise[row].square().sum()
            assert 10 * torch.log10(ratio).item() == pytest.approx(10.0, abs=0.05)
        assert not noise[row, length:].any()


def test_noise_hangs_on_seed_and_id_alone() -> None:
    assert torch.equal(_noisy(), _noisy())
    assert not torch.equal(_noisy(seed=1), _noisy())
    audio, lengths = _audio()
    alone = add_noise(
        audio[1:2, :8000], lengths[1:2], ("b",), snr_db=(10.0, 10.0), probability=1.0, sample_rate_hz=16000, seed=(0,)
    )
    assert torch.equal(alone[0], _noisy()[1, :8000])


def test_noise_comes_as_often_as_asked() -> None:
    audio, _ = _audio()
    assert torch.equal(_noisy(probability=0.0), audio)
    hits = sum(not torch.equal(_noisy(seed=s, probability=0.3)[0], audio[0]) for s in range(200))
    assert hits == pytest.approx(60, abs=20)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_colour_of_noise(exponent: float) -> None:
    noise = coloured_noise(160000, exponent, 16000, torch.Generator().manual_seed(0))
    assert noise.square().mean().sqrt().item() == pytest.approx(1.0, abs=1e-4)
    power = torch.fft.rfft(noise).abs().square()
    low, high = power[2000:4000].mean(), power[20000:40000].mean()  # 200-400 Hz, 2-4 kHz
    assert 10 * torch.log10(low / high).item() == pytest.approx(10 * exponent, abs=0.7)


def test_room_decays_by_60_db_in_its_time_and_keeps_its_ratio() -> None:
    response = room_impulse_response(0.5, 6.0, 16000, torch.Generator().manual_seed(0))
    assert response.shape == (8000,)
    assert response[0] == 1.0
    assert -10 * torch.log10(response[1:].square().sum()).item() == pytest.approx(6.0, abs=0.01)
    early, late = response[1600:2400].square().mean(), response[5600:6400].square().mean()  # 0.25 s apart: 30 dB
    assert 10 * torch.log10(early / late).item() == pytest.approx(30.0, abs=1.5)
    speech = torch.randn(3000, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.conv1d(
        torch.nn.functional.pad(speech, (7999, 0))[None, None], response.flip(0)[None, None]
    )[0, 0]
    torch.testing.assert_close(reverberate(speech, response), expected, atol=1e-4, rtol=0)


def test_silence_stays_silence() -> None:
    noise = coloured_noise(100, 0.0, 16000, torch.Generator().manual_seed(0))
    assert not add_noise_at_snr(torch.zeros(100), noise, 10.0).any()
    assert room_impulse_response(0.0, 5.0, 16000, torch.Generator()).tolist() == [1.0]
