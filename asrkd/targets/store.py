"""What a teacher said of a corpus, on disk beside the cuts: a header and checked shards.

    header.json        schema, teacher identity, vocabulary, frame shift, audio rate, codec, which ids each shard holds
    shard-00000.bin    the stored posteriors of its utterances, one after another
    shard-00000.json   SHA-256 of the .bin; for each utterance its place, frames, audio hash and N-best list

A shard is whole or not there: the .bin is written before the .json that names its checksum, each under another name first.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asrkd.data.files import write_atomically
from asrkd.targets.codec import TopKCodec
from asrkd.types import Frames, Hypothesis, NBest, TeacherTargets, TopK, Vocabulary

SCHEMA_VERSION = 1
HEADER = "header.json"


@dataclass(frozen=True)
class Entry:
    """One utterance of a shard."""

    data: bytes
    num_frames: int
    audio_sha256: str
    nbest: NBest | None


class TargetsError(ValueError):
    """A store that cannot be used; one line says why."""


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def write_shard(folder: Path, number: int, entries: dict[str, Entry]) -> None:
    """Write one whole shard.

    Raises:
        OSError: If it cannot be written; nothing of it is left then.
    """
    blob = b"".join(entry.data for entry in entries.values())
    index, offset = {}, 0
    for identity, entry in entries.items():
        index[identity] = {
            "offset": offset,
            "size": len(entry.data),
            "frames": entry.num_frames,
            "audio_sha256": entry.audio_sha256,
            "nbest": None if entry.nbest is None else [[list(h.tokens), h.text, h.score] for h in entry.nbest],
        }
        offset += len(entry.data)
    write_atomically(folder / f"{shard_name(number)}.bin", blob)
    record = {"sha256": hashlib.sha256(blob).hexdigest(), "utterances": index}
    write_atomically(folder / f"{shard_name(number)}.json", json.dumps(record, ensure_ascii=False).encode())


def read_shard(folder: Path, number: int) -> dict[str, Entry]:
    """Read and check one shard.

    Raises:
        TargetsError: Naming the file that is missing, cut short or changed.
    """
    name = shard_name(number)
    try:
        blob = (folder / f"{name}.bin").read_bytes()
        record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        expected, utterances = record["sha256"], record["utterances"]
    except FileNotFoundError as error:
        raise TargetsError(f"{error.filename}: missing; run asrkd label again") from None
    except (ValueError, KeyError, TypeError):
        raise TargetsError(f"{folder / name}.json: damaged; run asrkd label again to make this shard anew") from None
    if hashlib.sha256(blob).hexdigest() != expected:
        raise TargetsError(f"{folder / name}.bin: wrong SHA-256; run asrkd label again to make this shard anew")
    return {
        identity: Entry(
            blob[row["offset"] : row["offset"] + row["size"]],
            row["frames"],
            row["audio_sha256"],
            None
            if row["nbest"] is None
            else tuple(Hypothesis(tuple(t), text, score) for t, text, score in row["nbest"]),
        )
        for identity, row in utterances.items()
    }


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
    except ValueError:
        raise TargetsError(f"{path}: not JSON") from None
    if header.get("schema_version") != SCHEMA_VERSION:
        raise TargetsError(f"{path}: schema_version: expected {SCHEMA_VERSION}, found {header.get('schema_version')!r}")
    return header


class TargetsStore:
    """Reads targets by utterance id; the same type comes out as from a live teacher.

    Every shard's checksum is tested when the store is opened; the compressed bytes stay in memory.

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
        self.codec = TopKCodec(len(self.vocabulary), self.vocabulary.blank_id, **self.header["codec"])
        self._entries: dict[str, Entry] = {}
        for number in range(len(self.header["shards"])):
            self._entries |= read_shard(self.folder, number)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def read(self, ids: Sequence[str]) -> TeacherTargets:
        """Targets of a batch.

        Args:
            ids: Utterances, one row each.

        Raises:
            TargetsError: Naming an utterance that is not there.
        """
        if unknown := [i for i in ids if i not in self._entries]:
            raise TargetsError(f"{self.folder}: no targets of {', '.join(unknown[:3])} ({len(unknown)} missing)")
        entries = [self._entries[i] for i in ids]
        decoded = [self.codec.decode(entry.data) for entry in entries]
        frames = max((len(ids) for ids, _, _ in decoded), default=0)
        width = max((ids.shape[1] for ids, _, _ in decoded), default=1)
        token_ids = np.zeros((len(decoded), frames, width), np.int64)
        log_probs = np.full((len(decoded), frames, width), -np.inf, np.float32)
        tail = np.zeros((len(decoded), frames), np.float32)
        for row, (one_ids, one_log_probs, one_tail) in enumerate(decoded):
            token_ids[row, : one_ids.shape[0], : one_ids.shape[1]] = one_ids
            log_probs[row, : one_ids.shape[0], : one_ids.shape[1]] = one_log_probs
            tail[row, : one_ids.shape[0]] = one_tail
        posteriors = TopK(
            torch.from_numpy(token_ids),
            torch.from_numpy(log_probs),
            torch.from_numpy(tail),
            torch.tensor([entry.num_frames for entry in entries], dtype=torch.int64),
            self.frame_shift_s,
            len(self.vocabulary),
        )
        nbest = None if any(e.nbest is None for e in entries) else tuple(e.nbest or () for e in entries)
        return TeacherTargets(self.vocabulary, posteriors, nbest)

    def describe(self) -> str:
        """One line: how many utterances and hours, and how many bytes an hour."""
        frames = sum(entry.num_frames for entry in self._entries.values())
        size = sum(len(entry.data) for entry in self._entries.values())
        hours = frames * self.frame_shift_s / 3600
        rate = size / hours / 1e6 if hours else math.nan
        return f"{self.folder}: {len(self._entries)} utterances, {hours:.2f} h, {rate:.3f} MB of posteriors an hour"


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
