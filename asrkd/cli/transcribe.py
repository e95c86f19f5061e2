"""``asrkd transcribe``: files, folders, globs or a pipe to text."""

from __future__ import annotations

import glob
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from asrkd.cli.device import DeviceOption, choose_device
from asrkd.cli.progress import stages
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

    from asrkd.models.base import Recogniser
    from asrkd.streaming.events import Event, Final
    from asrkd.streaming.recognizer import RecognizerOptions

PIPE = "-"
_BLOCK_S = 10.0
_LONG_S = 60.0


class Format(str, Enum):
    """How transcripts are written."""

    text = "text"
    json = "json"
    srt = "srt"
    vtt = "vtt"
    ctm = "ctm"


@dataclass(frozen=True)
class _Job:
    """What the command line asked for, checked."""

    model: Recogniser
    options: RecognizerOptions
    streaming: bool
    format: Format
    raw_rate_hz: int

    @property
    def block_s(self) -> float:
        """Audio read at a time: live, a chunk; else enough to fill the processor."""
        from asrkd.models.conformer import ChunkedConformer

        if not self.streaming or not isinstance(self.model, ChunkedConformer):
            return _BLOCK_S
        chunk = self.options.chunk_frames
        return (self.model.config.chunk_frames if chunk is None else chunk) * self.model.frame_shift_s


def transcribe(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL PATH...",
            help="The model package, then audio: files, folders, globs, or - for a pipe of WAV or raw 16-bit mono PCM.",
        ),
    ],
    model: Annotated[Path | None, typer.Option(help="The model package, in place of the first argument.")] = None,
    streaming: Annotated[bool, typer.Option("--streaming", help="Recognise live, with partial results.")] = False,
    chunk_ms: ChunkOption = None,
    beam: BeamOption = 1,
    lm: LmOption = None,
    lexicon: LexiconOption = None,
    lm_weight: LmWeightOption = 0.5,
    word_score: WordScoreOption = 0.0,
    hotwords: HotwordsOption = None,
    hotword_boost: BoostOption = 1.5,
    format: Annotated[Format, typer.Option(help="json: one object a line; ctm: one word a line.")] = Format.text,
    out: Annotated[
        Path | None, typer.Option(help="Write here, not to standard output; a folder for srt or vtt of several files.")
    ] = None,
    raw_rate_hz: Annotated[int, typer.Option(help="Rate of raw PCM from a pipe.")] = 16000,
    device: DeviceOption = "auto",
) -> int:
    """Write what is said in audio files: wav, flac, ogg, opus, mp3 at any rate and channel count, of any length.

    A file that cannot be read is one line on standard error; the others are transcribed all the same, and the exit code
    is 1. Example: asrkd transcribe exp/student recordings/ --format json
    """
    package, names = (str(model), paths) if model else (paths[0], paths[1:])
    names = find_audio(names)
    subtitles = format in (Format.srt, Format.vtt)
    if subtitles and len(names) > 1 and (out is None or (out.exists() and not out.is_dir())):
        raise ValueError(f"--format {format.value}: expected --out FOLDER for {len(names)} files")
    search: dict[str, Any] = {
        "beam": beam, "lm": lm, "lexicon": lexicon, "lm_weight": lm_weight, "word_score": word_score,
        "hotwords": hotwords, "hotword_boost": hotword_boost,
    }  # fmt: skip
    job = _prepare(package, streaming, chunk_ms, search, format, raw_rate_hz, choose_device(device))
    if out is None:
        return _to_standard_output(job, names)
    return _to_files(job, names, out, one_each=subtitles and len(names) > 1)


def find_audio(names: Sequence[str]) -> list[str]:
    """Audio files behind the arguments, in their order; a folder's and a glob's sorted by name.

    Raises:
        ValueError: If there is none, or a folder or a glob holds none.
    """
    from asrkd.data.audio import AUDIO_SUFFIXES

    if not names:
        raise ValueError("PATH: expected audio files after the model package, found none")
    found: list[str] = []
    for name in names:
        path = Path(name)
        if name == PIPE:
            found.append(name)
        elif path.is_dir():
            inside = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file())
            if not inside:
                raise ValueError(f"{name}: folder without audio files ({', '.join(AUDIO_SUFFIXES)})")
            found.extend(inside)
        elif glob.has_magic(name) and not path.exists():
            matched = sorted(p for p in glob.glob(name, recursive=True) if Path(p).is_file())
            if not matched:
                raise ValueError(f"{name}: no file matches")
            found.extend(matched)
        else:
            found.append(name)
    return found


def _prepare(
    package: str,
    streaming: bool,
    chunk_ms: int | None,
    search: dict[str, Any],
    format: Format,
    raw_rate_hz: int,
    device: str,
) -> _Job:
    from asrkd.models.conformer import ChunkedConformer
    from asrkd.models.package import load
    from asrkd.streaming.pcm import MAX_RATE_HZ, MIN_RATE_HZ
    from asrkd.streaming.recognizer import EndpointRules, RecognizerOptions, chunk_frames_of

    if not MIN_RATE_HZ <= raw_rate_hz <= MAX_RATE_HZ:
        raise ValueError(f"--raw-rate-hz: expected {MIN_RATE_HZ} to {MAX_RATE_HZ}, found {raw_rate_hz}")
    model = load(package, device)
    if not isinstance(model, ChunkedConformer) and (streaming or chunk_ms is not None):
        raise ValueError(f"--streaming, --chunk-ms: {package} is a {model.kind}, which hears whole utterances")
    chunk_frames = None if chunk_ms is None else chunk_frames_of(model, chunk_ms)
    # Subtitles and live results need segments; else a recording is one, so that no word is parted.
    segmented = streaming or format in (Format.srt, Format.vtt)
    endpoints = EndpointRules() if segmented else None
    found = search_options(model, **search)
    options = RecognizerOptions(chunk_frames=chunk_frames, endpoints=endpoints, partials=streaming, **found)
    return _Job(model, options, streaming, format, raw_rate_hz)


def _to_standard_output(job: _Job, names: Sequence[str]) -> int:
    try:
        return 0 if all(_transcribe_all(job, names, [sys.stdout] * len(names))) else 1
    except BrokenPipeError:
        # Whoever read us has enough (`| head`). Python would complain once more when it closes the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _to_files(job: _Job, names: Sequence[str], out: Path, one_each: bool) -> int:
    """One file for all, or a folder with one for each recording; nothing is replaced by the result of a failure."""
    from asrkd.data.files import write_atomically

    texts = [io.StringIO() for _ in names] if one_each else [io.StringIO()] * len(names)
    succeeded = _transcribe_all(job, names, texts)
    if one_each:
        out.mkdir(parents=True, exist_ok=True)
        stems = ["pipe" if name == PIPE else Path(name).stem for name in names]
        for place, (stem, text) in enumerate(zip(stems, texts, strict=True)):
            if succeeded[place]:
                same = stems[:place].count(stem)
                target = out / f"{stem}{f'.{same + 1}' if same else ''}.{job.format.value}"
                write_atomically(target, text.getvalue().encode())
    elif any(succeeded):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, texts[0].getvalue().encode())
    return 0 if all(succeeded) else 1


def _transcribe_all(job: _Job, names: Sequence[str], outputs: Sequence[TextIO]) -> list[bool]:
    """Transcribe in order; whether each went well."""
    succeeded = []
    # A bar would run through the live lines of a terminal.
    shown = sys.stderr.isatty() and not (job.streaming and sys.stdout.isatty())
    with stages() if shown else nullcontext() as stage:
        report = stage("transcribe") if stage is not None else lambda done, total, text: None
        progress = _Progress(names, report, shown)
        for name, output in zip(names, outputs, strict=True):
            try:
                _transcribe_one(job, name, output, progress)
                succeeded.append(True)
            except BrokenPipeError:
                raise
            except (ValueError, OSError) as error:
                succeeded.append(False)
                line = str(error) if str(error).startswith(f"{name}:") else f"{name}: {error}"
                sys.stderr.write(f"asrkd: {' '.join(line.split())}\n")
    return succeeded


def _transcribe_one(job: _Job, name: str, output: TextIO, progress: _Progress) -> None:
    from dataclasses import replace

    from asrkd.streaming import formats
    from asrkd.streaming.events import Final
    from asrkd.streaming.recognizer import EndpointRules
    from asrkd.streaming.transcribe import transcribe as recognise

    options = job.options
    if (
        (options.beam > 1 or options.lm is not None)
        and options.endpoints is None
        and progress.duration_s(name) > _LONG_S
    ):
        # A beam search keeps a segment's posteriors: a long recording needs segments to stay within memory.
        options = replace(options, endpoints=EndpointRules())
    live = job.streaming and job.format in (Format.text, Format.json)
    finals: list[Final] = []
    blocks = progress.count(_blocks(job, name), job.model.sample_rate_hz)
    for event in recognise(job.model, blocks, options):
        if isinstance(event, Final):
            finals.append(event)
        if live:
            _show(output, name, event, job.format is Format.json)
    duration_s = progress.last_s
    if not live:
        writers: dict[Format, Callable[[], str]] = {
            Format.text: lambda: formats.write_text(name, finals),
            Format.json: lambda: formats.write_json(name, finals, duration_s),
            Format.srt: lambda: formats.write_srt(finals),
            Format.vtt: lambda: formats.write_vtt(finals),
            Format.ctm: lambda: formats.write_ctm(name, finals),
        }
        output.write(writers[job.format]())
    output.flush()


def _show(output: TextIO, name: str, event: Event, as_json: bool) -> None:
    """One line an event; on a terminal a partial line is overwritten by the next."""
    from asrkd.streaming.events import Partial
    from asrkd.streaming.formats import write_event

    line = write_event(name, event, as_json)
    if output.isatty() and not as_json and line:
        line = f"\r\x1b[K{line.rstrip()}" + ("" if isinstance(event, Partial) else "\n")
    output.write(line)
    output.flush()


def _blocks(job: _Job, name: str) -> Iterator[NDArray[np.float32]]:
    from asrkd.data.audio import stream_audio
    from asrkd.streaming.pipe import read_pipe

    if name == PIPE:
        return read_pipe(sys.stdin.buffer, job.model.sample_rate_hz, job.raw_rate_hz, job.block_s)
    return stream_audio(name, job.block_s, job.model.sample_rate_hz)


class _Progress:
    """Seconds of audio done of all that the headers promise, and how many times faster than real time."""

    def __init__(self, names: Sequence[str], report: Callable[[int, int, str], None], shown: bool) -> None:
        self._report, self._names, self._shown = report, names, shown
        self._total_s = sum(self.duration_s(name) for name in names) if shown else 0.0
        self._done_s = 0.0
        self._started = time.monotonic()
        self.last_s = 0.0

    def duration_s(self, name: str) -> float:
        """What the header says; 0 for a pipe or a file that cannot be read (which is met when its turn comes)."""
        from asrkd.data.audio import audio_info

        try:
            return 0.0 if name == PIPE else audio_info(name).duration_s
        except (ValueError, OSError):
            return 0.0

    def count(self, blocks: Iterator[NDArray[np.float32]], rate_hz: int) -> Iterator[NDArray[np.float32]]:
        """Pass the blocks on, counting."""
        self.last_s = 0.0
        for block in blocks:
            yield block
            self.last_s += len(block) / rate_hz
            self._done_s += len(block) / rate_hz
            speed = self._done_s / max(time.monotonic() - self._started, 1e-6)
            self._report(round(self._done_s), max(round(self._total_s), round(self._done_s)), f"RTFx {speed:.0f}")
