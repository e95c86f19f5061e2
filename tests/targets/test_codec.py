"""The codec's declared error, its size, and what it refuses."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asrkd.targets.codec import FLOOR, SampledCodec, TopKCodec, make_codec


def peaky(seed: int, frames: int, vocab: int) -> NDArray[np.float32]:
    """Spikes in a sea of blank, as CTC posteriors are."""
    generator = np.random.default_rng(seed)
    logits = generator.standard_normal((frames, vocab)).astype(np.float32)
    logits[np.arange(frames), generator.integers(0, vocab, frames)] += 8
    logits[generator.random(frames) < 0.7, 0] += 20
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def divergence(codec: TopKCodec, live: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(stored || live) of each frame over the stored events."""
    ids, values, tail = codec.decode(codec.encode(live))
    kept = np.isfinite(values)
    live_kept = np.take_along_axis(live, ids, 1).astype(np.float64)
    live_tail = np.log(np.maximum(1 - np.where(kept, np.exp(live_kept), 0).sum(1), 1e-12))
    probs = np.where(kept, np.exp(values), 0)
    total = (probs * (np.where(kept, values, 0) - live_kept)).sum(1)
    return total + np.exp(tail) * (tail - live_tail)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), frames=st.integers(1, 30), vocab=st.sampled_from([2, 3, 40, 300]))
def test_what_comes_back_is_normalised_and_within_the_declared_error(seed: int, frames: int, vocab: int) -> None:
    live = peaky(seed, frames, vocab)
    codec = TopKCodec(vocab, 0)
    ids, values, tail = codec.decode(codec.encode(live))
    assert ids.shape == values.shape and len(tail) == frames
    np.testing.assert_allclose(np.exp(values).sum(1) + np.exp(tail), 1.0, atol=1e-5)
    for t in range(frames):
        kept = np.isfinite(values[t])
        if live[t, 0] >= np.log(codec.mass):
            assert ids[t, 0] == 0 and kept.sum() == 1
            continue
        mass = np.exp(live[t, ids[t, kept]]).sum()
        assert mass >= codec.mass - 1e-5 or kept.sum() == min(codec.max_entries, vocab)
        # Normalising adds at most as much again.
        close = live[t, ids[t, kept]] > -FLOOR
        error = np.abs(values[t, kept] - live[t, ids[t, kept]])[close]
        assert (error <= 2 * codec.max_log_error + 1e-4).all()


def test_bars_on_random_peaky_posteriors() -> None:
    """KL below 0.01 nats a frame and at most 1 MB an hour at V = 1000, 25 frames a second."""
    live, codec = peaky(0, 4000, 1000), TopKCodec(1000, 0, mass=0.999, max_entries=16)
    assert divergence(codec, live).mean() < 0.01
    assert len(codec.encode(live)) / 4000 * 25 * 3600 <= 1e6
    only_blank = np.full((90_000, 1000), -20.0, np.float32)
    only_blank[:, 0] = -1e-6
    assert len(codec.encode(only_blank)) < 200  # an hour of silence


def test_decoding_is_quick() -> None:
    """Above 20,000 times real time at V = 1000, 25 frames a second, in utterances of ten seconds."""
    codec = TopKCodec(1000, 0)
    data = [codec.encode(peaky(seed, 250, 1000)) for seed in range(10)]
    best = math.inf
    for _ in range(5):
        started = time.process_time()
        for one in data:
            codec.decode(one)
        best = min(best, time.process_time() - started)
    assert 100 / best > 20_000


def test_samples_are_unbiased_and_repeatable() -> None:
    live = peaky(2, 40, 30)
    codec = SampledCodec(30, 0, samples=16)
    mean = np.zeros((40, 30))
    for draw in range(400):
        ids, values, tail = codec.decode(codec.encode(live, f"utterance {draw}"))
        assert np.isneginf(tail).all()
        np.testing.assert_allclose(np.exp(values).sum(1), 1.0, atol=1e-6)
        row, place = np.nonzero(np.isfinite(values))
        shares = np.exp(values[row, place])
        assert (np.abs(shares - np.exp(live)[row, ids[row, place]]) <= 1 / 16 + 1e-6).all()
        mean[row, ids[row, place]] += shares / 400
    # Systematic draws: each share is off by less than 1/16, so its mean over 400 strays by less than 4 standard errors.
    assert np.abs(mean - np.exp(live)).max() < 4 * (1 / 32) / math.sqrt(400)
    assert codec.encode(live, "a") == codec.encode(live, "a") != codec.encode(live, "b")


@pytest.mark.parametrize("vocab", [256, 257, 70_000])
def test_ids_of_every_width_come_back(vocab: int) -> None:
    live = np.full((3, vocab), -np.inf, np.float32)
    live[[0, 1, 2], [0, vocab // 2, vocab - 1]] = 0.0
    for codec in (TopKCodec(vocab, 1), SampledCodec(vocab, 1)):
        ids, values, _ = codec.decode(codec.encode(live, "u"))
        assert ids[:, 0].tolist() == [0, vocab // 2, vocab - 1]
        np.testing.assert_allclose(values[:, 0], 0.0, atol=1e-4)


def test_codecs_by_name() -> None:
    for codec in (TopKCodec(9, 2, bits=16), SampledCodec(9, 2, samples=5)):
        assert make_codec(codec.options(), 9, 2) == codec
    with pytest.raises(ValueError, match="topk, sampled; found 'zip'"):
        make_codec({"kind": "zip"}, 9, 2)
    with pytest.raises(ValueError, match=r"codec.mass: unknown for sampled; known: samples"):
        make_codec({"kind": "sampled", "mass": 0.9}, 9, 2)


def test_sixteen_bits_are_finer() -> None:
    live = peaky(1, 300, 50)
    eight, sixteen = (divergence(TopKCodec(50, 0, bits=b), live)[live[:, 0] < np.log(0.999)].mean() for b in (8, 16))
    assert 0 <= sixteen + 1e-9 < eight


@pytest.mark.parametrize("options", [{"mass": 1.0}, {"max_entries": 0}, {"bits": 4}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        TopKCodec(10, 0, **options)  # type: ignore[arg-type]


def test_what_is_no_posterior_is_refused() -> None:
    codec = TopKCodec(5, 0)
    for one in (codec, SampledCodec(5, 0)):
        with pytest.raises(ValueError, match="not a stored posterior"):
            one.decode(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"expected \(T, 5\)"):
        codec.encode(np.zeros((3, 4), np.float32))
    with pytest.raises(ValueError, match="NaN"):
        codec.encode(np.full((3, 5), np.nan, np.float32))
    assert codec.decode(codec.encode(np.zeros((0, 5), np.float32)))[0].shape == (0, 1)
