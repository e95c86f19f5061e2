"""Targets inside Shar tars equal those of the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import CutSet

from asrkd.data.batching import load_batch
from asrkd.data.corpora import load_cuts
from asrkd.targets.label import label
from asrkd.targets.shar import SharTargets, attach_targets, write_targets_shar
from asrkd.targets.store import TargetsError, TargetsStore
from asrkd.types import Frames, Hypothesis, SpeechBatch, TeacherTargets, TopK, Vocabulary


class Whole:
    """Posteriors, lists and hidden states made of the samples."""

    identity, sample_rate_hz, frame_shift_s = "whole", 16000, 0.04
    vocabulary = Vocabulary(("<blank>", "a", "b"), 0)

    def __call__(self, batch: SpeechBatch) -> TeacherTargets:
        lengths = batch.audio_lengths // 640
        frames = batch.audio[:, : int(lengths.max()) * 640].reshape(len(batch.ids), -1, 640)
        nbest = tuple((Hypothesis((1,), text, -1.0, (0.04,), (0.5,)),) for text in batch.texts)
        posteriors = Frames(frames[:, :, :3].mul(20).log_softmax(-1), lengths, 0.04)
        return TeacherTargets(self.vocabulary, posteriors, nbest, {"layer.1": Frames(frames[:, :, :4], lengths, 0.04)})


def test_what_the_tars_hold_is_what_the_store_holds(prepared: Path, tmp_path: Path) -> None:
    cuts = CutSet.from_cuts(list(load_cuts(prepared, "dev"))[:5])
    label(Whole(), cuts, tmp_path / "targets")
    store = TargetsStore(tmp_path / "targets")
    folder = write_targets_shar(cuts, store, tmp_path / "shar", shard_size=2)
    assert len(list(folder.glob("targets.*.tar"))) == 3
    read = list(CutSet.from_shar(in_dir=folder))
    assert [c.id for c in read] == [c.id for c in cuts]
    ours, theirs = SharTargets(folder).read_cuts(read), store.read([c.id for c in cuts])
    assert ours.nbest == theirs.nbest
    assert isinstance(ours.posteriors, TopK) and isinstance(theirs.posteriors, TopK)
    assert torch.equal(ours.posteriors.ids, theirs.posteriors.ids)
    assert torch.equal(ours.posteriors.log_probs, theirs.posteriors.log_probs)
    assert torch.equal(ours.hidden["layer.1"].values, theirs.hidden["layer.1"].values)
    audio, original = load_batch(read, None).audio, load_batch(list(cuts), None).audio
    torch.testing.assert_close(audio, original, atol=1e-4, rtol=0)
    write_targets_shar(cuts, store, folder)  # again, whole
    assert len(list(folder.glob("targets.*.tar"))) == 1


def test_what_is_missing_or_damaged_is_named(prepared: Path, tmp_path: Path) -> None:
    cuts = CutSet.from_cuts(list(load_cuts(prepared, "dev"))[:2])
    label(Whole(), cuts, tmp_path / "targets")
    store = TargetsStore(tmp_path / "targets")
    folder = write_targets_shar(cuts, store, tmp_path / "shar")
    with pytest.raises(TargetsError, match="carries no targets"):
        SharTargets(folder).read_cuts(list(cuts))
    carried = next(iter(attach_targets(cuts, store)))
    bytes_ = carried.load_custom("targets").copy()
    bytes_[len(bytes_) // 2] ^= np.uint8(1)
    with pytest.raises(TargetsError, match=f"utterance {carried.id}: its targets in the Shar are damaged"):
        SharTargets(folder).read_cuts([carried.attach_tensor("targets", bytes_)])
    with pytest.raises(TargetsError, match="written without targets"):
        SharTargets(tmp_path / "other")
    more = CutSet.from_cuts(list(load_cuts(prepared, "dev"))[:3])
    with pytest.raises(TargetsError, match="no targets of"):
        write_targets_shar(more, store, folder)
    assert len(list(CutSet.from_shar(in_dir=folder))) == 2  # what was there stays
