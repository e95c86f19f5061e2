"""Two gloo ranks label together; one is killed; the next start takes up what it left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from asrkd.targets.store import TargetsStore

RANK = """
import sys, time
import torch
from asrkd.data.corpora import load_cuts
from asrkd.targets.hidden import HiddenCodec
from asrkd.targets.label import label
from asrkd.types import Frames, TeacherTargets, Vocabulary

class Teacher:
    sample_rate_hz, frame_shift_s, identity = 16000, 0.04, "energies"
    vocabulary = Vocabulary(("<blank>", "a", "b"), 0)
    def __call__(self, batch):
        print(*batch.ids, flush=True)
        time.sleep(float(sys.argv[3]))
        lengths = batch.audio_lengths // 640
        frames = batch.audio[:, : int(lengths.max()) * 640].reshape(len(batch.ids), -1, 640)[:, :, :3]
        hidden = {"layer.0": Frames(frames, lengths, 0.04)} if sys.argv[4] == "mvq" else {}
        return TeacherTargets(self.vocabulary, Frames(frames.mul(20).log_softmax(-1), lengths, 0.04), hidden=hidden)

hidden = HiddenCodec(sys.argv[4], num_codebooks=2, codebook_size=16, fit_states=200)
try:
    label(Teacher(), load_cuts(sys.argv[1], "train"), sys.argv[2], hidden=hidden, shard_utterances=3, max_duration_s=60)
except ValueError as error:
    sys.exit(str(error))
"""


def start(corpus: Path, folder: Path, ranks: int, pause_s: float, hidden: str = "fp16") -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(corpus), str(folder), str(pause_s), hidden],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def test_a_killed_rank_loses_only_its_shard(prepared: Path, tmp_path: Path) -> None:
    one = start(prepared, tmp_path / "alone", 1, 0.0)[0]
    _, problem = one.communicate(timeout=120)
    assert one.returncode == 0, problem

    first = start(prepared, tmp_path / "together", 2, 0.1)
    assert first[1].stdout is not None
    heard_before = [first[1].stdout.readline().split(), first[1].stdout.readline().split()]
    os.kill(first[1].pid, signal.SIGKILL)
    heard_by_0, problem = first[0].communicate(timeout=120)
    first[1].communicate()
    assert first[0].returncode != 0
    assert "another process ended before its shards were made" in problem.splitlines()[-1]
    assert not set(heard_by_0.split()) & {i for ids in heard_before for i in ids}

    made_before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "together").glob("shard-*.json")}
    second = start(prepared, tmp_path / "together", 2, 0.0)
    heard = []
    for process in second:
        out, problem = process.communicate(timeout=120)
        assert process.returncode == 0, problem
        heard.append(out.split())
    assert heard[0] and heard[1] and not set(heard[0]) & set(heard[1])  # both work, on different utterances
    for path in (tmp_path / "alone").iterdir():
        assert path.read_bytes() == (tmp_path / "together" / path.name).read_bytes(), path.name
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "together").glob("shard-*.json")}
    assert made_before and all(after[name] == stamp for name, stamp in made_before.items())
    assert len(TargetsStore(tmp_path / "together")) > 10


def test_one_rank_fits_quantisers_for_all(prepared: Path, tmp_path: Path) -> None:
    for ranks, name in ((1, "alone"), (2, "together")):
        for process in start(prepared, tmp_path / name, ranks, 0.0, "mvq"):
            _, problem = process.communicate(timeout=120)
            assert process.returncode == 0, problem
    for path in (tmp_path / "alone").iterdir():
        assert path.read_bytes() == (tmp_path / "together" / path.name).read_bytes(), path.name
    assert TargetsStore(tmp_path / "together").quantisers is not None
