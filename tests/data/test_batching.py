"""Batches: deterministic, resumable, fair to every process, little padding; reading, caching, speeds, bad audio."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet
from lhotse.testing.dummies import dummy_cut
from torch.utils.data import DataLoader

from asrkd.cli.recipes import recipes_dir
from asrkd.data.audio import read_audio
from asrkd.data.batching import AudioCache, BatchSource, load_batch, with_speeds
from asrkd.data.corpora import load_cuts
from asrkd.data.features import Fbank
from asrkd.data.librispeech import prepare_librispeech
from asrkd.data.text import train_tokenizer
from asrkd.training.recipe import load_recipe


def _cuts(durations: list[float]) -> CutSet:
    return CutSet.from_cuts(dummy_cut(i, duration=duration) for i, duration in enumerate(durations))


def _librispeech_like(count: int) -> CutSet:
    return _cuts(np.random.default_rng(0).uniform(1.5, 17.0, count).round(3).tolist())


def _ids(batches: object) -> list[list[str]]:
    return [[cut.id for cut in batch] for batch in batches]  # type: ignore[attr-defined]


def test_same_for_seed_and_epoch_and_different_for_others() -> None:
    cuts = _librispeech_like(200)
    first = _ids(BatchSource(cuts, 60, seed=1).batches(4))
    assert _ids(BatchSource(cuts, 60, seed=1).batches(4)) == first
    assert _ids(BatchSource(cuts, 60, seed=1).batches(5)) != first
    assert _ids(BatchSource(cuts, 60, seed=2).batches(4)) != first
    assert sorted(itertools.chain(*first)) == sorted(cut.id for cut in cuts)


def test_resumes_at_any_position() -> None:
    source = BatchSource(_librispeech_like(100), 60)
    whole = _ids(source.batches(2))
    for start in range(len(whole) + 1):
        assert _ids(source.batches(2, start)) == whole[start:]


@pytest.mark.parametrize("max_duration_s", [60.0, 120.0, 300.0])
def test_padding_is_small_and_duration_kept(max_duration_s: float) -> None:
    source = BatchSource(_librispeech_like(2000), max_duration_s)
    padded = [len(batch) * max(cut.duration for cut in batch) for batch in source.batches(0)]
    assert max(padded) <= max_duration_s
    assert 1 - sum(cut.duration for cut in source.cuts) / sum(padded) < 0.10
    assert sum(padded) / len(padded) > 0.8 * max_duration_s  # batches are full


@pytest.mark.parametrize("name", ["teacher", "student_alone"])
def test_padding_is_small_in_the_demo(name: str, prepared: Path) -> None:
    """The demo's batches over as many utterances, with the lengths of the small corpus drawn anew."""
    settings = load_recipe(recipes_dir() / "spoken_numbers" / f"{name}.yaml").data
    draw = np.random.default_rng(0)
    lengths = np.array([cut.duration for cut in load_cuts(prepared, "train")])
    like = draw.choice(lengths, 3000) * draw.uniform(0.9, 1.1, 3000)
    source = BatchSource(_cuts(like.round(3).tolist()), settings.max_duration_s, buckets=settings.buckets)
    padded = sum(len(batch) * max(cut.duration for cut in batch) for batch in source.batches(0))
    assert 1 - like.sum() / padded < 0.10


def test_an_utterance_longer_than_a_batch_stands_alone() -> None:
    batches = _ids(BatchSource(_cuts([1.0, 50.0, 1.0, 1.0]), 10.0).batches(0))
    assert ["dummy-mono-cut-0001"] in batches
    assert len(batches) == 2


@settings(max_examples=60, deadline=None)
@given(
    durations=st.lists(st.floats(0.5, 20.0), min_size=5, max_size=40),
    world_size=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_ranks_share_everything_in_equal_numbers(durations: list[float], world_size: int, epoch: int) -> None:
    cuts = _cuts(durations)
    ranks = [
        _ids(BatchSource(cuts, 30.0, rank=rank, world_size=world_size).batches(epoch)) for rank in range(world_size)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    assert all(rank_batch for rank in ranks for rank_batch in rank)
    together = sorted(itertools.chain(*itertools.chain(*ranks)))
    assert together == sorted(cut.id for cut in cuts)
    assert BatchSource(cuts, 30.0, rank=0, world_size=world_size).count(epoch) == len(ranks[0])


def test_ranks_interleave_the_batches_of_one_process() -> None:
    cuts = _librispeech_like(100)
    one = _ids(BatchSource(cuts, 60).batches(0))
    two = [_ids(BatchSource(cuts, 60, rank=rank, world_size=2).batches(0)) for rank in (0, 1)]
    whole_rounds = len(one) // 2
    assert two[0][:whole_rounds] == one[0 : 2 * whole_rounds : 2]
    assert two[1][:whole_rounds] == one[1 : 2 * whole_rounds : 2]


def test_wrong_arguments() -> None:
    cuts = _cuts([1.0])
    for arguments, message in (
        ({"max_duration_s": 0}, "max_duration_s"),
        ({"max_duration_s": 1, "buckets": 0}, "buckets"),
        ({"max_duration_s": 1, "rank": 2, "world_size": 2}, "rank"),
        ({"max_duration_s": 1, "rank": 0, "world_size": 2}, "one for each process"),
    ):
        with pytest.raises(ValueError, match=message):
            BatchSource(cuts, **arguments)  # type: ignore[arg-type]


def test_load_batch(prepared: Path) -> None:
    cuts = list(load_cuts(prepared, "dev"))[:3]
    tokenizer = train_tokenizer(cut.supervisions[0].text for cut in load_cuts(prepared, "train"))
    batch = load_batch(cuts, tokenizer)
    assert batch.ids == tuple(cut.id for cut in cuts)
    assert batch.tokens is not None
    assert batch.token_lengths is not None
    for row, cut in enumerate(cuts):
        expected, _ = soundfile.read(cut.recording.sources[0].source, dtype="float32")
        length = int(batch.audio_lengths[row])
        np.testing.assert_allclose(batch.audio[row, :length].numpy(), expected, atol=1e-6)
        assert not batch.audio[row, length:].any()
        assert tokenizer.decode(batch.tokens[row, : batch.token_lengths[row]].tolist()) == cut.supervisions[0].text
        assert not batch.tokens[row, batch.token_lengths[row] :].any()
    assert load_batch(cuts, None).tokens is None
    assert load_batch(cuts, None, sample_rate_hz=8000).audio.shape[1] == -(-batch.audio.shape[1] // 2)


def test_cache_changes_nothing_and_stops_when_full(prepared: Path) -> None:
    cuts = list(with_speeds(load_cuts(prepared, "dev"), (1.0, 0.9)))
    cache = AudioCache(200_000)
    first = load_batch(cuts, None, cache=cache)
    assert 0 < len(cache) < len(cuts)
    assert cache.used_bytes <= 200_000
    again = load_batch(cuts, None, cache=cache)
    fresh = load_batch(cuts, None, cache=AudioCache(0))
    assert torch.equal(first.audio, again.audio)
    assert torch.equal(first.audio, fresh.audio)
    assert torch.equal(first.audio, load_batch(cuts, None).audio)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 44100])
def test_training_hears_files_of_other_rates_as_transcribe_does(prepared: Path, tmp_path: Path, rate_hz: int) -> None:
    """Also in the bands above a low rate, where a filter's leaks and a rounding would be all there is."""
    cut = next(iter(load_cuts(prepared, "dev")))
    samples, _ = read_audio(cut.recording.sources[0].source, rate_hz)
    folder = tmp_path / "in" / "dev" / "1" / "1"
    folder.mkdir(parents=True)
    soundfile.write(folder / "1-1-0.flac", samples, rate_hz, subtype="PCM_16")
    (folder / "1-1.trans.txt").write_text("1-1-0 ONE\n")
    prepare_librispeech(tmp_path / "in", tmp_path / "out")
    expected = torch.from_numpy(read_audio(folder / "1-1-0.flac", 16000)[0])
    cache = AudioCache(2**20)
    fbank = Fbank(16000, 80)
    for again in range(2):
        batch = load_batch(load_cuts(tmp_path / "out", "dev"), None, cache=cache)
        assert len(cache) == 1
        length = min(batch.audio.shape[1], len(expected))
        assert length > len(expected) - 3
        torch.testing.assert_close(batch.audio[0, :length], expected[:length], atol=2e-6, rtol=0)
        heard = fbank(batch.audio[:, :length], torch.tensor([length])).values[0]
        here = fbank(expected[None, :length], torch.tensor([length])).values[0]
        assert (heard.mean(0) - here.mean(0)).abs().max() < 0.5, f"again: {again}"


def test_speeds(prepared: Path) -> None:
    cuts = load_cuts(prepared, "dev")
    fast = with_speeds(cuts, (0.9, 1.0, 1.1))
    assert len(fast) == 3 * len(cuts)
    some = next(iter(cuts))
    assert {f"{some.id}_sp0.9", some.id, f"{some.id}_sp1.1"} <= set(fast.ids)
    slow = fast[f"{some.id}_sp0.9"]
    assert slow.duration == pytest.approx(some.duration / 0.9, abs=1e-3)
    assert load_batch([slow], None).audio_lengths.item() == pytest.approx(some.num_samples / 0.9, abs=2)
    with pytest.raises(ValueError, match="different positive"):
        with_speeds(cuts, (1.0, 1.0))


class _Batches(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __getitem__(self, cuts: CutSet) -> torch.Tensor:
        return load_batch(cuts, None).audio


def test_works_in_loader_workers(prepared: Path) -> None:
    source = BatchSource(load_cuts(prepared, "dev"), 10.0)
    batches = list(source.batches(0))
    loader = DataLoader(_Batches(), sampler=batches, batch_size=None, num_workers=2)  # type: ignore[arg-type,var-annotated]
    for audio, cuts in zip(loader, batches, strict=True):
        assert torch.equal(audio, load_batch(cuts, None).audio)


def test_bad_audio_is_one_line_with_its_name(prepared: Path, tmp_path: Path) -> None:
    cut = next(iter(load_cuts(prepared, "dev")))
    for name, content in (("gone", None), ("empty", b""), ("text", b"hello"), ("short", "half")):
        path = tmp_path / f"{name}.flac"
        if content is not None:
            original = Path(cut.recording.sources[0].source).read_bytes()
            path.write_bytes(original[: len(original) // 2] if content == "half" else content)  # type: ignore[arg-type]
        bad = CutSet.from_dicts([cut.to_dict()])[cut.id]
        bad.recording.sources[0].source = str(path)
        with pytest.raises((ValueError, OSError), match=name) as caught:
            load_batch([bad], None)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="at least one"):
        load_batch([], None)
