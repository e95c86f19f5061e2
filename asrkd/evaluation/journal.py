"""What an evaluation has decoded so far, so that one that was killed goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asrkd.data.files import write_atomically
from asrkd.evaluation.decode import Decoded
from asrkd.streaming.events import Word

FILE = "decoding.jsonl"


class Journal:
    """Remembers, on disk where a folder is given, what was decoded: one line an utterance.

    A line that a kill cut short is dropped; a journal of another evaluation is begun anew.

    Args:
        folder: Where the file is kept; ``None``: nowhere.
        identity: Of what is decoded and how.
    """

    def __init__(self, folder: Path | None, identity: str) -> None:
        self.path = None if folder is None else folder / FILE
        self.identity = identity
        self.done: dict[tuple[str, str], Decoded] = {}

    def __enter__(self) -> Journal:
        if self.path is None:
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, self._read() or (json.dumps({"identity": self.identity}) + "\n").encode())
        self._file = self.path.open("ab")
        return self

    def __exit__(self, *_: object) -> None:
        if self.path is not None:
            self._file.close()

    def of_part(self, part: str) -> dict[str, Decoded]:
        """What is decoded of a test set, by utterance id."""
        return {key: found for (found_part, key), found in self.done.items() if found_part == part}

    def add(self, part: str, batch: Sequence[Decoded]) -> None:
        """Keeps a batch; on return it is on the disk."""
        self.done.update({(part, found.id): found for found in batch})
        if self.path is not None:
            for found in batch:
                record = {"part": part, **dataclasses.asdict(found)}
                self._file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
            self._file.flush()
            os.fsync(self._file.fileno())

    def remove(self) -> None:
        """Deletes the file, once something better has taken its place."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _read(self) -> bytes:
        """The complete lines of a journal of the same evaluation."""
        if self.path is None or not self.path.is_file():
            return b""
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept: list[bytes] = []
        for line in lines:
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                record = None
            if record is None:
                break
            if not kept and record != {"identity": self.identity}:
                return b""
            if kept:
                self._remember(record)
            kept.append(line)
        return b"".join(kept)

    def _remember(self, record: dict[str, Any]) -> None:
        part, words = record.pop("part"), record.pop("words")
        found = Decoded(**record, words=None if words is None else tuple(Word(**word) for word in words))
        self.done[part, found.id] = found
