"""Frame posteriors small on disk: the fewest entries that reach a stated mass, quantised, blanks nearly free.

Legend: T frames, V tokens, K most entries of a frame, A frames that are not blank alone.

Layout of one utterance, before zlib: T, A (uint32), T bits "blank alone", A counts (uint8), ids, log-probabilities, A tails.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FLOOR = 16.0  # smallest stored log-probability is -FLOOR nats (1e-7)
_HEADER = struct.Struct("<II")


@dataclass(frozen=True)
class TopKCodec:
    """Keeps of each frame the fewest entries that reach ``mass``, at most ``max_entries``; the rest is one bucket.

    A frame in which blank alone reaches ``mass`` costs one bit and is read back as blank with probability
    ``(1 + mass) / 2``. What is read back is normalised over entries and bucket.

    Args:
        vocab_size: V.
        blank_id: Of the vocabulary.
        mass: To be reached, in (0, 1).
        max_entries: K, 1 to 255.
        bits: Of a stored log-probability, 8 or 16.

    Raises:
        ValueError: If an argument is out of range.
    """

    vocab_size: int
    blank_id: int
    mass: float = 0.999
    max_entries: int = 16
    bits: int = 8

    def __post_init__(self) -> None:
        if not 0.0 < self.mass < 1.0:
            raise ValueError(f"mass: expected more than 0 and less than 1, found {self.mass}")
        if not 1 <= self.max_entries <= 255:
            raise ValueError(f"max_entries: expected 1 to 255, found {self.max_entries}")
        if self.bits not in (8, 16):
            raise ValueError(f"bits: expected 8 or 16, found {self.bits}")

    @property
    def max_log_error(self) -> float:
        """Largest error of a kept log-probability above ``-FLOOR`` nats from quantisation, before normalisation."""
        return FLOOR / (2**self.bits - 1) / 2

    @property
    def _id_type(self) -> type[np.unsignedinteger]:
        return next(t for t in (np.uint8, np.uint16, np.uint32) if self.vocab_size <= np.iinfo(t).max + 1)

    @property
    def _value_type(self) -> type[np.unsignedinteger]:
        return np.uint8 if self.bits == 8 else np.uint16

    def encode(self, log_probs: NDArray[np.float32]) -> bytes:
        """One utterance to bytes.

        Args:
            log_probs: ``(T, V)`` normalised log-probabilities.

        Raises:
            ValueError: If the shape is not ``(T, V)`` or a value is NaN.
        """
        if log_probs.ndim != 2 or log_probs.shape[1] != self.vocab_size:
            raise ValueError(f"log_probs: expected (T, {self.vocab_size}), found {log_probs.shape}")
        if np.isnan(log_probs).any():
            raise ValueError("log_probs: expected numbers, found NaN")
        blank_alone = log_probs[:, self.blank_id] >= math.log(self.mass)
        active = log_probs[~blank_alone]
        k = min(self.max_entries, self.vocab_size)
        order = np.argpartition(-active, k - 1, axis=1)[:, :k] if k < self.vocab_size else np.argsort(-active, 1)
        values = np.take_along_axis(active, order, 1)
        by_size = np.argsort(-values, axis=1, kind="stable")
        order, values = np.take_along_axis(order, by_size, 1), np.take_along_axis(values, by_size, 1)
        probs = np.exp(values.astype(np.float64))
        counts = np.minimum((np.cumsum(probs, 1) < self.mass).sum(1) + 1, k)
        kept = np.arange(k) < counts[:, None]
        with np.errstate(divide="ignore"):
            tail = np.log(np.maximum(1.0 - np.where(kept, probs, 0.0).sum(1), 0.0))
        parts = [
            _HEADER.pack(len(log_probs), len(active)),
            np.packbits(blank_alone).tobytes(),
            counts.astype(np.uint8).tobytes(),
            order[kept].astype(self._id_type).tobytes(),
            self._quantise(values[kept]).tobytes(),
            self._quantise(tail).tobytes(),
        ]
        return zlib.compress(b"".join(parts), 6)

    def decode(self, data: bytes) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """Bytes back to ``ids (T, K')``, ``log_probs (T, K')`` and ``tail (T)``; K' the most entries of a frame here.

        Raises:
            ValueError: If the bytes are not what :meth:`encode` wrote.
        """
        try:
            raw = zlib.decompress(data)
            frames, active = _HEADER.unpack_from(raw)
            place = _HEADER.size
            alone = np.unpackbits(np.frombuffer(raw, np.uint8, -(-frames // 8), place), count=frames).astype(bool)
            place += -(-frames // 8)
            counts = np.frombuffer(raw, np.uint8, active, place).astype(np.int64)
            place += active
            total = int(counts.sum())
            kept_ids = np.frombuffer(raw, self._id_type, total, place)
            place += kept_ids.nbytes
            quantised = np.frombuffer(raw, self._value_type, total, place)
            place += quantised.nbytes
            tails = np.frombuffer(raw, self._value_type, active, place)
        except (zlib.error, struct.error, ValueError) as error:
            raise ValueError(f"not a stored posterior of this codec: {error}") from None
        width = max(1, int(counts.max(initial=1)))
        ids = np.zeros((frames, width), np.int64)
        values = np.full((frames, width), -np.inf, np.float32)
        tail = np.empty(frames, np.float32)
        ids[alone, 0] = self.blank_id
        values[alone, 0] = math.log((1 + self.mass) / 2)
        tail[alone] = math.log((1 - self.mass) / 2)
        if active:
            rows = np.flatnonzero(~alone)
            row, column = np.repeat(rows, counts), _ranges(counts)
            ids[row, column] = kept_ids
            values[row, column] = self._restore(quantised)
            tail[rows] = self._restore(tails)
            total_log = np.log(np.exp(values[rows]).sum(1) + np.exp(tail[rows]))
            values[rows] -= total_log[:, None]
            tail[rows] -= total_log
        return ids, values, tail

    def _quantise(self, values: NDArray[np.floating]) -> NDArray[np.unsignedinteger]:
        top = 2**self.bits - 1
        return np.rint(np.clip(-values, 0.0, FLOOR) * (top / FLOOR)).astype(self._value_type)

    def _restore(self, quantised: NDArray[np.unsignedinteger]) -> NDArray[np.float32]:
        return quantised.astype(np.float32) * np.float32(-FLOOR / (2**self.bits - 1))


def _ranges(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 .. n-1 for each n of ``counts``, one after another."""
    starts = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) - np.repeat(starts, counts)
