"""Let a teacher hear a corpus once and keep what it says."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from lhotse import CutSet

from asrkd.data.batching import load_batch
from asrkd.data.files import write_atomically
from asrkd.targets.codec import TopKCodec
from asrkd.targets.store import HEADER, SCHEMA_VERSION, Entry, TargetsError, read_header, read_shard, write_shard
from asrkd.types import Frames, SpeechBatch, TeacherTargets, Vocabulary

Progress = Callable[[int, int, str], None]
_POLL_S = 0.2


class LabellingTeacher(Protocol):
    """What labelling needs of a teacher (see ``asrkd.teachers.base``)."""

    identity: str
    vocabulary: Vocabulary
    sample_rate_hz: int
    frame_shift_s: float

    def __call__(self, batch: SpeechBatch) -> TeacherTargets: ...


def label(
    teacher: LabellingTeacher,
    cuts: CutSet,
    folder: str | Path,
    *,
    mass: float = 0.999,
    max_entries: int = 16,
    bits: int = 8,
    max_duration_s: float = 240.0,
    shard_utterances: int = 256,
    progress: Progress = lambda done, total, text: None,
) -> None:
    """Label every cut; killed at any moment, the same call continues with the shard it was in.

    Shards that are there and whole are kept; one that is cut short or changed is made anew, alone. Under ``torchrun`` rank
    r of W makes every W-th missing shard, and all wait until everything is there.

    Args:
        teacher: Who is asked.
        cuts: What it hears.
        folder: Of the store.
        mass: Of :class:`TopKCodec`.
        max_entries: Of :class:`TopKCodec`.
        bits: Of :class:`TopKCodec`.
        max_duration_s: Longest batch, padding counted.
        shard_utterances: Utterances in a shard.
        progress: Called with utterances done, their total and the speed.

    Raises:
        TargetsError: If the folder holds targets of another teacher, codec or corpus; it says what differs.
        OSError: If something cannot be written; whole shards stay.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    by_id = {cut.id: cut for cut in cuts}
    ids = sorted(by_id)
    shards = [ids[i : i + shard_utterances] for i in range(0, len(ids), shard_utterances)]
    codec = TopKCodec(len(teacher.vocabulary), teacher.vocabulary.blank_id, mass, max_entries, bits)
    _claim(folder, _header(teacher, codec, shards))
    missing = [n for n in range(len(shards)) if not _is_whole(folder, n, shards[n])]
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    done = sum(len(shards[n]) for n in range(len(shards)) if n not in missing)
    progress(done, len(ids), "")
    started, heard_s = time.monotonic(), 0.0
    for number in missing[rank::ranks]:
        entries: dict[str, Entry] = {}
        for batch_ids in _batches([by_id[i] for i in shards[number]], max_duration_s):
            batch = load_batch([by_id[i] for i in batch_ids], None, sample_rate_hz=teacher.sample_rate_hz)
            entries |= _entries(batch, teacher(batch), codec)
            heard_s += float(batch.audio_lengths.sum()) / batch.sample_rate_hz
            speed = heard_s / max(1e-6, time.monotonic() - started)
            progress(done + len(entries), len(ids), f"{speed:.0f}x real time")
        write_shard(folder, number, {i: entries[i] for i in shards[number]})
        done += len(entries)
    while ranks > 1 and not all(_is_there(folder, n) for n in range(len(shards))):
        time.sleep(_POLL_S)


def _header(teacher: LabellingTeacher, codec: TopKCodec, shards: Sequence[Sequence[str]]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "teacher": teacher.identity,
        "tokens": list(teacher.vocabulary.tokens),
        "blank_id": teacher.vocabulary.blank_id,
        "frame_shift_s": teacher.frame_shift_s,
        "sample_rate_hz": teacher.sample_rate_hz,
        "codec": {"mass": codec.mass, "max_entries": codec.max_entries, "bits": codec.bits},
        "shards": [hashlib.sha256("\n".join(ids).encode()).hexdigest() for ids in shards],
    }


def _claim(folder: Path, header: dict[str, Any]) -> None:
    """Write the header, or refuse where another one is."""
    if not (folder / HEADER).exists():
        write_atomically(folder / HEADER, json.dumps(header, ensure_ascii=False).encode())
        return
    found = read_header(folder)
    differing = [key for key in header if found.get(key) != header[key]]
    if differing:
        names = {"shards": "utterances", "tokens": "vocabulary"}
        what = ", ".join(names.get(key, key) for key in differing)
        raise TargetsError(f"{folder}: holds other targets ({what} differ); choose another folder or remove this one")


def _is_whole(folder: Path, number: int, ids: Sequence[str]) -> bool:
    try:
        return list(read_shard(folder, number)) == list(ids)
    except TargetsError:
        return False


def _is_there(folder: Path, number: int) -> bool:
    try:
        read_shard(folder, number)
    except TargetsError:
        return False
    return True


def _batches(cuts: Sequence[Any], max_duration_s: float) -> Iterator[list[str]]:
    """Ids in batches of like length, longest first, whose padded audio stays within ``max_duration_s``."""
    batch: list[Any] = []
    for cut in sorted(cuts, key=lambda c: (-c.duration, c.id)):
        if batch and batch[0].duration * (len(batch) + 1) > max_duration_s:
            yield [c.id for c in batch]
            batch = []
        batch.append(cut)
    if batch:
        yield [c.id for c in batch]


def _entries(batch: SpeechBatch, targets: TeacherTargets, codec: TopKCodec) -> dict[str, Entry]:
    posteriors = targets.posteriors
    if not isinstance(posteriors, Frames):
        raise TargetsError("targets: expected dense posteriors of the teacher")
    log_probs = posteriors.values.float().cpu().numpy()
    lengths = posteriors.lengths.tolist()
    entries = {}
    for row, identity in enumerate(batch.ids):
        samples = batch.audio[row, : int(batch.audio_lengths[row])].contiguous()
        heard = hashlib.sha256(samples.view(torch.uint8).numpy().tobytes()).hexdigest()
        nbest = None if targets.nbest is None else targets.nbest[row]
        entries[identity] = Entry(codec.encode(log_probs[row, : lengths[row]]), lengths[row], heard, nbest)
    return entries
