"""``asrkd listen``: the microphone to text, live."""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asrkd.cli.device import DeviceOption, choose_device
from asrkd.cli.search import (
    BeamOption,
    BoostOption,
    ChunkOption,
    HotwordsOption,
    LexiconOption,
    LmOption,
    LmWeightOption,
    WordScoreOption,
    search_options,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from asrkd.streaming.recognizer import Session

BLOCK_S = 0.04
BACKLOG_BLOCKS = 500
_METER = 20


@dataclass(frozen=True)
class Block:
    """What the microphone heard at a time.

    Args:
        samples: ``(S,)`` int16.
        arrived_s: Of ``time.monotonic``.
        lost: Whether samples before these were lost.
    """

    samples: NDArray[np.int16]
    arrived_s: float
    lost: bool = False


def listen(
    package: Annotated[str, typer.Argument(help="Model package of a streaming student.")],
    microphone: Annotated[
        str | None, typer.Option(help="Name or number of the input; the system's if left out.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Stop after so long; else Ctrl-C stops.")] = None,
    chunk_ms: ChunkOption = None,
    beam: BeamOption = 1,
    lm: LmOption = None,
    lexicon: LexiconOption = None,
    lm_weight: LmWeightOption = 0.5,
    word_score: WordScoreOption = 0.0,
    hotwords: HotwordsOption = None,
    hotword_boost: BoostOption = 1.5,
    device: DeviceOption = "auto",
) -> None:
    """Write what is said into the microphone: partial results grey, level and latency below; a line a segment in a pipe."""
    from asrkd.models.package import load
    from asrkd.streaming.recognizer import Recognizer, RecognizerOptions, chunk_frames_of

    _sounddevice()
    model = load(package, choose_device(device))
    search = search_options(
        model, beam=beam, lm=lm, lexicon=lexicon, lm_weight=lm_weight, word_score=word_score, hotwords=hotwords,
        hotword_boost=hotword_boost,
    )  # fmt: skip
    chunk_frames = None if chunk_ms is None else chunk_frames_of(model, chunk_ms)
    recognizer = Recognizer(model, RecognizerOptions(chunk_frames=chunk_frames, **search))
    with _microphone(microphone) as (blocks, rate_hz), _screen() as show:
        hear(_until(blocks, seconds), rate_hz, recognizer.session(), show)


def hear(blocks: Iterable[Block], rate_hz: int, session: Session, show: Callable[[str, str, str], None]) -> None:
    """Recognise blocks as they come.

    Args:
        blocks: From a microphone.
        rate_hz: Of their samples.
        session: Of a recogniser.
        show: Takes the text of a segment that ended (or nothing), the partial text, and a status line.
    """
    import numpy as np

    from asrkd.streaming.events import Final, Partial

    partial, heard_s, busy_s, lost = "", 0.0, 0.0, 0
    for block in blocks:
        started = time.monotonic()
        events = session.accept(block.samples, rate_hz)
        now = time.monotonic()
        heard_s += len(block.samples) / rate_hz
        busy_s += now - started
        lost += block.lost
        for event in events:
            if isinstance(event, Partial):
                partial = event.text
            elif isinstance(event, Final):
                partial = ""
                show(event.text, "", "")
        level = float(np.sqrt(np.mean(np.square(block.samples / 32768.0)))) if len(block.samples) else 0.0
        filled = min(_METER, round(4 * level * _METER))
        status = (
            f"[{'#' * filled}{'.' * (_METER - filled)}] latency {1000 * (now - block.arrived_s):.0f} ms, "
            f"RTF {busy_s / max(heard_s, 1e-9):.3f}, {heard_s:.0f} s" + (f", lost audio {lost} times" if lost else "")
        )
        show("", partial, status)
    for event in session.finish():
        if isinstance(event, Final) and event.text:
            show(event.text, "", "")


def _until(blocks: Iterator[Block], seconds: float | None) -> Iterator[Block]:
    """Blocks until the time is over or Ctrl-C."""
    ends = None if seconds is None else time.monotonic() + seconds
    try:
        for block in blocks:
            yield block
            if ends is not None and time.monotonic() >= ends:
                return
    except KeyboardInterrupt:
        return


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError:
        raise ValueError("listen: sounddevice is not installed: pip install 'asrkd[mic]'") from None
    except OSError as error:
        raise ValueError(f"listen: no microphone: {error} (Debian: apt install libportaudio2)") from None
    return sounddevice


@contextmanager
def _microphone(name: str | None) -> Iterator[tuple[Iterator[Block], int]]:
    """Blocks of the microphone at its own rate.

    Raises:
        ValueError: Where there is none, with the names of those there are.
    """
    import numpy as np

    sd = _sounddevice()
    chosen: str | int | None = int(name) if name is not None and name.isdigit() else name
    try:
        rate_hz = int(sd.query_devices(chosen, "input")["default_samplerate"])
    except (ValueError, sd.PortAudioError) as error:
        known = [f"{i}: {d['name']}" for i, d in enumerate(sd.query_devices()) if d["max_input_channels"] > 0]
        raise ValueError(f"listen: no microphone: {error} (known: {'; '.join(known) or 'none'})") from None
    waiting: queue.Queue[Block] = queue.Queue(BACKLOG_BLOCKS)
    dropped = [False]

    def take(data: Any, frames: int, times: Any, status: Any) -> None:
        lost = dropped[0] or bool(status.input_overflow)
        try:
            waiting.put_nowait(Block(np.frombuffer(bytes(data), np.int16), time.monotonic(), lost))
            dropped[0] = False
        except queue.Full:
            dropped[0] = True  # the model is too slow for real time: said with the next block that fits

    def blocks() -> Iterator[Block]:
        while True:
            yield waiting.get()

    try:
        stream = sd.RawInputStream(
            samplerate=rate_hz,
            blocksize=round(BLOCK_S * rate_hz),
            device=chosen,
            channels=1,
            dtype="int16",
            callback=take,
        )
    except sd.PortAudioError as error:
        raise ValueError(f"listen: no microphone: {error}") from None
    with stream:
        yield blocks(), rate_hz


@contextmanager
def _screen() -> Iterator[Callable[[str, str, str], None]]:
    """On a terminal a living last line; elsewhere only the text of segments."""
    if not sys.stdout.isatty():

        def plain(final: str, partial: str, status: str) -> None:
            if final:
                sys.stdout.write(f"{final}\n")
                sys.stdout.flush()

        yield plain
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console = Console()
    with Live(console=console, refresh_per_second=15, transient=True) as live:

        def lively(final: str, partial: str, status: str) -> None:
            if final:
                console.print(Text(final))
            live.update(Group(Text(partial, style="dim italic"), Text(status, style="dim")))

        yield lively
