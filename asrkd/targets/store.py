"""What a teacher said of a corpus, on disk beside the cuts: a header and checked shards.

    header.json        schema, teacher, vocabulary, frame shift, audio rate, codec, what each shard holds
    shard-00000.bin    for each utterance its posteriors, N-best list and hidden states, one after another
    shard-00000.json   SHA-256 of the .bin; hidden layers; for each utterance its place, sizes, frames, audio identity
    quantisers.safetensors   where hidden states are kept as codes: what they stand for

A shard is whole or not there: the .bin is written before the .json that names its checksum, each under another name first.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asrkd.data.files import write_atomically
from asrkd.targets.codec import SampledCodec, TopKCodec, make_codec
from asrkd.targets.hidden import Layer, Quantisers, padded_hidden, read_quantisers
from asrkd.types import Frames, Hypothesis, NBest, TeacherTargets, TopK, Vocabulary

SCHEMA_VERSION = 2
HEADER = "header.json"
_AGAIN = "run asrkd label again to make this shard anew"


class TargetsError(ValueError):
    """A store that cannot be used; one line says why."""


@dataclass(frozen=True)
class Entry:
    """One utterance of a shard, as bytes.

    Args:
        posteriors: By the store's codec; empty where the teacher gives none.
        num_frames: Of the posteriors.
        audio: Identity of the audio that was heard.
        duration_s: Of that audio.
        nbest: By :func:`pack_nbest`; empty where the teacher gives none.
        hidden: Of each hidden layer float16 ``(T, D)``, or codes ``(T, C)`` of one byte.
    """

    posteriors: bytes
    num_frames: int
    audio: str
    duration_s: float
    nbest: bytes = b""
    hidden: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where an utterance lies: its shard, its first byte there, and the sizes of posteriors, N-best list and hidden layers."""

    shard: int
    offset: int
    sizes: tuple[int, ...]
    num_frames: int
    audio: str
    duration_s: float


@dataclass(frozen=True)
class Shard:
    """An opened shard: where each utterance lies, its bytes (mapped, not copied), and its hidden layers."""

    places: dict[str, Place]
    blob: mmap.mmap | bytes
    layers: dict[str, Layer]


@dataclass(frozen=True)
class StoreSummary:
    """Figures of a store. Args: utterances, hours of audio, bytes on disk of posteriors, N-best lists and hidden states."""

    utterances: int
    hours: float
    posterior_bytes: int
    nbest_bytes: int
    hidden_bytes: int

    @property
    def posterior_mb_per_hour(self) -> float:
        return self.posterior_bytes / self.hours / 1e6 if self.hours else math.nan


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def write_shard(folder: Path, number: int, entries: Mapping[str, Entry], layers: Mapping[str, Layer]) -> None:
    """Write one whole shard.

    Raises:
        OSError: If it cannot be written; nothing of it is left then.
    """
    index: dict[str, Any] = {}
    pieces: list[bytes] = []
    offset = 0
    for utterance, entry in entries.items():
        parts = (entry.posteriors, entry.nbest, *entry.hidden)
        index[utterance] = {
            "offset": offset,
            "sizes": [len(part) for part in parts],
            "frames": entry.num_frames,
            "audio": entry.audio,
            "duration_s": entry.duration_s,
        }
        pieces += parts
        offset += sum(len(part) for part in parts)
    blob = b"".join(pieces)
    write_atomically(folder / f"{shard_name(number)}.bin", blob)
    record = {
        "sha256": hashlib.sha256(blob).hexdigest(),
        "hidden": {name: asdict(layer) for name, layer in layers.items()},
        "utterances": index,
    }
    write_atomically(folder / f"{shard_name(number)}.json", json.dumps(record, ensure_ascii=False).encode())


def read_shard(folder: Path, number: int) -> Shard:
    """Open and check one shard.

    Raises:
        TargetsError: Naming the file that is missing, cut short or changed.
    """
    name = shard_name(number)
    try:
        with (folder / f"{name}.bin").open("rb") as file:
            blob = _map(file)
        record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        expected = record["sha256"]
        places = {
            utterance: Place(number, row["offset"], tuple(row["sizes"]), row["frames"], row["audio"], row["duration_s"])
            for utterance, row in record["utterances"].items()
        }
        layers = {layer: Layer(**settings) for layer, settings in record["hidden"].items()}
    except FileNotFoundError as error:
        raise TargetsError(f"{error.filename}: missing; {_AGAIN}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TargetsError(f"{folder / name}.json: damaged; {_AGAIN}") from None
    if hashlib.sha256(blob).hexdigest() != expected:
        raise TargetsError(f"{folder / name}.bin: wrong SHA-256; {_AGAIN}")
    return Shard(places, blob, layers)


def _map(file: Any) -> mmap.mmap | bytes:
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # an empty file cannot be mapped
        return b""


def read_header(folder: Path) -> dict[str, Any]:
    """The header of a store.

    Raises:
        TargetsError: If there is none or it is of another schema.
    """
    path = folder / HEADER
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TargetsError(f"{folder}: no targets here: {HEADER} is missing") from None
    except (OSError, ValueError):
        raise TargetsError(f"{path}: cannot be read as JSON") from None
    found = header.get("schema_version") if isinstance(header, dict) else None
    if found != SCHEMA_VERSION:
        raise TargetsError(
            f"{path}: schema_version: expected {SCHEMA_VERSION}, found {found!r}; remove the folder and label again"
        )
    return header


class TargetsStore:
    """Reads targets by utterance id; the same type comes out as from a live teacher.

    Every shard's checksum is tested when the store is opened; the shards are mapped into memory, the index is held.

    Args:
        folder: Of the store.

    Raises:
        TargetsError: If the store is not whole.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.header = read_header(self.folder)
        self.vocabulary = Vocabulary(tuple(self.header["tokens"]), self.header["blank_id"])
        self.frame_shift_s: float = self.header["frame_shift_s"]
        self.codec: TopKCodec | SampledCodec = make_codec(
            self.header["codec"], len(self.vocabulary), self.vocabulary.blank_id
        )
        self.layers: dict[str, Layer] = {}
        self._places: dict[str, Place] = {}
        self._blobs: list[mmap.mmap | bytes] = []
        for number in range(len(self.header["shards"])):
            shard = read_shard(self.folder, number)
            self._places |= shard.places
            self._blobs.append(shard.blob)
            if number and shard.layers != self.layers:
                raise TargetsError(
                    f"{self.folder / shard_name(number)}.json: other hidden layers than before; {_AGAIN}"
                )
            self.layers = shard.layers
        self.quantisers: Quantisers | None = None
        if wanted := {layer.quantiser for layer in self.layers.values()} - {""}:
            self.quantisers = read_quantisers(self.folder)
            if self.quantisers is None or {self.quantisers.identity} != wanted:
                raise TargetsError(f"{self.folder}: the quantisers are not those that made the codes; {_AGAIN}")

    def __reduce__(self) -> tuple[type[TargetsStore], tuple[Path]]:
        return TargetsStore, (self.folder,)  # a worker that is spawned opens it again

    def __len__(self) -> int:
        return len(self._places)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._places)

    def entry(self, utterance: str) -> Entry:
        """The bytes of one utterance.

        Raises:
            TargetsError: If it is not there.
        """
        place = self._places.get(utterance)
        if place is None:
            raise TargetsError(f"{self.folder}: no targets of {utterance}")
        parts, at = [], place.offset
        for size in place.sizes:
            parts.append(self._blobs[place.shard][at : at + size])
            at += size
        return Entry(parts[0], place.num_frames, place.audio, place.duration_s, parts[1], tuple(parts[2:]))

    def read(self, ids: Sequence[str]) -> TeacherTargets:
        """Targets of a batch.

        Args:
            ids: Utterances, one row each.

        Raises:
            TargetsError: Naming utterances that are not there.
        """
        if unknown := [i for i in ids if i not in self._places]:
            raise TargetsError(f"{self.folder}: no targets of {', '.join(unknown[:3])} ({len(unknown)} missing)")
        entries = [self.entry(i) for i in ids]
        return decode_entries(entries, self.vocabulary, self.frame_shift_s, self.codec, self.layers)

    def summary(self) -> StoreSummary:
        """How much there is, and how large."""
        places = self._places.values()
        return StoreSummary(
            len(places),
            sum(place.duration_s for place in places) / 3600,
            sum(place.sizes[0] for place in places),
            sum(place.sizes[1] for place in places),
            sum(sum(place.sizes[2:]) for place in places),
        )

    def describe(self) -> str:
        """One line: how many utterances and hours, and how many bytes an hour."""
        found = self.summary()
        return (
            f"{self.folder}: {found.utterances} utterances, {found.hours:.2f} h, "
            f"{found.posterior_mb_per_hour:.3f} MB of posteriors an hour"
        )


def decode_entries(
    entries: Sequence[Entry],
    vocabulary: Vocabulary,
    frame_shift_s: float,
    codec: TopKCodec | SampledCodec,
    layers: Mapping[str, Layer],
) -> TeacherTargets:
    """Entries of a batch decoded and padded.

    Args:
        entries: One for each row.
        vocabulary: Of the store.
        frame_shift_s: Of the posteriors.
        codec: That packed them.
        layers: Of the hidden states.
    """
    posteriors = None
    if all(entry.posteriors for entry in entries):
        decoded = [codec.decode(entry.posteriors) for entry in entries]
        posteriors = _padded_topk(decoded, len(vocabulary), frame_shift_s)
    nbest = tuple(unpack_nbest(e.nbest) for e in entries) if all(e.nbest for e in entries) else None
    hidden = {
        name: padded_hidden([entry.hidden[place] for entry in entries], layer)
        for place, (name, layer) in enumerate(layers.items())
    }
    return TeacherTargets(vocabulary, posteriors, nbest, hidden)


def _padded_topk(decoded: Sequence[Any], vocab_size: int, frame_shift_s: float) -> TopK:
    frames = max((len(ids) for ids, _, _ in decoded), default=0)
    width = max((ids.shape[1] for ids, _, _ in decoded), default=1)
    ids = np.zeros((len(decoded), frames, width), np.int64)
    log_probs = np.full((len(decoded), frames, width), -np.inf, np.float32)
    tail = np.zeros((len(decoded), frames), np.float32)
    for row, (one_ids, one_log_probs, one_tail) in enumerate(decoded):
        ids[row, : one_ids.shape[0], : one_ids.shape[1]] = one_ids
        log_probs[row, : one_ids.shape[0], : one_ids.shape[1]] = one_log_probs
        tail[row, : one_ids.shape[0]] = one_tail
    lengths = torch.tensor([len(one) for one, _, _ in decoded], dtype=torch.int64)
    return TopK(
        torch.from_numpy(ids), torch.from_numpy(log_probs), torch.from_numpy(tail), lengths, frame_shift_s, vocab_size
    )


def pack_nbest(nbest: NBest) -> bytes:
    """An N-best list as compressed JSON; times to 1 ms, confidences to 0.0001."""
    rows = [
        [
            list(h.tokens),
            h.text,
            h.score,
            None if h.times_s is None else [round(1000 * t) for t in h.times_s],
            None if h.confidences is None else [round(c, 4) for c in h.confidences],
        ]
        for h in nbest
    ]
    return zlib.compress(json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode(), 6)


def unpack_nbest(data: bytes) -> NBest:
    """What :func:`pack_nbest` packed.

    Raises:
        TargetsError: If it is something else.
    """
    try:
        rows = json.loads(zlib.decompress(data))
        return tuple(
            Hypothesis(
                tuple(tokens),
                text,
                score,
                None if times is None else tuple(t / 1000 for t in times),
                None if confidences is None else tuple(confidences),
            )
            for tokens, text, score, times, confidences in rows
        )
    except (zlib.error, ValueError, TypeError) as error:
        raise TargetsError(f"not a stored N-best list: {error}") from None


def decoded_posteriors(targets: TeacherTargets) -> Frames:
    """Dense log-probabilities of stored targets, the tail spread evenly over what was not kept (for looking at)."""
    sparse = targets.posteriors
    assert isinstance(sparse, TopK)
    batch, frames, _ = sparse.ids.shape
    kept = torch.isfinite(sparse.log_probs)
    rest = (sparse.vocab_size - kept.sum(-1)).clamp(min=1)
    dense = (sparse.tail_log_prob - rest.log()).unsqueeze(-1).expand(batch, frames, sparse.vocab_size).clone()
    row, frame, place = torch.nonzero(kept, as_tuple=True)
    dense[row, frame, sparse.ids[row, frame, place]] = sparse.log_probs[row, frame, place]
    return Frames(dense, sparse.lengths, sparse.frame_shift_s)
