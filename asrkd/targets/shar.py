"""Targets inside lhotse Shar tars, beside the audio, to be read in sequence from slow or remote disks.

Each cut carries a custom array field ``targets`` (uint8) through lhotse's own array storage: the store's bytes of that
utterance, as they are. What is common to all lies beside the Shar folder in ``<folder>.targets.json``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import CutSet
from lhotse.cut import Cut
from numpy.typing import NDArray

from asrkd.data.files import write_atomically
from asrkd.targets.codec import make_codec
from asrkd.targets.hidden import Layer
from asrkd.targets.store import SCHEMA_VERSION, Entry, TargetsError, TargetsStore, decode_entries
from asrkd.types import TeacherTargets, Vocabulary

FIELD = "targets"
_DIGEST_BYTES = 8


def write_targets_shar(cuts: CutSet, store: TargetsStore, folder: str | Path, shard_size: int = 1000) -> Path:
    """Write audio and targets of some cuts as Shar; the folder appears whole, or is replaced whole.

    Args:
        cuts: Utterances, all in the store.
        store: Their targets.
        folder: Of the Shar; ``CutSet.from_shar(in_dir=folder)`` reads it.
        shard_size: Utterances in one tar file.

    Returns:
        ``folder``.

    Raises:
        TargetsError: If an utterance is not in the store.
        OSError: If it cannot be written.
    """
    folder = Path(folder)
    making = folder.with_name(f".making-{folder.name}")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        attach_targets(cuts, store).to_shar(making, fields={"recording": "flac", FIELD: "numpy"}, shard_size=shard_size)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    common = {**store.header, "layers": {name: asdict(layer) for name, layer in store.layers.items()}}
    shutil.rmtree(folder, ignore_errors=True)
    write_atomically(_header_path(folder), json.dumps(common, ensure_ascii=False).encode())
    making.rename(folder)
    return folder


def attach_targets(cuts: CutSet, store: TargetsStore) -> CutSet:
    """Cuts that carry their targets as an array in memory, one by one as they are asked for.

    Args:
        cuts: Utterances.
        store: Their targets.
    """
    return cuts.map(partial(_attached, store=store))


def _attached(cut: Cut, store: TargetsStore) -> Cut:
    return cut.attach_tensor(FIELD, _packed(store.entry(cut.id)))


class SharTargets:
    """Reads targets from cuts of a Shar that :func:`write_targets_shar` wrote.

    Args:
        folder: Of the Shar.

    Raises:
        TargetsError: If there are no targets beside it.
    """

    def __init__(self, folder: str | Path) -> None:
        path = _header_path(Path(folder))
        try:
            header: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise TargetsError(f"{path}: no such file; the Shar {folder} was written without targets") from None
        except ValueError:
            raise TargetsError(f"{path}: not JSON") from None
        if header.get("schema_version") != SCHEMA_VERSION:
            raise TargetsError(
                f"{path}: schema_version: expected {SCHEMA_VERSION}, found {header.get('schema_version')}"
            )
        self.header = header
        self.vocabulary = Vocabulary(tuple(header["tokens"]), header["blank_id"])
        self._codec = make_codec(header["codec"], len(self.vocabulary), self.vocabulary.blank_id)
        self._layers = {name: Layer(**layer) for name, layer in header["layers"].items()}

    def read_cuts(self, cuts: Sequence[Cut]) -> TeacherTargets:
        """Targets that the cuts carry, one row each.

        Raises:
            TargetsError: Naming a cut that carries none, or damaged ones.
        """
        entries = []
        for cut in cuts:
            if not cut.has_custom(FIELD):
                raise TargetsError(f"utterance {cut.id}: carries no targets")
            entries.append(_unpacked(cut.load_custom(FIELD), cut.id))
        return decode_entries(entries, self.vocabulary, self.header["frame_shift_s"], self._codec, self._layers)


def _header_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.targets.json")


def _packed(entry: Entry) -> NDArray[np.uint8]:
    """Checksum, number of parts, their sizes, then the parts."""
    parts = (entry.posteriors, entry.nbest, *entry.hidden)
    body = struct.pack(f"<B{len(parts)}I", len(parts), *map(len, parts)) + b"".join(parts)
    return np.frombuffer(hashlib.sha256(body).digest()[:_DIGEST_BYTES] + body, np.uint8)


def _unpacked(array: NDArray[np.uint8], utterance: str) -> Entry:
    data = array.tobytes()
    body = data[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest()[:_DIGEST_BYTES] != data[:_DIGEST_BYTES]:
        raise TargetsError(f"utterance {utterance}: its targets in the Shar are damaged (wrong checksum)")
    count = body[0]
    sizes = struct.unpack_from(f"<{count}I", body, 1)
    parts, place = [], 1 + 4 * count
    for size in sizes:
        parts.append(body[place : place + size])
        place += size
    return Entry(parts[0], 0, "", 0.0, parts[1], tuple(parts[2:]))
