"""``asrkd transcribe``: files to text."""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from asrkd.cli.device import DeviceOption, choose_device
from asrkd.cli.progress import stages

if TYPE_CHECKING:
    from asrkd.models.base import Recogniser
    from asrkd.streaming.events import Final

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
BLOCK_S = 5.0
Format = Literal["text", "json"]


def transcribe(
    model: Annotated[
        Path, typer.Argument(help="Model package (a folder), as `asrkd train` and `asrkd demo` leave it.")
    ],
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Audio files, folders of them, or globs; wav, flac, ogg, opus, mp3."),
    ],
    streaming: Annotated[bool, typer.Option("--streaming", help="Print partial results as they come.")] = False,
    chunk_ms: Annotated[int | None, typer.Option(help="Chunk length; default: the model's own.", min=1)] = None,
    beam: Annotated[int, typer.Option(help="Width of the prefix beam search; 1: greedy.", min=1)] = 1,
    format: Annotated[
        Format, typer.Option(help="text: path, tab, transcript. json: one object a line with word times.")
    ] = "text",
    out: Annotated[Path | None, typer.Option(help="Write here instead of standard output.")] = None,
    device: DeviceOption = "auto",
) -> int:
    """Transcribe PATHs with the package MODEL, at any sample rate and channel count, in the order given.

    A file that cannot be read is one line on standard error; the others go on, and the exit code is 1 at the end.
    """
    from asrkd.data.files import write_atomically
    from asrkd.models import package

    files = list(_expand(paths))
    if not files:
        raise ValueError(f"PATH: expected audio files ({', '.join(SUFFIXES)}); found none in {', '.join(paths)}")
    hear = _hearer(package.load(model, choose_device(device)), chunk_ms, beam)
    lines, failed = [], 0
    with stages() as stage:
        report = stage("transcribe") if len(files) > 1 and not streaming else None
        for number, path in enumerate(files):
            try:
                finals = hear(path, _show_partial if streaming else None)
            except (ValueError, OSError) as error:
                failed += 1
                sys.stderr.write(f"asrkd: {_reason(path, error)}\n")
                continue
            lines.append(_line(path, finals, format))
            if out is None:
                sys.stdout.write(lines.pop() + "\n")
                sys.stdout.flush()
            if report is not None and sys.stderr.isatty():
                report(number + 1, len(files), "")
    if out is not None:
        write_atomically(out, "".join(line + "\n" for line in lines).encode())
    return 1 if failed else 0


Hear = Callable[[Path, Callable[[Any], None] | None], "list[Final]"]


def _hearer(model: Recogniser, chunk_ms: int | None, beam: int) -> Hear:
    """A function from a file to its final segments: streaming for a streaming model, whole utterances for others."""
    from asrkd.models.conformer import StreamingConformer

    if isinstance(model, StreamingConformer):
        return _streaming_hearer(model, chunk_ms, beam)
    if chunk_ms is not None:
        raise ValueError(f"--chunk-ms: this {model.kind} hears whole utterances; leave it out")
    return _whole_hearer(model, beam)


def _streaming_hearer(model: Recogniser, chunk_ms: int | None, beam: int) -> Hear:
    from asrkd.data.audio import stream_audio
    from asrkd.streaming.events import Final
    from asrkd.streaming.recognizer import Recognizer, RecognizerOptions

    chunk = None
    if chunk_ms is not None:
        frame_ms = 1000 * model.frame_shift_s
        if chunk_ms % round(frame_ms):
            raise ValueError(f"--chunk-ms: expected a multiple of the model's {frame_ms:g} ms frames; found {chunk_ms}")
        chunk = round(chunk_ms / frame_ms)
    recognizer = Recognizer(model, RecognizerOptions(chunk_frames=chunk, beam=beam))

    def hear(path: Path, show: Callable[[Any], None] | None) -> list[Final]:
        session = recognizer.session()
        finals = []
        for block in _batched_events(
            session, stream_audio(path, BLOCK_S if show is None else 0.1, model.sample_rate_hz)
        ):
            for event in block:
                if isinstance(event, Final):
                    finals.append(event)
                if show is not None:
                    show(event)
        return finals

    return hear


def _batched_events(session: Any, blocks: Iterator[Any]) -> Iterator[list[Any]]:
    for block in blocks:
        yield session.accept(block)
    yield session.finish()


def _whole_hearer(model: Recogniser, beam: int) -> Hear:
    import torch

    from asrkd.data.audio import read_audio
    from asrkd.decoding.ctc import greedy
    from asrkd.streaming.events import Final, words_of
    from asrkd.types import Frames

    if beam != 1:
        raise ValueError("--beam: a model that hears whole utterances is decoded greedily here; leave it out")
    device = model.feature_mean.device

    @torch.inference_mode()
    def hear(path: Path, show: Callable[[Any], None] | None) -> list[Final]:
        samples, info = read_audio(path, model.sample_rate_hz)
        audio = torch.from_numpy(samples)[None].to(device)
        features = model.features(audio, torch.tensor([audio.shape[1]], device=device))
        logits = model(features, chunk_frames=0).ctc_logits
        found = greedy(Frames(logits.values.log_softmax(-1), logits.lengths, logits.frame_shift_s), model.vocabulary)[0]
        text = model.tokenizer.decode(found.tokens)
        return [Final(text, words_of(found, model.tokenizer), 0.0, info.duration_s, "end")]

    return hear


def _expand(paths: list[str]) -> Iterator[Path]:
    """Files as given, those below folders, and those that a glob finds; each folder and glob sorted by name."""
    for given in paths:
        path = Path(given)
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        elif not path.exists() and glob.has_magic(given):
            yield from (Path(p) for p in sorted(glob.glob(given, recursive=True)) if Path(p).is_file())
        else:
            yield path


def _show_partial(event: Any) -> None:
    from asrkd.streaming.events import Partial

    if isinstance(event, Partial):
        sys.stdout.write(f"  {event.end_s:7.2f} s  {event.text}\n")
        sys.stdout.flush()


def _line(path: Path, finals: list[Final], format: Format) -> str:
    text = " ".join(final.text for final in finals if final.text)
    if format == "text":
        return f"{path}\t{text}"
    words = [
        {
            "word": w.text,
            "start_s": round(w.start_s, 3),
            "end_s": round(w.end_s, 3),
            "confidence": round(w.confidence, 4),
        }
        for final in finals
        for w in final.words
    ]
    return json.dumps({"path": str(path), "text": text, "words": words}, ensure_ascii=False)


def _reason(path: Path, error: ValueError | OSError) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text if str(path) in text else f"{path}: {text}"
