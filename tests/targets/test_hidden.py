"""Hidden states as codes of a quantiser that labelling fits: what is stored, what it loses, how it resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lhotse import CutSet

from asrkd.data.batching import load_batch
from asrkd.data.corpora import load_cuts
from asrkd.losses.mvq import mvq
from asrkd.targets.hidden import QUANTISERS, HiddenCodec, read_quantisers
from asrkd.targets.label import label
from asrkd.targets.shar import SharTargets, write_targets_shar
from asrkd.targets.store import TargetsError, TargetsStore
from asrkd.types import Frames, SpeechBatch, TeacherTargets, Vocabulary

CODEC = HiddenCodec("mvq", num_codebooks=3, codebook_size=32, fit_states=600)


class Deep:
    """Two hidden layers made of the samples, one of them at half the rate."""

    identity, sample_rate_hz, frame_shift_s = "deep", 16000, 0.04
    vocabulary = Vocabulary(("<blank>", "a", "b"), 0)

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __call__(self, batch: SpeechBatch) -> TeacherTargets:
        self.heard += batch.ids
        lengths = batch.audio_lengths // 640
        frames = batch.audio[:, : int(lengths.max()) * 640].reshape(len(batch.ids), -1, 640)
        posteriors = Frames(frames[:, :, :3].mul(20).log_softmax(-1), lengths, 0.04)
        hidden = {
            "layer.1": Frames(frames[:, :, :6], lengths, 0.04),
            "layer.2": Frames(frames[:, ::2, ::64], (lengths + 1) // 2, 0.08),
        }
        return TeacherTargets(self.vocabulary, posteriors, None, hidden)


@pytest.fixture(scope="module")
def cuts(prepared: Path) -> CutSet:
    return CutSet.from_cuts(list(load_cuts(prepared, "dev"))[:8])


def made(cuts: CutSet, folder: Path, codec: HiddenCodec = CODEC) -> list[str]:
    teacher = Deep()
    label(teacher, cuts, folder, hidden=codec, shard_utterances=3)
    return teacher.heard


def test_codes_stand_for_the_states(cuts: CutSet, tmp_path: Path) -> None:
    made(cuts, tmp_path)
    store = TargetsStore(tmp_path)
    assert store.quantisers is not None and set(store.quantisers.layers) == {"layer.1", "layer.2"}
    ids = [cut.id for cut in cuts]
    stored = store.read(ids)
    live = Deep()(load_batch(list(cuts), None))
    for name, quantiser in store.quantisers.layers.items():
        states, codes = live.hidden[name], stored.hidden[name]
        assert codes.values.dtype == torch.uint8 and codes.values.shape[2] == 3
        assert codes.frame_shift_s == states.frame_shift_s and torch.equal(codes.lengths, states.lengths)
        lost, whole = 0.0, 0.0
        for row, count in enumerate(codes.lengths.tolist()):
            found = codes.values[row, :count].long()
            torch.testing.assert_close(found, quantiser.encode(states.values[row, :count]))
            lost += float((quantiser.decode(found) - states.values[row, :count]).square().sum())
            whole += float((states.values[row, :count] - quantiser.mean).square().sum())
        assert 0 < lost / whole < 0.5  # 15 bits for noise-like samples
        # Declared is what it loses on states that it was not fitted to; most of these it was.
        assert 0.5 < store.quantisers.errors[name] / (lost / whole) < 10
    summary = store.summary()
    frames = sum(int(live.hidden[name].lengths.sum()) for name in live.hidden)
    assert summary.hidden_bytes == 3 * frames


def test_the_loss_takes_stored_codes(cuts: CutSet, tmp_path: Path) -> None:
    made(cuts, tmp_path)
    store = TargetsStore(tmp_path)
    assert store.quantisers is not None
    ids = [cut.id for cut in cuts][:2]
    codes = store.read(ids).hidden["layer.1"]
    states = Deep()(load_batch(list(cuts)[:2], None)).hidden["layer.1"]
    own = Frames(store.quantisers.layers["layer.1"].encode(states.values).float(), states.lengths, 0.04)
    logits = torch.randn(2, codes.values.shape[1], 3 * 32, generator=torch.Generator().manual_seed(0))
    losses = [mvq(logits, codes.lengths, one, student_frame_shift_s=0.04) for one in (codes, own)]
    torch.testing.assert_close(*losses)
    assert float(losses[0]) > 0


def test_what_was_fitted_is_kept_and_a_damaged_one_is_made_anew(cuts: CutSet, tmp_path: Path) -> None:
    made(cuts, tmp_path)
    whole = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert made(cuts, tmp_path) == []  # nothing to be heard again
    (tmp_path / "shard-00001.bin").unlink()
    assert set(made(cuts, tmp_path)) == set(sorted(c.id for c in cuts)[3:6])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == whole
    (tmp_path / QUANTISERS).write_bytes(whole[QUANTISERS][:-8])
    assert read_quantisers(tmp_path) is None
    with pytest.raises(TargetsError, match="quantisers are not those that made the codes"):
        TargetsStore(tmp_path)
    made(cuts, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == whole
    # Codes of other quantisers are no use: all is made anew.
    made(cuts, tmp_path / "other", HiddenCodec("mvq", num_codebooks=3, codebook_size=32, fit_states=600, seed=1))
    (tmp_path / QUANTISERS).write_bytes((tmp_path / "other" / QUANTISERS).read_bytes())
    assert set(made(cuts, tmp_path)) == {c.id for c in cuts}
    assert TargetsStore(tmp_path).read([next(iter(cuts)).id]).hidden


def test_shar_carries_codes(cuts: CutSet, tmp_path: Path) -> None:
    made(cuts, tmp_path / "targets")
    store = TargetsStore(tmp_path / "targets")
    folder = write_targets_shar(cuts, store, tmp_path / "shar")
    read = list(CutSet.from_shar(in_dir=folder))
    ours, theirs = SharTargets(folder).read_cuts(read), store.read([c.id for c in cuts])
    assert torch.equal(ours.hidden["layer.2"].values, theirs.hidden["layer.2"].values)


def test_what_cannot_be_is_refused(cuts: CutSet, tmp_path: Path) -> None:
    made(cuts, tmp_path / "codes")
    for codec in (HiddenCodec("mvq", num_codebooks=2, codebook_size=32, fit_states=600), HiddenCodec()):
        with pytest.raises(TargetsError, match=r"holds other targets \(hidden differs\)"):
            made(cuts, tmp_path / "codes", codec)
    made(cuts, tmp_path / "states", HiddenCodec())
    with pytest.raises(TargetsError, match=r"holds other targets \(hidden differs\)"):
        made(cuts, tmp_path / "states")
    with pytest.raises(TargetsError, match="expected at least 256 frames to fit a quantiser to"):
        made(CutSet.from_cuts(list(cuts)[:1]), tmp_path / "few", HiddenCodec("mvq"))
    with pytest.raises(ValueError, match=r"hidden\.codebook_size: expected 2 to 256, found 300"):
        HiddenCodec("mvq", codebook_size=300)

    class Shallow(Deep):
        def __call__(self, batch: SpeechBatch) -> TeacherTargets:
            return TeacherTargets(self.vocabulary, super().__call__(batch).posteriors)

    with pytest.raises(TargetsError, match="a teacher with hidden states"):
        label(Shallow(), cuts, tmp_path / "none", hidden=CODEC)
