"""``asrkd prepare``: corpora of many kinds to cuts that everything else here reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asrkd.cli.progress import Report, stages

if TYPE_CHECKING:
    from asrkd.data.corpora import Check, CorpusReport, Progress

_PROBLEMS_SHOWN = 20

prepare = typer.Typer(
    name="prepare",
    help="Turn a corpus into a folder with lhotse cuts for each part and corpus.json. Run again, it does only what is "
    "new. Files that cannot be used are named, one line each, and the others prepared (exit status 1).",
    no_args_is_help=True,
)

OutOption = Annotated[Path, typer.Option("--out", help="Folder for the cuts and corpus.json.")]
PartsOption = Annotated[list[str] | None, typer.Option("--parts", help="Parts, by commas or repeated; default: all.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="Trust file headers; do not decode every file once.")]
JobsOption = Annotated[int | None, typer.Option("--jobs", min=1, help="Files looked at side by side.")]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Speakers made side by side; default: one a core.")
]
SharOption = Annotated[bool, typer.Option("--shar", help="Also write lhotse Shar (tar files) to OUT/shar/PART.")]


@prepare.command("librispeech")
def librispeech(
    root: Annotated[Path, typer.Option("--root", help="Folder with the parts, or with LibriSpeech/.")],
    out: OutOption,
    parts: PartsOption = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch missing parts to ROOT first (OpenSLR).")] = False,
    shar: SharOption = False,
    quick: QuickOption = False,
    jobs: JobsOption = None,
) -> None:
    """LibriSpeech, whole or in part, or any corpus laid out like it (part/speaker/chapter/*.trans.txt + audio)."""
    from asrkd.data.download import disk_need_bytes, download_librispeech
    from asrkd.data.librispeech import prepare_librispeech

    wanted = _split(parts)
    with stages() as stage:
        if download:
            if need := disk_need_bytes(root, wanted):
                typer.echo(f"download: needs up to {need / 1e9:.1f} GB of disk in {root}", err=True)
            download_librispeech(root, wanted, progress=lambda part: _bytes(stage(f"download {part}")))
        report = prepare_librispeech(
            root, out, wanted, check=_check(quick), jobs=jobs, progress=_files(stage("check audio"))
        )
    _finish(report, shar, jobs)


@prepare.command("spoken_numbers")
def spoken_numbers(
    out: Annotated[Path, typer.Option("--out", help="Folder for the cuts; the audio goes to OUT/audio.")],
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    train_minutes: Annotated[float, typer.Option(help="Speech in train, about.")] = 100.0,
    dev_minutes: Annotated[float, typer.Option(help="Speech in dev, about.")] = 4.0,
    test_minutes: Annotated[float, typer.Option(help="Speech in test-clean, and in test-other, about.")] = 14.0,
    workers: Annotated[int, typer.Option(min=1, help="Speakers made side by side.")] = 2,
) -> None:
    """Synthetic number phrases in many voices, rooms and noises (espeak-ng; nothing is downloaded)."""
    from asrkd.data.librispeech import prepare_librispeech
    from asrkd.data.spoken_numbers import synthesise

    with stages() as stage:
        audio = synthesise(
            out / "audio",
            seed=seed,
            train_minutes=train_minutes,
            dev_minutes=dev_minutes,
            test_minutes=test_minutes,
            workers=workers,
            progress=_files(stage("synthesise")),
        )
        report = prepare_librispeech(audio, out, check="header", progress=_files(stage("check audio")))
    _finish(report)


@prepare.command("read_speech")
def read_speech(
    text: Annotated[Path, typer.Option("--text", help="Text file with one sentence a line.")],
    hours: Annotated[float, typer.Option("--hours", help="Speech in train, about.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the cuts; the audio goes to OUT/audio.")],
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    dev_minutes: Annotated[float, typer.Option(help="Speech in dev, about.")] = 10.0,
    test_minutes: Annotated[float, typer.Option(help="Speech in test-clean, and in test-other, about.")] = 30.0,
    workers: WorkersOption = None,
) -> None:
    """Synthetic read speech: any text read out by espeak-ng in many voices, rooms and noises (nothing is downloaded)."""
    from asrkd.data.librispeech import prepare_librispeech
    from asrkd.data.read_speech import synthesise

    with stages() as stage:
        sentences = synthesise(
            out / "audio",
            text,
            hours=hours,
            dev_minutes=dev_minutes,
            test_minutes=test_minutes,
            seed=seed,
            workers=workers,
            progress=_files(stage("synthesise")),
        )
        report = prepare_librispeech(out / "audio", out, check="header", progress=_files(stage("check audio")))
    notes = [f"{text}: {count} lines left out: {reason}" for reason, count in sentences.left_out.items()]
    _finish(replace(report, notes=(*notes, *report.notes)))


@prepare.command("spoken_digits")
def spoken_digits(
    root: Annotated[Path, typer.Option("--root", help="Recordings in the form of the Free Spoken Digit Dataset.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the cuts; the audio goes to OUT/audio.")],
    left_out: Annotated[str, typer.Option("--left-out", help="Speaker of the test part, who is in no other.")],
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    workers: WorkersOption = None,
) -> None:
    """Sequences of digits from real recordings of single ones, one speaker left out."""
    from asrkd.data.librispeech import prepare_librispeech
    from asrkd.data.spoken_digits import compose

    with stages() as stage:
        problems = compose(
            out / "audio", root, left_out, seed=seed, workers=workers, progress=_files(stage("put together"))
        )
        report = prepare_librispeech(out / "audio", out, check="header", progress=_files(stage("check audio")))
    _finish(report, problems=problems)


@prepare.command("synthetic_digits")
def synthetic_digits(
    out: Annotated[Path, typer.Option("--out", help="Folder for the cuts; the audio goes to OUT/audio.")],
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    train_minutes: Annotated[float, typer.Option(help="Speech in train, about.")] = 60.0,
    dev_minutes: Annotated[float, typer.Option(help="Speech in dev, about.")] = 3.0,
    workers: WorkersOption = None,
) -> None:
    """Synthetic sequences of digits (espeak-ng), to pre-train on where real ones are few."""
    from asrkd.data.librispeech import prepare_librispeech
    from asrkd.data.synthetic_digits import synthesise

    with stages() as stage:
        audio = synthesise(
            out / "audio",
            seed=seed,
            train_minutes=train_minutes,
            dev_minutes=dev_minutes,
            workers=workers,
            progress=_files(stage("synthesise")),
        )
        report = prepare_librispeech(audio, out, check="header", progress=_files(stage("check audio")))
    _finish(report)


@prepare.command("lhotse")
def with_lhotse(
    name: Annotated[str, typer.Argument(help="lhotse's name of the corpus; `list` shows all.")],
    root: Annotated[Path | None, typer.Option("--root", help="The corpus folder.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the cuts and corpus.json.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="KEY=VALUE for lhotse's recipe; can be repeated.")
    ] = None,
    shar: SharOption = False,
    quick: QuickOption = False,
    jobs: JobsOption = None,
) -> None:
    """Any corpus that lhotse has a recipe for."""
    import yaml

    from asrkd.data.lhotse_recipes import prepare_with_lhotse, recipe_names

    if name == "list":
        typer.echo("\n".join(recipe_names()))
        return
    if out is None:
        raise ValueError("--out: expected a folder for the prepared corpus, found none")
    options = {}
    for text in option or ():
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--option: expected KEY=VALUE, found {text!r}")
        options[key] = yaml.safe_load(value)
    with stages() as stage:
        report = prepare_with_lhotse(
            name, root, out, options, check=_check(quick), jobs=jobs, progress=_files(stage("check audio"))
        )
    _finish(report, shar, jobs)


@prepare.command("table")
def table(
    files: Annotated[list[Path], typer.Argument(help="TSV, CSV, JSON lines, SpeechBrain CSV/JSON; each one a part.")],
    out: OutOption,
    root: Annotated[Path | None, typer.Option("--root", help="Where relative paths start; default: the table.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="Column names by commas, for a table without a header line.")
    ] = None,
    audio: Annotated[
        str | None, typer.Option(help="Pattern of the audio path, if no column holds it: '{speaker}/{id}.flac'.")
    ] = None,
    shar: SharOption = False,
    quick: QuickOption = False,
    jobs: JobsOption = None,
) -> None:
    """Tables of audio paths and texts. A part is called after its file."""
    from asrkd.data.corpora import write_corpus
    from asrkd.data.tables import TableOptions, list_table

    options = TableOptions(tuple(columns.split(",")) if columns else (), audio, root)
    parts = {file.stem: (lambda file=file: list_table(file, options)) for file in files}
    if len(parts) < len(files):
        raise ValueError(f"tables: expected different names, found {', '.join(file.name for file in files)}")
    with stages() as stage:
        report = write_corpus(
            out, "table", files[0].parent, parts, check=_check(quick), jobs=jobs, progress=_files(stage("check audio"))
        )
    _finish(report, shar, jobs)


@prepare.command("kaldi")
def kaldi(
    folders: Annotated[list[Path], typer.Argument(help="Data directories with wav.scp and text; each one a part.")],
    out: OutOption,
    shar: SharOption = False,
    quick: QuickOption = False,
    jobs: JobsOption = None,
) -> None:
    """Kaldi data directories. Commands in wav.scp are not run; flac's decoding is understood as its file."""
    from asrkd.data.corpora import write_corpus
    from asrkd.data.tables import list_kaldi

    parts = {folder.resolve().name: (lambda folder=folder: list_kaldi(folder)) for folder in folders}
    if len(parts) < len(folders):
        raise ValueError(f"folders: expected different names, found {', '.join(map(str, folders))}")
    with stages() as stage:
        report = write_corpus(
            out, "kaldi", folders[0], parts, check=_check(quick), jobs=jobs, progress=_files(stage("check audio"))
        )
    _finish(report, shar, jobs)


def _finish(report: CorpusReport, shar: bool = False, jobs: int | None = None, problems: Sequence[str] = ()) -> None:
    """Says what was prepared, what is missing and what could not be used."""
    from asrkd.data.shar import write_shar

    for line in report.notes:
        typer.echo(f"note: {line}", err=True)
    lines = (*problems, *report.problems)
    for line in lines[:_PROBLEMS_SHOWN]:
        typer.echo(f"left out: {line}", err=True)
    if (rest := len(lines) - _PROBLEMS_SHOWN) > 0:
        where = "" if problems else f", listed in {report.folder / 'corpus.json'}"
        typer.echo(f"left out: {rest} more{where}", err=True)
    for name, part in report.parts.items():
        if shar:
            write_shar(report.folder, name, jobs=jobs or 1)
        speakers = f", {part.speakers} speakers" if part.speakers else ""
        there = " (already there)" if name in report.reused else ""
        hours = f"{part.duration_s / 3600:.2f} h"
        typer.echo(f"{report.folder / part.cuts}: {part.utterances} utterances{speakers}, {hours}{there}")
    if lines:
        raise typer.Exit(1)


def _check(quick: bool) -> Check:
    return "header" if quick else "full"


def _split(parts: list[str] | None) -> list[str] | None:
    return [name for text in parts for name in text.split(",") if name] if parts else None


def _files(report: Report) -> Progress:
    return lambda done, total: report(done, total, "")


def _bytes(report: Report) -> Progress:
    return lambda done, total: report(done >> 20, total >> 20, "MiB")
