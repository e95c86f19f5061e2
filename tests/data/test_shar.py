"""Audio inside Shar's tars is the audio of single files: in any order, changed on the fly, in workers, and in a training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from asrkd.data.batching import BatchSource, load_batch, with_speeds
from asrkd.data.corpora import load_cuts
from asrkd.data.shar import read_shar, write_shar
from asrkd.targets.label import audio_identity
from asrkd.training.recipe import load_recipe
from asrkd.training.run import train


@pytest.fixture(scope="module")
def folder(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus with a Shar of its part train, in shards of 3."""
    corpus = tmp_path_factory.mktemp("shar") / "corpus"
    shutil.copytree(prepared, corpus)
    for part in ("train", "dev"):
        write_shar(corpus, part, shard_size=3)
    return corpus


def test_any_order_any_speed_is_as_from_files(folder: Path) -> None:
    files, tars = load_cuts(folder, "dev"), read_shar(folder / "shar" / "dev")
    assert list(tars.ids) == list(files.ids) and len(list((folder / "shar" / "dev").glob("*.tar"))) > 1
    backwards = list(reversed(list(tars)))
    expected = load_batch(list(reversed(list(files))), None)
    found = load_batch(backwards, None)
    assert found.texts == expected.texts and torch.equal(found.audio_lengths, expected.audio_lengths)
    torch.testing.assert_close(found.audio, expected.audio, atol=1e-4, rtol=0)  # FLAC of 16 bits
    slow = [list(with_speeds(cuts, (0.9,)))[3] for cuts in (files, tars)]
    torch.testing.assert_close(load_batch([slow[1]], None).audio, load_batch([slow[0]], None).audio, atol=1e-3, rtol=0)
    assert load_batch(backwards[:2], None, sample_rate_hz=8000).audio_lengths[0] == -(-found.audio_lengths[0] // 2)


class _Audio(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __getitem__(self, cuts: list[object]) -> torch.Tensor:
        return load_batch(cuts, None).audio  # type: ignore[arg-type]


def test_workers_read_the_same(folder: Path) -> None:
    batches = list(BatchSource(read_shar(folder / "shar" / "train"), 10.0, seed=4).batches(2))
    loader = DataLoader(_Audio(), sampler=batches, batch_size=None, num_workers=2)  # type: ignore[arg-type,var-annotated]
    for audio, cuts in zip(loader, batches, strict=True):
        assert torch.equal(audio, load_batch(cuts, None).audio)


def test_a_moved_shar_is_the_same_audio(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "shar" / "dev", tmp_path / "elsewhere")
    here, there = list(read_shar(folder / "shar" / "dev")), list(read_shar(tmp_path / "elsewhere"))
    assert [audio_identity(cut) for cut in here] == [audio_identity(cut) for cut in there]
    assert len({audio_identity(cut) for cut in here}) == len(here)


def test_what_does_not_fit_is_named(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder / "shar" / "dev", broken)
    shutil.copy(broken / "recording.000001.tar", broken / "recording.000000.tar")
    with pytest.raises(ValueError, match=r"recording\.000000\.tar: expected the 3 utterances"):
        read_shar(broken)
    (broken / "recording.000000.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ValueError, match=r"recording\.000000\.tar: expected an uncompressed tar"):
        read_shar(broken)
    (broken / "recording.000000.tar").unlink()
    with pytest.raises(ValueError, match="found none"):
        read_shar(broken)


def test_a_training_of_shar_with_workers_is_that_of_files(folder: Path, tmp_path: Path) -> None:
    text = """
name: NAME
workdir: WORKDIR
output: NAME
data: {train: [TRAIN], valid: [CORPUS/cuts_dev.jsonl.gz], max_duration_s: 12, buckets: 12, workers: WORKERS}
tokenizer: {kind: char}
model: {kind: streaming_conformer, d_model: 16, num_layers: 1, num_heads: 2, ffn_dim: 16, subsampling_channels: 4}
losses: [{loss: ctc}]
training: {epochs: 3, average: 1}
"""
    records = {}
    for name, source, workers in (("files", "cuts_train.jsonl.gz", 0), ("tars", "shar/train", 2)):
        recipe = text.replace("NAME", name).replace("WORKDIR", str(tmp_path)).replace("WORKERS", str(workers))
        recipe = recipe.replace("TRAIN", f"{folder}/{source}").replace("CORPUS", str(folder))
        (tmp_path / f"{name}.yaml").write_text(recipe, encoding="utf-8")
        train(load_recipe(tmp_path / f"{name}.yaml"))
        lines = (tmp_path / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
        records[name] = [json.loads(line) for line in lines]
    for files, tars in zip(records["files"], records["tars"], strict=True):
        assert files["kind"] == tars["kind"] and tars.get("ctc", 0) == pytest.approx(files.get("ctc", 0), rel=1e-3)
    logged = [record for record in records["tars"] if record["kind"] == "train"]
    assert logged and all(0 <= r["padding_share"] < 0.10 and 0 <= r["data_wait_share"] <= 1 for r in logged)
    with pytest.raises(ValueError, match="expected a manifest, or a folder with cuts"):
        train(load_recipe(tmp_path / "files.yaml", [f"data.train=[{folder}]", "output=other"]))
