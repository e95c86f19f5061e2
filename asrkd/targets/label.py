"""Let a teacher hear a corpus once and keep what it says."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from lhotse import CutSet
from lhotse.cut import Cut
from numpy.typing import NDArray

from asrkd.data.batching import load_batch
from asrkd.data.files import write_atomically
from asrkd.targets.codec import SampledCodec, TopKCodec, make_codec
from asrkd.targets.hidden import (
    HiddenCodec,
    Layer,
    Quantisers,
    fit_quantisers,
    pack_hidden,
    read_quantisers,
    some_states,
)
from asrkd.targets.ranks import join_ranks
from asrkd.targets.store import (
    HEADER,
    SCHEMA_VERSION,
    Entry,
    TargetsError,
    pack_nbest,
    read_header,
    read_shard,
    write_shard,
)
from asrkd.types import Frames, SpeechBatch, TeacherTargets, Vocabulary

Progress = Callable[[int, int, str], None]
_PATIENCE = datetime.timedelta(days=7)  # ranks wait for each other as long as labelling may take


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
    codec: str = "topk",
    mass: float = 0.999,
    max_entries: int = 16,
    bits: int = 8,
    samples: int = 32,
    hidden: HiddenCodec | None = None,
    max_duration_s: float = 240.0,
    shard_utterances: int = 256,
    progress: Progress = lambda done, total, text: None,
) -> None:
    """Label every cut; killed at any moment, the same call continues with the shard it was in.

    Shards that are there and whole are kept; one that is cut short or changed is made anew, alone. Under ``torchrun`` the
    missing shards are dealt out to the ranks, which wait for each other at the end; what a lost rank did not make is dealt
    out again by the next start. Speed views (``…_sp0.9``) are cuts of their own.

    Where hidden states are kept as codes, the first rank fits the quantisers to what the teacher says of some of the cuts before
    anything is labelled, and keeps them in the folder.

    Args:
        teacher: Who is asked.
        cuts: What it hears.
        folder: Of the store.
        codec: ``topk`` or ``sampled``.
        mass: Of :class:`TopKCodec`.
        max_entries: Of :class:`TopKCodec`.
        bits: Of :class:`TopKCodec`.
        samples: Of :class:`SampledCodec`.
        hidden: How the teacher's hidden states are kept, if it gives any; ``None``: as float16.
        max_duration_s: Longest batch, padding counted.
        shard_utterances: Utterances in a shard.
        progress: Called with utterances done, their total, and speed and size.

    Raises:
        TargetsError: If the folder holds targets of another teacher, codec or corpus; it says what differs.
        OSError: If something cannot be written; whole shards stay.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    by_id = {cut.id: cut for cut in cuts}
    ids = sorted(by_id)
    shards = [ids[i : i + shard_utterances] for i in range(0, len(ids), shard_utterances)]
    options = {"mass": mass, "max_entries": max_entries, "bits": bits} if codec == "topk" else {"samples": samples}
    made = make_codec({"kind": codec, **options}, len(teacher.vocabulary), teacher.vocabulary.blank_id)
    hidden = hidden or HiddenCodec()
    header = _header(teacher, made, hidden, shards)

    def prepare() -> list[int]:
        _claim(folder, header)
        quantisers = _fitted(teacher, by_id, folder, hidden, max_duration_s, progress) if hidden.kind == "mvq" else None
        return _missing(folder, shards, by_id, quantisers)

    with _ranks() as (rank, ranks, group):
        missing = _agreed(prepare, rank, group)
        quantisers = read_quantisers(folder) if hidden.kind == "mvq" else None
        done = sum(len(shards[n]) for n in range(len(shards)) if n not in set(missing))
        progress(done, len(ids), "")
        speed = _Speed()
        for number in missing[rank::ranks]:
            entries: dict[str, Entry] = {}
            layers: dict[str, Layer] = {}
            for batch_cuts in _batches([by_id[i] for i in shards[number]], max_duration_s):
                batch = load_batch(batch_cuts, None, sample_rate_hz=teacher.sample_rate_hz)
                some, layers = _entries(batch_cuts, teacher(batch), made, quantisers)
                entries |= some
                speed.add(batch, entries)
                progress(done + len(entries), len(ids), speed.text())
            write_shard(folder, number, {i: entries[i] for i in shards[number]}, layers)
            done += len(entries)
            speed.next_shard()


class _Speed:
    """Audio heard against the time it took, and bytes of it."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._heard_s = 0.0
        self._bytes_before = 0
        self._bytes = 0

    def add(self, batch: SpeechBatch, shard: dict[str, Entry]) -> None:
        self._heard_s += float(batch.audio_lengths.sum()) / batch.sample_rate_hz
        self._bytes = sum(len(e.posteriors) + len(e.nbest) + sum(map(len, e.hidden)) for e in shard.values())

    def next_shard(self) -> None:
        self._bytes_before += self._bytes
        self._bytes = 0

    def text(self) -> str:
        times = self._heard_s / max(1e-6, time.monotonic() - self._started)
        mb_per_hour = (self._bytes_before + self._bytes) / 1e6 / max(1e-6, self._heard_s / 3600)
        return f"{times:.0f}x real time, {mb_per_hour:.2f} MB an hour"


@contextmanager
def _ranks() -> Iterator[tuple[int, int, Any]]:
    """This process's rank, their number, and a gloo group of all; all have finished when the block ends without an error.

    Ranks talk over gloo, whatever the training's own group uses, and give up as soon as one of them is gone.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        yield 0, 1, None
        return
    own_group = not dist.is_initialized()
    if own_group:
        join_ranks("gloo", _PATIENCE)
    group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        yield dist.get_rank(), ranks, group
        try:
            dist.barrier(group=group)
        except RuntimeError:
            raise TargetsError(
                "another process ended before its shards were made; run the same command again"
            ) from None
    finally:
        if own_group:
            dist.destroy_process_group()


def _agreed(ask: Callable[[], list[int]], rank: int, group: Any) -> list[int]:
    """What ``ask`` gives on rank 0, on every rank; its refusal is everybody's."""
    if group is None:
        return ask()
    answer: list[Any] = [None]
    if rank == 0:
        try:
            answer = [ask()]
        except (TargetsError, OSError) as error:
            answer = [error]
    dist.broadcast_object_list(answer, src=0, group=group)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def audio_identity(cut: Cut) -> str:
    """Short hash of which samples a cut is made of: excerpt, transforms, and the size of each file, wherever it lies.

    A corpus that is moved keeps it; one that is made anew with other audio does not.
    """

    def stripped(value: Any) -> Any:
        if isinstance(value, list):
            return [stripped(v) for v in value]
        if not isinstance(value, dict):
            return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else value
        # A recording's id may be its path; what was said or computed of the audio is not the audio.
        left_out = ("id", "recording_id", "supervisions", "custom", "features")
        kept = {k: stripped(v) for k, v in value.items() if k not in left_out}
        if value.get("type") == "file" and "source" in value:
            path = Path(value["source"])
            kept["source"] = path.stat().st_size if path.exists() else str(path)
        if value.get("type") == "shar" and "source" in value:
            kept["source"] = value["source"].rpartition(":")[2]  # its size, wherever the tar lies
        return kept

    text = json.dumps(stripped(cut.to_dict()), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _header(
    teacher: LabellingTeacher, codec: TopKCodec | SampledCodec, hidden: HiddenCodec, shards: Sequence[Sequence[str]]
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "teacher": teacher.identity,
        "tokens": list(teacher.vocabulary.tokens),
        "blank_id": teacher.vocabulary.blank_id,
        "frame_shift_s": teacher.frame_shift_s,
        "sample_rate_hz": teacher.sample_rate_hz,
        "codec": codec.options(),
        "declared_error": codec.declared_error(),
        "shards": [hashlib.sha256("\n".join(ids).encode()).hexdigest() for ids in shards],
        **({"hidden": asdict(hidden)} if hidden.kind == "mvq" else {}),
    }


def _claim(folder: Path, header: dict[str, Any]) -> None:
    """Write the header, or refuse where another one is."""
    if not (folder / HEADER).exists():
        write_atomically(folder / HEADER, json.dumps(header, ensure_ascii=False).encode())
        return
    found = read_header(folder)
    names = {"shards": "utterances", "tokens": "vocabulary"}
    keys = {**header, **found}
    differing = [names.get(key, key) for key in keys if found.get(key) != header.get(key) and key != "declared_error"]
    if differing:
        verb = "differs" if len(differing) == 1 and differing != ["utterances"] else "differ"
        raise TargetsError(
            f"{folder}: holds other targets ({', '.join(differing)} {verb}); choose another folder or remove this one"
        )


def _fitted(
    teacher: LabellingTeacher,
    by_id: dict[str, Cut],
    folder: Path,
    codec: HiddenCodec,
    max_duration_s: float,
    progress: Progress,
) -> Quantisers:
    """The folder's quantisers, fitted now where there are none."""
    found = read_quantisers(folder)
    if found is not None:
        return found
    progress(0, len(by_id), "fitting quantisers")
    some = sorted(by_id.values(), key=lambda cut: hashlib.sha256(cut.id.encode()).digest())  # from all over the corpus
    groups = [group for at in range(0, len(some), 64) for group in _batches(some[at : at + 64], max_duration_s)]

    def hear(number: int) -> Mapping[str, Frames]:
        return teacher(load_batch(groups[number], None, sample_rate_hz=teacher.sample_rate_hz)).hidden

    states = some_states(hear, len(groups), codec.fit_states)
    if not states:
        raise TargetsError("hidden.kind: expected a teacher with hidden states to make mvq codes of; it gives none")
    try:
        fit_quantisers(folder, states, codec)
    except ValueError as error:
        raise TargetsError(str(error)) from None
    made = read_quantisers(folder)
    assert made is not None
    return made


def _missing(
    folder: Path, shards: Sequence[Sequence[str]], by_id: dict[str, Cut], quantisers: Quantisers | None
) -> list[int]:
    """Numbers of the shards that have to be made.

    Raises:
        TargetsError: If an utterance's audio is not what was heard.
    """
    expected = {"" if quantisers is None else quantisers.identity}
    missing = []
    for number, ids in enumerate(shards):
        try:
            shard = read_shard(folder, number)
        except TargetsError:
            missing.append(number)
            continue
        places = shard.places
        if list(places) != list(ids) or {layer.quantiser for layer in shard.layers.values()} - expected:
            missing.append(number)
            continue
        for utterance in ids:
            if places[utterance].audio != audio_identity(by_id[utterance]):
                raise TargetsError(
                    f"{folder}: the audio of {utterance} is not what the teacher heard; remove the folder and label again"
                )
    return missing


def _batches(cuts: Sequence[Cut], max_duration_s: float) -> Iterator[list[Cut]]:
    """Cuts in batches of like length, longest first, whose padded audio stays within ``max_duration_s``."""
    batch: list[Cut] = []
    for cut in sorted(cuts, key=lambda c: (-c.duration, c.id)):
        if batch and batch[0].duration * (len(batch) + 1) > max_duration_s:
            yield batch
            batch = []
        batch.append(cut)
    if batch:
        yield batch


def _entries(
    cuts: Sequence[Cut], targets: TeacherTargets, codec: TopKCodec | SampledCodec, quantisers: Quantisers | None
) -> tuple[dict[str, Entry], dict[str, Layer]]:
    """Entries of a batch, and what its hidden layers are."""
    posteriors = targets.posteriors
    if posteriors is not None and not isinstance(posteriors, Frames):
        raise TargetsError("targets: expected dense posteriors of the teacher")
    if posteriors is None and targets.nbest is None and not targets.hidden:
        raise TargetsError("targets: expected posteriors, N-best lists or hidden states; the teacher gives none")
    log_probs, lengths = (None, []) if posteriors is None else (_cpu(posteriors.values), posteriors.lengths.tolist())
    if quantisers is not None and set(targets.hidden) != set(quantisers.layers):
        raise TargetsError(f"targets: expected hidden states of {', '.join(quantisers.layers)}")
    layers: dict[str, Layer] = {}
    hidden: list[list[bytes]] = []
    for name, frames in targets.hidden.items():
        rows = [values[:count] for values, count in zip(frames.values, frames.lengths.tolist(), strict=True)]
        if quantisers is None:
            layers[name] = Layer(frames.values.shape[2], frames.frame_shift_s)
            hidden.append([pack_hidden(_cpu(states)) for states in rows])
        else:
            layers[name] = Layer(len(quantisers.layers[name].codebooks), frames.frame_shift_s, quantisers.identity)
            hidden.append([quantisers.encode(name, states).tobytes() for states in rows])
    entries = {}
    for row, cut in enumerate(cuts):
        entries[cut.id] = Entry(
            b"" if log_probs is None else codec.encode(log_probs[row, : lengths[row]], cut.id),
            0 if log_probs is None else lengths[row],
            audio_identity(cut),
            cut.duration,
            b"" if targets.nbest is None else pack_nbest(targets.nbest[row]),
            tuple(states[row] for states in hidden),
        )
    return entries, layers


def _cpu(values: torch.Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()
