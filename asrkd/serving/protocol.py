"""What travels over the WebSocket: audio in, JSON out.

The client's first message is text, ``{"sample_rate_hz": 16000, "encoding": "s16le", "channels": 1, "model": NAME}`` (all
of it optional); then come binary messages of interleaved samples of any length, and at last the text
``{"event": "end"}``. The server answers with one JSON object a message, each with its ``event``: ``ready``, ``partial``,
``word``, ``final``, ``progress``, and at last ``ended`` or ``error``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asrkd.serving.engine import Ended, Message, Progress
from asrkd.streaming.events import Final, Partial, WordHeard
from asrkd.streaming.pcm import MAX_RATE_HZ, MIN_RATE_HZ

ENCODINGS: dict[str, np.dtype[Any]] = {"s16le": np.dtype("<i2"), "s32le": np.dtype("<i4"), "f32le": np.dtype("<f4")}
MAX_CHANNELS = 32


class ProtocolError(ValueError):
    """A message that is none; one line says what was expected and what was found."""


@dataclass(frozen=True)
class Start:
    """What a client says of its audio.

    Args:
        sample_rate_hz: Of its audio.
        encoding: A key of ``ENCODINGS``.
        channels: Interleaved; they are averaged.
        model: Name of the model that shall hear it; empty: the first.
    """

    sample_rate_hz: int = 16000
    encoding: str = "s16le"
    channels: int = 1
    model: str = ""


def read_text(text: str) -> Start | None:
    """A text message: the start, or ``None`` for the end of the audio.

    Raises:
        ProtocolError: For anything else.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ProtocolError("expected JSON as a text message, found something else") from None
    if not isinstance(found, dict):
        raise ProtocolError(f"expected a JSON object, found {type(found).__name__}")
    if found.get("event") == "end":
        return None
    wrong = sorted(set(found) - set(Start.__dataclass_fields__))
    if wrong:
        known = ", ".join(Start.__dataclass_fields__)
        raise ProtocolError(f'unknown key {wrong[0][:40]!r} (known: {known}, or "event": "end")')
    start = Start(**found)
    _check_integer("sample_rate_hz", start.sample_rate_hz, MIN_RATE_HZ, MAX_RATE_HZ)
    _check_integer("channels", start.channels, 1, MAX_CHANNELS)
    if not isinstance(start.encoding, str) or start.encoding not in ENCODINGS:
        raise ProtocolError(f"encoding: expected one of {', '.join(ENCODINGS)}, found {str(start.encoding)[:40]!r}")
    if not isinstance(start.model, str):
        raise ProtocolError(f"model: expected a name, found {type(start.model).__name__}")
    return start


def read_audio(data: bytes, start: Start) -> NDArray[np.generic]:
    """A binary message as samples ``(S, channels)``.

    Raises:
        ProtocolError: If it does not hold whole samples of all channels.
    """
    dtype = ENCODINGS[start.encoding]
    frame_bytes = dtype.itemsize * start.channels
    if len(data) % frame_bytes:
        raise ProtocolError(
            f"expected a multiple of {frame_bytes} bytes ({start.encoding}, {start.channels} channels), "
            f"found {len(data)} bytes"
        )
    return np.frombuffer(data, dtype=dtype).astype(dtype.newbyteorder("="), copy=False).reshape(-1, start.channels)


def write(message: Message) -> str:
    """One message to the client."""
    names: dict[type, str] = {Partial: "partial", WordHeard: "word", Final: "final", Progress: "progress"}
    if isinstance(message, Ended):
        return json.dumps({"event": "ended", "reason": message.reason})
    return json.dumps({"event": names[type(message)], **asdict(message)}, ensure_ascii=False)


def _check_integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ProtocolError(f"{name}: expected {low} to {high}, found {str(value)[:40]}")
