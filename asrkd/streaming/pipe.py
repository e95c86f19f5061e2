"""Audio from a pipe, read as it comes: WAV by its header, anything else as raw 16-bit mono PCM."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from asrkd.streaming.pcm import PcmInput

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_MAX_HEADER_BYTES = 1 << 20


def read_pipe(stream: BinaryIO, target_rate_hz: int, raw_rate_hz: int, block_s: float) -> Iterator[NDArray[np.float32]]:
    """Read a pipe to its end in constant memory, whatever length its header claims.

    Args:
        stream: Binary; need not seek.
        target_rate_hz: Rate of what comes out.
        raw_rate_hz: Rate of raw PCM (16-bit little-endian mono); a WAV header says its own.
        block_s: Seconds read at a time.

    Yields:
        ``(S,)`` float32 mono samples.

    Raises:
        ValueError: For a WAV header that is damaged or of a kind that is not known, or a pipe without samples.
    """
    start = _read(stream, 12)
    if start[:4] == b"RIFF" and start[8:12] == b"WAVE":
        code, bits, channels, rate_hz, remaining = _wav_header(stream)
        start = b""
    else:
        code, bits, channels, rate_hz, remaining = _PCM, 16, 1, raw_rate_hz, -1
    pcm, frame_bytes = PcmInput(target_rate_hz), bits // 8 * channels
    block_bytes = max(1, round(block_s * rate_hz)) * frame_bytes
    heard = False
    while True:
        wanted = block_bytes - len(start)
        data = start + _read(stream, wanted if remaining < 0 else min(wanted, remaining))
        remaining -= len(data) if remaining > 0 else 0
        start = b""
        whole = len(data) - len(data) % frame_bytes
        if whole:
            heard = True
            yield pcm.accept(_samples(data[:whole], code, bits).reshape(-1, channels), rate_hz)
        if len(data) < block_bytes or remaining == 0:
            break
    if not heard:
        raise ValueError("-: holds no samples")
    yield pcm.flush()


def _wav_header(stream: BinaryIO) -> tuple[int, int, int, int, int]:
    """Format code, bits, channels, rate and bytes of samples (-1 where the writer could not know)."""
    layout: tuple[int, int, int, int] | None = None
    for _ in range(64):
        head = _read(stream, 8)
        if len(head) < 8:
            break
        name, size = struct.unpack("<4sI", head)
        if name == b"data":
            if layout is None:
                break
            # Writers into a pipe put 0 or the largest number; the end of the pipe tells.
            return (*layout, -1 if size in (0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF) else size)
        if size > _MAX_HEADER_BYTES:
            raise ValueError(f"-: damaged WAV header: chunk {name!r} of {size} bytes")
        body = _read(stream, size + size % 2)
        if name == b"fmt ":
            layout = _wav_format(body)
    raise ValueError("-: damaged WAV header: expected the chunks 'fmt ' and 'data'")


def _wav_format(body: bytes) -> tuple[int, int, int, int]:
    if len(body) < 16:
        raise ValueError(f"-: damaged WAV header: expected 16 bytes of format, found {len(body)}")
    code, channels, rate_hz, _, _, bits = struct.unpack("<HHIIHH", body[:16])
    if code == _EXTENSIBLE and len(body) >= 26:
        code = struct.unpack("<H", body[24:26])[0]
    if (code, bits) not in ((_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)):
        raise ValueError(f"-: WAV format {code} with {bits} bits: expected PCM of 8 to 32 bits or float")
    if not channels or not rate_hz:
        raise ValueError(f"-: damaged WAV header: {channels} channels at {rate_hz} Hz")
    return code, bits, channels, rate_hz


def _samples(data: bytes, code: int, bits: int) -> NDArray[np.generic]:
    if code == _FLOAT:
        return np.frombuffer(data, dtype=f"<f{bits // 8}")
    if bits == 8:
        return ((np.frombuffer(data, dtype=np.uint8).astype(np.int16) - 128) * 256).astype(np.int16)
    if bits == 24:
        packed = np.zeros((len(data) // 3, 4), dtype=np.uint8)
        packed[:, 1:] = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3)
        return packed.view("<i4").reshape(-1)
    return np.frombuffer(data, dtype=f"<i{bits // 8}")


def _read(stream: BinaryIO, count: int) -> bytes:
    """``count`` bytes, or fewer at the end: a pipe gives them in pieces."""
    pieces, missing = [], count
    while missing > 0:
        piece = stream.read(min(missing, 1 << 20))
        if not piece:
            break
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)
