"""Frame posteriors small on disk: kept entries of each frame, quantised, blanks nearly free.

Legend: T frames, V tokens, K most entries of a frame, A frames that are not blank alone, n entries kept in all.

Layout of one utterance, before zlib: T, A (uint32), log-probability of the rest in frames of blank alone (float32), T bits
"blank alone", A counts (uint8), n ids by byte planes, n values by byte planes, A tails. Values rise within a frame and are
kept as differences; planes and differences are what makes zlib's job easy.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

FLOOR = 16.0  # smallest stored log-probability is -FLOOR nats (1e-7)
_HEADER = struct.Struct("<IIf")

Decoded = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]
"""``ids (T, K')``, ``log_probs (T, K')``, ``tail (T)``; K' the most entries of a frame of this utterance."""


class Codec(Protocol):
    """How posteriors of one utterance become bytes and come back."""

    kind: ClassVar[str]

    def encode(self, log_probs: NDArray[np.float32], utterance: str) -> bytes: ...
    def decode(self, data: bytes) -> Decoded: ...
    def options(self) -> dict[str, Any]: ...
    def declared_error(self) -> str: ...


@dataclass(frozen=True)
class TopKCodec:
    """Keeps of each frame the fewest entries that reach ``mass``, at most ``max_entries``; the rest is one bucket.

    A frame in which blank alone reaches ``mass`` costs one bit and is read back as blank with the utterance's mean mass of
    such frames. What is read back is normalised over entries and bucket.

    Args:
        vocab_size: V.
        blank_id: Of the vocabulary.
        mass: To be reached, in (0, 1).
        max_entries: K, 1 to 255.
        bits: Of a stored log-probability, 8 or 16.

    Raises:
        ValueError: If an argument is out of range.
    """

    kind: ClassVar[str] = "topk"

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

    def options(self) -> dict[str, Any]:
        """What a store's header keeps of it."""
        return {"kind": self.kind, "mass": self.mass, "max_entries": self.max_entries, "bits": self.bits}

    def declared_error(self) -> str:
        """One line for people."""
        return (
            f"log-probabilities within {2 * self.max_log_error:.3g} nats; entries beyond mass {self.mass:g} or the first "
            f"{self.max_entries} are one bucket"
        )

    def encode(self, log_probs: NDArray[np.float32], utterance: str = "") -> bytes:
        """One utterance to bytes.

        Args:
            log_probs: ``(T, V)`` normalised log-probabilities.
            utterance: Not used: nothing is drawn.

        Raises:
            ValueError: If the shape is not ``(T, V)`` or a value is NaN.
        """
        check_posteriors(log_probs, self.vocab_size)
        blank = log_probs[:, self.blank_id]
        alone = blank >= math.log(self.mass)
        active = log_probs[~alone]
        k = min(self.max_entries, self.vocab_size)
        ids = np.argpartition(-active, k - 1, axis=1)[:, :k] if k < self.vocab_size else np.argsort(-active, 1)
        values = np.take_along_axis(active, ids, 1)
        by_size = np.argsort(-values, axis=1, kind="stable")
        ids, values = np.take_along_axis(ids, by_size, 1), np.take_along_axis(values, by_size, 1)
        probs = np.exp(values.astype(np.float64))
        counts = np.minimum((np.cumsum(probs, 1) < self.mass).sum(1) + 1, k)
        kept = np.arange(k) < counts[:, None]
        rest = 1.0 - np.where(kept, probs, 0.0).sum(1)
        rest_alone = 1.0 - np.exp(blank[alone].astype(np.float64)).mean() if alone.any() else 0.0
        steps = np.diff(quantise(values, self.bits), axis=1, prepend=0)
        return zlib.compress(
            b"".join(
                (
                    _HEADER.pack(len(log_probs), len(active), _log(rest_alone)),
                    np.packbits(alone).tobytes(),
                    counts.astype(np.uint8).tobytes(),
                    planes(ids[kept], id_bytes(self.vocab_size)),
                    planes(steps[kept], self.bits // 8),
                    quantise(_log(rest), self.bits).astype(f"<u{self.bits // 8}").tobytes(),
                )
            ),
            6,
        )

    def decode(self, data: bytes) -> Decoded:
        """Bytes back to posteriors.

        Raises:
            ValueError: If the bytes are not what :meth:`encode` wrote.
        """
        width = self.bits // 8
        try:
            raw = zlib.decompress(data)
            frames, active, rest_alone = _HEADER.unpack_from(raw)
            place = _HEADER.size
            alone = np.unpackbits(np.frombuffer(raw, np.uint8, -(-frames // 8), place), count=frames).astype(bool)
            place += -(-frames // 8)
            counts = np.frombuffer(raw, np.uint8, active, place).astype(np.int64)
            total = int(counts.sum())
            kept_ids, place = from_planes(raw, place + active, total, id_bytes(self.vocab_size))
            steps, place = from_planes(raw, place, total, width)
            tails = np.frombuffer(raw, f"<u{width}", active, place)
        except (zlib.error, struct.error, ValueError) as error:
            raise ValueError(f"not a stored posterior of this codec: {error}") from None
        most = max(1, int(counts.max(initial=1)))
        ids = np.zeros((frames, most), np.int64)
        values = np.full((frames, most), -np.inf, np.float32)
        tail = np.empty(frames, np.float32)
        ids[alone, 0] = self.blank_id
        values[alone, 0] = math.log1p(-math.exp(rest_alone))
        tail[alone] = rest_alone
        if active:
            used = np.arange(most) < counts[:, None]
            active_ids, active_values = np.zeros(used.shape, np.int64), np.zeros(used.shape, np.float32)
            active_ids[used] = kept_ids
            active_values[used] = steps
            scale = np.float32(-FLOOR / (2**self.bits - 1))
            active_values = np.where(used, np.cumsum(active_values, 1) * scale, np.float32(-np.inf))
            active_tail = tails * scale
            log_z = np.log(np.exp(active_values).sum(1) + np.exp(active_tail))
            rows = np.flatnonzero(~alone)
            ids[rows], values[rows], tail[rows] = active_ids, active_values - log_z[:, None], active_tail - log_z
        return ids, values, tail


@dataclass(frozen=True)
class SampledCodec:
    """Keeps of each frame ``samples`` tokens drawn from the posterior: an unbiased picture where top-k's is not.

    With n_v of N draws on token v the target is n_v / N, whose expectation is p(v), so that the expected gradient of a
    cross-entropy against it is that against the full posterior. Draws are systematic (one uniform number a frame, places
    (u + n) / N on the cumulated distribution), whose counts lie within 1 of N p(v); proposal and posterior are the same, so
    all importance weights are equal. The numbers are keyed by the utterance's id. Nothing is left for a tail.

    Source: Anshumann et al. 2025, "Sparse Logit Sampling" (2503.16870), in the form of a proposal equal to the posterior.

    Args:
        vocab_size: V.
        blank_id: Of the vocabulary.
        samples: N, 1 to 255.

    Raises:
        ValueError: If ``samples`` is out of range.
    """

    kind: ClassVar[str] = "sampled"

    vocab_size: int
    blank_id: int
    samples: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= 255:
            raise ValueError(f"samples: expected 1 to 255, found {self.samples}")

    def options(self) -> dict[str, Any]:
        """What a store's header keeps of it."""
        return {"kind": self.kind, "samples": self.samples}

    def declared_error(self) -> str:
        """One line for people."""
        return f"unbiased; each probability a multiple of 1/{self.samples} within 1/{self.samples} of the teacher's"

    def encode(self, log_probs: NDArray[np.float32], utterance: str = "") -> bytes:
        """One utterance to bytes.

        Args:
            log_probs: ``(T, V)`` normalised log-probabilities.
            utterance: Its id, which keys the draws.

        Raises:
            ValueError: If the shape is not ``(T, V)`` or a value is NaN.
        """
        check_posteriors(log_probs, self.vocab_size)
        frames = len(log_probs)
        key = int.from_bytes(hashlib.sha256(utterance.encode()).digest()[:8], "little")
        start = np.random.Generator(np.random.Philox(key)).random((frames, 1))
        cumulated = np.cumsum(np.exp(log_probs.astype(np.float64)), 1)
        cumulated /= cumulated[:, -1:]
        # Draw n falls on the first token whose cumulated probability exceeds (u + n) / N.
        drawn = np.ceil(cumulated * self.samples - start).astype(np.int64)
        drawn[:, -1:] = self.samples
        counts = np.diff(drawn, axis=1, prepend=0)
        alone = counts[:, self.blank_id] == self.samples
        counts = counts[~alone]
        row, ids = np.nonzero(counts)
        return zlib.compress(
            b"".join(
                (
                    _HEADER.pack(frames, len(counts), 0.0),
                    np.packbits(alone).tobytes(),
                    np.bincount(row, minlength=len(counts)).astype(np.uint8).tobytes(),
                    planes(ids, id_bytes(self.vocab_size)),
                    counts[row, ids].astype(np.uint8).tobytes(),
                )
            ),
            6,
        )

    def decode(self, data: bytes) -> Decoded:
        """Bytes back to ``log(n_v / N)`` of the drawn tokens; the tail is ``-inf``.

        Raises:
            ValueError: If the bytes are not what :meth:`encode` wrote.
        """
        try:
            raw = zlib.decompress(data)
            frames, active, _ = _HEADER.unpack_from(raw)
            place = _HEADER.size
            alone = np.unpackbits(np.frombuffer(raw, np.uint8, -(-frames // 8), place), count=frames).astype(bool)
            place += -(-frames // 8)
            entries = np.frombuffer(raw, np.uint8, active, place).astype(np.int64)
            total = int(entries.sum())
            kept_ids, place = from_planes(raw, place + active, total, id_bytes(self.vocab_size))
            drawn = np.frombuffer(raw, np.uint8, total, place)
        except (zlib.error, struct.error, ValueError) as error:
            raise ValueError(f"not a stored posterior of this codec: {error}") from None
        most = max(1, int(entries.max(initial=1)))
        ids = np.zeros((frames, most), np.int64)
        values = np.full((frames, most), -np.inf, np.float32)
        ids[alone, 0], values[alone, 0] = self.blank_id, 0.0
        used = np.zeros((frames, most), bool)
        used[~alone] = np.arange(most) < entries[:, None]
        ids[used] = kept_ids
        values[used] = np.log(drawn.astype(np.float32) / self.samples)
        return ids, values, np.full(frames, -np.inf, np.float32)


CODECS: dict[str, type[TopKCodec] | type[SampledCodec]] = {"topk": TopKCodec, "sampled": SampledCodec}
"""Every codec of frame posteriors by its ``kind``."""


def make_codec(options: dict[str, Any], vocab_size: int, blank_id: int) -> TopKCodec | SampledCodec:
    """The codec that ``options`` (of :meth:`TopKCodec.options` and its like) describes.

    Raises:
        ValueError: For an unknown kind or option, naming the known ones.
    """
    rest = dict(options)
    kind = rest.pop("kind", "topk")
    if kind not in CODECS:
        raise ValueError(f"codec.kind: expected one of {', '.join(CODECS)}; found {kind!r}")
    known = set(asdict(CODECS[kind](vocab_size, blank_id))) - {"vocab_size", "blank_id"}
    if unknown := sorted(set(rest) - known):
        raise ValueError(f"codec.{unknown[0]}: unknown for {kind}; known: {', '.join(sorted(known))}")
    return CODECS[kind](vocab_size, blank_id, **rest)


def check_posteriors(log_probs: NDArray[np.float32], vocab_size: int) -> None:
    """Refuse what is no ``(T, V)`` array of numbers.

    Raises:
        ValueError: Naming what was found.
    """
    if log_probs.ndim != 2 or log_probs.shape[1] != vocab_size:
        raise ValueError(f"log_probs: expected (T, {vocab_size}), found {log_probs.shape}")
    if np.isnan(log_probs).any():
        raise ValueError("log_probs: expected numbers, found NaN")


def quantise(values: Any, bits: int) -> NDArray[np.int64]:
    """Log-probabilities to ``0 .. 2**bits - 1``, linear from 0 to ``-FLOOR`` nats."""
    top = 2**bits - 1
    return np.rint(np.clip(-values, 0.0, FLOOR) * (top / FLOOR)).astype(np.int64)


def id_bytes(vocab_size: int) -> int:
    """Bytes of the smallest integer that holds every id."""
    return next(n for n in (1, 2, 3, 4) if vocab_size <= 256**n)


def planes(numbers: NDArray[np.int64], width: int) -> bytes:
    """Numbers as ``width`` byte planes: all lowest bytes, then all second bytes, and so on."""
    return b"".join(((numbers >> (8 * n)) & 255).astype(np.uint8).tobytes() for n in range(width))


def from_planes(raw: bytes, place: int, count: int, width: int) -> tuple[NDArray[np.int64], int]:
    """What :func:`planes` wrote at ``place``, and the place behind it."""
    numbers = np.frombuffer(raw, np.uint8, count, place).astype(np.int64)
    for n in range(1, width):
        numbers |= np.frombuffer(raw, np.uint8, count, place + n * count).astype(np.int64) << (8 * n)
    return numbers, place + width * count


def _log(probability: Any) -> Any:
    return np.log(np.maximum(probability, math.exp(-FLOOR)))
