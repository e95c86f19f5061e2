"""``asrkd inspect``: what is in a targets store, and what a student could learn from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asrkd.cli.device import DeviceOption, choose_device
from asrkd.cli.progress import stages

if TYPE_CHECKING:
    from rich.table import Table

    from asrkd.targets.inspect import Inspection
    from asrkd.targets.store import TargetsStore


def inspect(
    targets: Annotated[Path, typer.Argument(help="Folder of a targets store.")],
    cuts: Annotated[
        list[Path] | None, typer.Option(help="Manifest (cuts_PART.jsonl.gz) for coverage and references.")
    ] = None,
    student: Annotated[Path | None, typer.Option(help="Model package: say what it could learn from these.")] = None,
    normaliser: Annotated[str, typer.Option(help="none, librispeech or whisper-english; of both texts.")] = "none",
    worst: Annotated[int, typer.Option(help="How many of the worst utterances to list.", min=0)] = 5,
    utterance: Annotated[str | None, typer.Option(help="Draw this utterance (needs --cuts and --picture).")] = None,
    picture: Annotated[Path | None, typer.Option(help="Where to: .png, .svg or .pdf.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Teacher package, or KIND:NAME: draw live posteriors beside the stored.")
    ] = None,
    nbest: Annotated[int, typer.Option(help="N-best length that the teacher labelled with.", min=0)] = 0,
    beam: Annotated[int, typer.Option(help="Beam that the teacher labelled with.", min=1)] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON instead of a table.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Check TARGETS and show its figures: coverage, bytes an hour, blanks, entropy, the teacher's word error rate.

    Every shard's checksum is tested first; a damaged one is named.
    """
    from lhotse import CutSet
    from rich.console import Console

    from asrkd.evaluation.normalise import normaliser as find_normaliser
    from asrkd.targets.inspect import inspect_store
    from asrkd.targets.store import TargetsStore

    if (utterance is None) != (picture is None):
        raise ValueError("--utterance, --picture: expected both or neither")
    store = TargetsStore(targets)
    wanted = [cut for path in cuts or [] for cut in CutSet.from_file(path)]
    if utterance is not None and picture is not None:
        from asrkd.targets.picture import draw_utterance
        from asrkd.teachers.config import open_teacher, parse_teacher

        cut = next((c for c in wanted if c.id == utterance), None)
        if cut is None:
            raise ValueError(f"--utterance: {utterance} is in none of the manifests of --cuts")
        live = None
        if teacher is not None:
            live = open_teacher(parse_teacher(teacher), device=choose_device(device), nbest=nbest, beam=beam)
        draw_utterance(store, cut, picture, live)
        typer.echo(str(picture))
        return
    with stages() as stage:
        found = inspect_store(
            store,
            wanted if cuts else None,
            normalise=find_normaliser(normaliser),
            worst=worst,
            progress=stage(f"inspect {targets}"),
        )
    pair = _pair(store, student)
    if as_json:
        typer.echo(json.dumps({**found.as_dict(), "header": _short_header(store), "student": pair}, ensure_ascii=False))
        return
    Console(highlight=False).print(_table(store, found, pair))
    for one in found.worst:
        typer.echo(
            f"{one.utterance}: {one.errors}/{one.words} wrong\n  said  {one.hypothesis}\n  reference  {one.reference}"
        )


def _pair(store: TargetsStore, student: Path | None) -> str | None:
    if student is None:
        return None
    from asrkd.models.package import load
    from asrkd.teachers.vocabulary import match

    found = match(store.vocabulary, load(student).vocabulary)
    return f"{found.relation}: {found.reason}"


def _short_header(store: TargetsStore) -> dict[str, object]:
    kept = ("teacher", "frame_shift_s", "sample_rate_hz", "codec", "declared_error")
    return {**{key: store.header[key] for key in kept}, "tokens": len(store.vocabulary)}


def _table(store: TargetsStore, found: Inspection, pair: str | None) -> Table:
    from rich.table import Table

    header = store.header
    codec = ", ".join(f"{key} {value}" for key, value in header["codec"].items())
    coverage = "not asked (--cuts)"
    if found.covered is not None:
        coverage = f"{found.covered} of {found.asked} cuts" + (
            f"; missing {', '.join(found.missing)}" * bool(found.missing)
        )
    wer = "no references" if found.wer is None else f"{100 * found.wer:.2f} % of {found.reference_words} words"
    rows = [
        ("utterances", f"{found.utterances}, {found.hours:.2f} h"),
        ("coverage", coverage),
        ("teacher", header["teacher"][:16]),
        ("tokens", f"{len(store.vocabulary)}, blank {store.vocabulary.tokens[store.vocabulary.blank_id]!r}"),
        ("frames", f"{found.frames} of {1000 * store.frame_shift_s:g} ms"),
        ("codec", codec),
        ("declared error", header["declared_error"]),
        ("posteriors", f"{found.posterior_mb_per_hour:.3f} MB an hour"),
        ("N-best lists", f"{found.nbest_mb_per_hour:.3f} MB an hour, {found.hypotheses:.1f} hypotheses"),
        ("hidden states", f"{found.hidden_mb_per_hour:.1f} MB an hour: {', '.join(store.layers) or 'none'}"),
        ("blank", f"{100 * found.blank_mass:.1f} % of mass, likeliest in {100 * found.blank_frames:.1f} % of frames"),
        ("entropy", f"{found.entropy_nats:.4f} nats a frame"),
        ("entries", f"{found.entries_per_frame:.2f} a frame; {100 * found.tail_mass:.3f} % of mass outside"),
        ("teacher's WER", wer),
    ]
    if pair is not None:
        rows.append(("student", pair))
    table = Table("figure", "value", title=str(store.folder), show_header=False)
    for row in rows:
        table.add_row(*row)
    return table
