"""Stored targets = live targets within the codec's declared error; labelling resumes, repairs and refuses."""

from __future__ import annotations

import copy
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lhotse import CutSet

from asrkd.data.batching import load_batch, with_speeds
from asrkd.data.corpora import load_cuts
from asrkd.data.text import train_tokenizer
from asrkd.losses.frame import frame_kl
from asrkd.models import package
from asrkd.targets.label import label
from asrkd.targets.store import TargetsError, TargetsStore
from asrkd.teachers.package import PackageTeacher
from asrkd.types import Frames, Hypothesis, SpeechBatch, TeacherTargets, TopK, Vocabulary

LABEL = """
import sys
from asrkd.data.corpora import load_cuts
from asrkd.models import package
from asrkd.targets.label import label
from asrkd.teachers.package import PackageTeacher
model, corpus, folder = sys.argv[1:4]
label(PackageTeacher(package.load(model), nbest=2, beam=3), load_cuts(corpus, "train"), folder, shard_utterances=4,
      progress=lambda done, total, text: print(done, flush=True))
"""


@pytest.fixture(scope="module")
def teacher_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SpeechBrain's Conformer, very small, random weights that are sure of something."""
    torch.manual_seed(0)
    config = {
        "kind": "speechbrain_conformer",
        "d_model": 16,
        "num_layers": 1,
        "num_heads": 2,
        "ffn_dim": 16,
        "decoder_layers": 1,
        "subsampling_channels": 4,
    }
    model = package.build(config, train_tokenizer(["ONE TWO THREE FOUR"], kind="char"))
    with torch.no_grad():
        model.ctc_head.weight.mul_(60)  # type: ignore[union-attr,operator]
    folder = tmp_path_factory.mktemp("teacher") / "package"
    package.save(model, folder, licence="Apache-2.0")
    return folder


def labelled(package_dir: Path, corpus: Path, folder: Path, part: str = "dev") -> TargetsStore:
    teacher = PackageTeacher(package.load(package_dir), nbest=2, beam=3)
    label(teacher, load_cuts(corpus, part), folder, shard_utterances=4)
    return TargetsStore(folder)


def test_stored_equals_live(teacher_package: Path, prepared: Path, tmp_path: Path) -> None:
    store = labelled(teacher_package, prepared, tmp_path / "targets")
    teacher = PackageTeacher(package.load(teacher_package), nbest=2, beam=3)
    batch = load_batch(list(load_cuts(prepared, "dev"))[:5], None)
    live, stored = teacher(batch), store.read(batch.ids)
    assert live.vocabulary.identity == stored.vocabulary.identity
    assert isinstance(live.posteriors, Frames) and isinstance(stored.posteriors, TopK)
    assert stored.posteriors.lengths.tolist() == live.posteriors.lengths.tolist()
    assert stored.posteriors.frame_shift_s == live.posteriors.frame_shift_s
    for row, length in enumerate(live.posteriors.lengths.tolist()):
        dense, ids = live.posteriors.values[row, :length], stored.posteriors.ids[row, :length]
        values = stored.posteriors.log_probs[row, :length]
        kept = torch.isfinite(values)
        expected = dense.gather(-1, ids)
        single = kept.sum(-1) == 1  # frames of blank alone are read back at a stated constant
        error = (values - expected).abs().masked_fill(~kept, 0)[~single]
        assert error.max() <= 2 * store.codec.max_log_error + 1e-3
    assert live.nbest is not None and stored.nbest is not None
    for one, other in zip(live.nbest, stored.nbest, strict=True):
        assert [h.tokens for h in one] == [h.tokens for h in other]
        assert [h.score for h in one] == pytest.approx([h.score for h in other], rel=1e-3)


def test_the_loss_against_stored_targets_is_that_against_live_ones(
    teacher_package: Path, prepared: Path, tmp_path: Path
) -> None:
    """The frame KL of a random student differs by no more than the codec's error on the log-probabilities."""
    teacher = PackageTeacher(package.load(teacher_package))
    label(teacher, load_cuts(prepared, "dev"), tmp_path / "targets", bits=16, max_entries=64, mass=0.9999)
    batch = load_batch(list(load_cuts(prepared, "dev"))[:5], None)
    live, stored = teacher(batch).posteriors, TargetsStore(tmp_path / "targets").read(batch.ids).posteriors
    assert isinstance(live, Frames) and isinstance(stored, TopK)
    logits = torch.randn(live.values.shape, generator=torch.Generator().manual_seed(0))
    losses = [
        frame_kl(logits, live.lengths, t, blank_id=0, student_frame_shift_s=live.frame_shift_s, reduction="mean")
        for t in (live, stored)
    ]
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=5e-3)


class WholeTeacher:
    """Another teacher with everything that can be stored, times and confidences too."""

    sample_rate_hz = 16000
    frame_shift_s = 0.04
    identity = "whole"
    vocabulary = Vocabulary(("<blank>", "a", "b"), 0)

    def __call__(self, batch: SpeechBatch) -> TeacherTargets:
        lengths = batch.audio_lengths // 640
        frames = batch.audio[:, : int(lengths.max()) * 640].reshape(len(batch.ids), -1, 640)
        hidden = Frames(frames[:, :, :5] * 3, lengths, 0.04)
        posteriors = Frames(frames[:, :, :3].mul(20).log_softmax(-1), lengths, 0.04)
        nbest = tuple(
            (Hypothesis((1, 2), "a b", -0.5 * n, (0.04, 0.123), (0.9876, 0.5)), Hypothesis((), "", -9.0))
            for n in lengths.tolist()
        )
        return TeacherTargets(self.vocabulary, posteriors, nbest, {"layer.0": hidden})


@pytest.mark.parametrize("codec", ["topk", "sampled"])
def test_hidden_states_times_and_confidences_are_kept(prepared: Path, tmp_path: Path, codec: str) -> None:
    cuts = list(load_cuts(prepared, "dev"))
    label(WholeTeacher(), CutSet.from_cuts(cuts), tmp_path, codec=codec, shard_utterances=5)
    batch = load_batch(cuts[:4], None)
    live, stored = WholeTeacher()(batch), pickle.loads(pickle.dumps(TargetsStore(tmp_path))).read(batch.ids)
    assert live.nbest == stored.nbest
    one, other = live.hidden["layer.0"], stored.hidden["layer.0"]
    assert one.lengths.tolist() == other.lengths.tolist() and one.frame_shift_s == other.frame_shift_s
    for row, length in enumerate(one.lengths.tolist()):
        torch.testing.assert_close(other.values[row, :length], one.values[row, :length], rtol=1e-3, atol=1e-6)
    assert isinstance(stored.posteriors, TopK)
    assert stored.posteriors.lengths.tolist() == live.posteriors.lengths.tolist()  # type: ignore[union-attr]


def test_audio_made_anew_is_refused_and_a_moved_corpus_is_not(prepared: Path, tmp_path: Path) -> None:
    cuts = list(load_cuts(prepared, "dev"))[:3]
    moved = [copy.deepcopy(cut) for cut in cuts]
    for cut in moved:
        path = tmp_path / Path(cut.recording.sources[0].source).name
        shutil.copy(cut.recording.sources[0].source, path)
        cut.recording.sources[0].source = str(path)
        cut.recording.id = str(path)
    folder = tmp_path / "targets"
    label(WholeTeacher(), CutSet.from_cuts(cuts), folder)
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    label(WholeTeacher(), CutSet.from_cuts(moved), folder)
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    with Path(moved[1].recording.sources[0].source).open("ab") as file:
        file.write(b"more")
    with pytest.raises(TargetsError, match=f"the audio of {moved[1].id} is not what the teacher heard"):
        label(WholeTeacher(), CutSet.from_cuts(moved), folder)


def test_speed_views_are_labelled_as_cuts_of_their_own(prepared: Path, tmp_path: Path) -> None:
    cuts = with_speeds(CutSet.from_cuts(list(load_cuts(prepared, "dev"))[:2]), (1.0, 0.9))
    label(WholeTeacher(), cuts, tmp_path)
    store = TargetsStore(tmp_path)
    assert sorted(store.ids) == sorted(cut.id for cut in cuts) and any(i.endswith("_sp0.9") for i in store.ids)
    for cut in cuts:
        posteriors = store.read([cut.id]).posteriors
        assert isinstance(posteriors, TopK)
        assert posteriors.lengths.item() == pytest.approx(cut.duration / 0.04, abs=1)


def test_killed_labelling_continues_to_the_same_store(teacher_package: Path, prepared: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LABEL, str(teacher_package), str(prepared)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    run = subprocess.Popen([*command, str(tmp_path / "broken")], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    for line in run.stdout:
        if int(line) >= 8:
            break
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "broken").glob("shard-*.json")}
    subprocess.run([*command, str(tmp_path / "broken")], check=True, capture_output=True)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "broken" / path.name).read_bytes(), path.name
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "broken").glob("shard-*.json")}
    assert before and all(after[name] == stamp for name, stamp in before.items())


def test_a_changed_shard_is_named_and_made_anew_alone(teacher_package: Path, prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "targets"
    labelled(teacher_package, prepared, folder)
    whole = {p.name: p.read_bytes() for p in folder.iterdir()}
    damaged = bytearray((folder / "shard-00001.bin").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (folder / "shard-00001.bin").write_bytes(damaged)
    with pytest.raises(TargetsError, match=r"shard-00001\.bin: wrong SHA-256"):
        TargetsStore(folder)
    untouched = (folder / "shard-00000.bin").stat().st_mtime_ns
    labelled(teacher_package, prepared, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == whole
    assert (folder / "shard-00000.bin").stat().st_mtime_ns == untouched


def test_another_teacher_corpus_or_codec_is_refused(teacher_package: Path, prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "targets"
    labelled(teacher_package, prepared, folder)
    with pytest.raises(TargetsError, match=r"holds other targets \(utterances differ\)"):
        labelled(teacher_package, prepared, folder, part="train")
    other = PackageTeacher(package.load(teacher_package), nbest=1, beam=3)
    with pytest.raises(TargetsError, match=r"holds other targets \(teacher, codec differ\)"):
        label(other, load_cuts(prepared, "dev"), folder, bits=16, shard_utterances=4)
    with pytest.raises(TargetsError, match="no targets of nobody"):
        TargetsStore(folder).read(["nobody"])
    with pytest.raises(TargetsError, match="no targets here"):
        TargetsStore(tmp_path)


def test_a_full_disk_leaves_whole_shards_and_one_line(teacher_package: Path, prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "targets"
    store = labelled(teacher_package, prepared, folder)
    (folder / "shard-00001.bin").unlink()
    kept = (folder / "shard-00000.bin").read_bytes()
    limit = 200  # bytes: no shard fits any more

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    code = LABEL.replace('"train"', '"dev"')
    command = [sys.executable, "-c", code, str(teacher_package), str(prepared), str(folder)]
    answer = subprocess.run(command, preexec_fn=full, capture_output=True, text=True, check=False)
    assert answer.returncode != 0
    assert "shard-00001" in answer.stderr.splitlines()[-1]
    assert (folder / "shard-00000.bin").read_bytes() == kept
    assert not list(folder.glob("*.part*")) and store.ids
