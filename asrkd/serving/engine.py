"""One model and many live streams: audio that waits is recognised in batches by one thread.

The thread takes from every stream that has audio a piece of at most one chunk, computes them together, and hands each
stream its events. So a client that uploads a file as fast as it can never delays one that speaks by more than a chunk's
work. Whoever sends faster than the model hears is made to wait (:meth:`Stream.feed`); whoever does not read what was
recognised is dropped, so that nothing grows without bound.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asrkd.streaming.events import Event, Partial
from asrkd.streaming.pcm import check_pcm
from asrkd.streaming.recognizer import Recognizer, Session

LOG = logging.getLogger(__name__)
MAX_PIECES = 1000
"""Messages that may wait in one stream, however short they are."""


class SlowReader(RuntimeError):
    """The client does not read its results."""


@dataclass(frozen=True)
class Limits:
    """What one client, and all of them, may ask for.

    Args:
        sessions: Streams at once, of all models.
        message_bytes: Of one WebSocket message.
        backlog_s: Audio that may wait for recognition in one stream, in seconds, before its sender has to wait.
        idle_s: A stream that brings nothing for so long is ended.
        session_s: A stream is ended after so much audio.
        outbox: Events that may wait to be sent to one client.

    Raises:
        ValueError: If one is not above 0.
    """

    sessions: int = 32
    message_bytes: int = 1 << 20
    backlog_s: float = 10.0
    idle_s: float = 30.0
    session_s: float = 4 * 3600.0
    outbox: int = 1000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name}: expected more than 0, found {value}")


@dataclass(frozen=True)
class Progress:
    """How far a stream is, told after each piece of work.

    Args:
        heard_s: Audio that came.
        decoded_s: Audio that was recognised.
        latency_ms: From the arrival of the newest audio of this piece of work to its result.
        rtf: This stream's share of computing time over its audio, so far.
    """

    heard_s: float
    decoded_s: float
    latency_ms: float
    rtf: float


@dataclass(frozen=True)
class Ended:
    """The last thing a stream says.

    Args:
        reason: ``finished``, or what went wrong in one line.
    """

    reason: str


Message = Event | Progress | Ended


@dataclass
class _Piece:
    samples: NDArray[np.generic]
    rate_hz: int
    arrived_s: float


class Stream:
    """One client's audio on its way in and events on their way out. Made by :meth:`Engine.open`, used on its loop."""

    def __init__(self, engine: Engine, session: Session, loop: asyncio.AbstractEventLoop) -> None:
        self._engine, self._loop = engine, loop
        self.session = session
        self.pieces: deque[_Piece] = deque()
        self.waiting_s = 0.0
        self.computed_s = 0.0
        self.decoded_s = 0.0
        self.fed_s = 0.0
        self.ending = False
        self.reason = "finished"
        self.closed = False
        self._outbox: deque[Message] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def feed(self, samples: NDArray[np.generic], rate_hz: int) -> None:
        """Add audio; waits while more than ``backlog_s`` are not recognised yet.

        Args:
            samples: ``(S,)`` or ``(S, channels)``; see :meth:`asrkd.streaming.pcm.PcmInput.accept`.
            rate_hz: Of the samples.

        Raises:
            ValueError: For audio that cannot be heard; the stream goes on unchanged.
        """
        check_pcm(samples, rate_hz)
        await self._room.wait()
        if self.ending or self.closed or not len(samples):
            return
        seconds = len(samples) / rate_hz
        self.fed_s += seconds
        with self._engine.condition:
            self.pieces.append(_Piece(samples, rate_hz, time.monotonic()))
            self.waiting_s += seconds
            if self.waiting_s > self._engine.limits.backlog_s or len(self.pieces) >= MAX_PIECES:
                self._room.clear()
            self._engine.condition.notify()

    def finish(self) -> None:
        """No more audio comes; what is left is recognised, and :class:`Ended` is the last message."""
        with self._engine.condition:
            self.ending = True
            self._engine.condition.notify()

    def abandon(self) -> None:
        """The client is gone: forget the stream at once."""
        self._engine.forget(self)

    async def next(self) -> Message:
        """The next message, in order.

        Raises:
            SlowReader: If too many were waiting; the stream is closed then.
        """
        while not self._outbox:
            if self.closed:
                return Ended("closed")
            self._news.clear()
            await self._news.wait()
        if len(self._outbox) > self._engine.limits.outbox:
            raise SlowReader(f"expected at most {self._engine.limits.outbox} unread results")
        return self._outbox.popleft()

    def deliver(self, messages: Sequence[Message], room: bool) -> None:
        """Called on the loop by the engine. A partial result or progress replaces an older one that nobody read."""
        for message in messages:
            if isinstance(message, (Partial, Progress)):
                self._drop_older(type(message))
            if len(self._outbox) <= self._engine.limits.outbox:
                self._outbox.append(message)
        if room:
            self._room.set()
        self._news.set()

    def _drop_older(self, kind: type[Partial] | type[Progress]) -> None:
        # Only among what came since the last event that must not be lost: the order of the others stays.
        for place in range(len(self._outbox) - 1, -1, -1):
            if isinstance(self._outbox[place], kind):
                del self._outbox[place]
                return
            if not isinstance(self._outbox[place], (Partial, Progress)):
                return

    def shut(self) -> None:
        """Called on the loop when the engine has let go of the stream."""
        self.closed = True
        self._room.set()
        self._news.set()


class Engine:
    """Runs one recogniser for many streams in a thread of its own.

    Args:
        recognizer: Used by this engine alone.
        limits: For each stream.
    """

    def __init__(self, recognizer: Recognizer, limits: Limits) -> None:
        self.recognizer, self.limits = recognizer, limits
        self.condition = threading.Condition()
        self.streams: set[Stream] = set()
        self.chunk_s = recognizer.chunk_frames * recognizer.model.frame_shift_s
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="asrkd-engine", daemon=True)
        self._thread.start()

    def open(self) -> Stream:
        """A new stream, on the running event loop."""
        stream = Stream(self, self.recognizer.session(), asyncio.get_running_loop())
        with self.condition:
            self.streams.add(stream)
        return stream

    def forget(self, stream: Stream) -> None:
        """Free what a stream holds; nothing happens if it is gone already."""
        with self.condition:
            self.streams.discard(stream)
            stream.pieces.clear()
        stream.shut()

    def stop(self) -> None:
        """End the thread after the piece of work at hand."""
        with self.condition:
            self._stopping = True
            self.condition.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self.condition:
                while not self._stopping and not any(s.pieces or s.ending for s in self.streams):
                    self.condition.wait()
                if self._stopping:
                    return
                turn = [(stream, self._take(stream)) for stream in self.streams if stream.pieces]
                ending = [stream for stream in self.streams if stream.ending and not stream.pieces]
            for rate_hz in sorted({piece.rate_hz for _, piece in turn}):
                self._hear([entry for entry in turn if entry[1].rate_hz == rate_hz], rate_hz)
            # A stream whose last audio was just heard ends in the next turn.
            heard_now = {id(stream) for stream, _ in turn}
            self._end([stream for stream in ending if id(stream) not in heard_now])

    def _take(self, stream: Stream) -> _Piece:
        """At most one chunk of what waits, of one rate and shape; the rest stays."""
        first = stream.pieces.popleft()
        taken, wanted = [first.samples], max(1, round(self.chunk_s * first.rate_hz)) - len(first.samples)
        arrived_s = first.arrived_s
        while wanted > 0 and stream.pieces:
            following = stream.pieces[0]
            same = following.samples.dtype == first.samples.dtype and following.samples.ndim == first.samples.ndim
            if following.rate_hz != first.rate_hz or not same:
                break
            stream.pieces.popleft()
            taken.append(following.samples)
            wanted -= len(following.samples)
            arrived_s = following.arrived_s
        if wanted < 0:
            last = taken[-1]
            taken[-1], rest = last[:wanted], last[wanted:]
            stream.pieces.appendleft(_Piece(rest, first.rate_hz, arrived_s))
        samples = np.concatenate(taken) if len(taken) > 1 else taken[0]
        stream.waiting_s = stream.waiting_s - len(samples) / first.rate_hz if stream.pieces else 0.0
        return _Piece(samples, first.rate_hz, arrived_s)

    def _hear(self, turn: Sequence[tuple[Stream, _Piece]], rate_hz: int) -> None:
        started_s = time.monotonic()
        try:
            heard = self.recognizer.accept(
                [stream.session for stream, _ in turn], [piece.samples for _, piece in turn], rate_hz
            )
        except Exception:  # a bug or no memory: these streams end, the others and the server go on
            LOG.exception("recognition failed")
            for stream, _ in turn:
                self._deliver(stream, [Ended("internal error of the recogniser")], last=True)
            return
        now_s = time.monotonic()
        share_s = (now_s - started_s) / len(turn)
        for (stream, piece), events in zip(turn, heard, strict=True):
            stream.computed_s += share_s
            stream.decoded_s += len(piece.samples) / rate_hz
            latency_ms = 1000 * (now_s - piece.arrived_s)
            rtf = stream.computed_s / max(stream.decoded_s, 1e-9)
            self._deliver(stream, [*events, Progress(stream.fed_s, stream.decoded_s, latency_ms, rtf)])
            if stream.decoded_s > self.limits.session_s:
                stream.ending, stream.reason = True, f"expected at most {self.limits.session_s:g} s of audio"

    def _end(self, streams: Sequence[Stream]) -> None:
        if not streams:
            return
        for stream, events in zip(streams, self.recognizer.finish([s.session for s in streams]), strict=True):
            self._deliver(stream, [*events, Ended(stream.reason)], last=True)

    def _deliver(self, stream: Stream, messages: Sequence[Message], last: bool = False) -> None:
        room = stream.waiting_s <= self.limits.backlog_s / 2 and len(stream.pieces) <= MAX_PIECES / 2
        _call(stream, lambda: stream.deliver(messages, room))
        if last:
            with self.condition:
                self.streams.discard(stream)
                stream.pieces.clear()
            _call(stream, stream.shut)


def _call(stream: Stream, function: Callable[[], None]) -> None:
    try:
        stream._loop.call_soon_threadsafe(function)
    except RuntimeError:
        # The loop was closed under us: the server is going down, and nobody is there to be told.
        stream.closed = True
