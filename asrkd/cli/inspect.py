"""``asrkd inspect``: what is in a targets store, and what a student could learn from it or from a teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asrkd.cli.device import DeviceOption, choose_device
from asrkd.cli.progress import stages

if TYPE_CHECKING:
    from lhotse.cut import Cut

    from asrkd.targets.inspect import Inspection
    from asrkd.targets.store import TargetsStore
    from asrkd.teachers.base import Teacher
    from asrkd.teachers.pair import Pair, Student
    from asrkd.types import TeacherTargets, Vocabulary

Rows = list[tuple[str, str]]


def inspect(
    subject: Annotated[
        str, typer.Argument(help="Folder of a targets store, or a teacher: a package's folder or KIND:NAME.")
    ],
    student: Annotated[
        Path | None, typer.Argument(help="Package or tokenizer folder: say what it could learn, and why no more.")
    ] = None,
    cuts: Annotated[
        list[Path] | None, typer.Option(help="Manifest (cuts_PART.jsonl.gz) for coverage and references.")
    ] = None,
    normaliser: Annotated[str, typer.Option(help="none, librispeech or whisper-english; of both texts.")] = "none",
    worst: Annotated[int, typer.Option(help="How many of the worst utterances to list.", min=0)] = 5,
    utterance: Annotated[str | None, typer.Option(help="Draw this utterance (needs --cuts and --picture).")] = None,
    picture: Annotated[Path | None, typer.Option(help="Where to: .png, .svg or .pdf.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Teacher package, or KIND:NAME: draw live posteriors beside the stored.")
    ] = None,
    nbest: Annotated[int | None, typer.Option(help="N-best length; a picture needs that of the labels.", min=0)] = None,
    beam: Annotated[int, typer.Option(help="Beam that the teacher labelled with.", min=1)] = 8,
    hidden: Annotated[list[str] | None, typer.Option(help="Hidden layer to ask a teacher for, e.g. layer.3.")] = None,
    decoder: Annotated[bool, typer.Option(help="Ask a teacher for its decoder's posteriors.")] = False,
    trust_code: Annotated[bool, typer.Option(help="Of a SpeechBrain folder, whose settings can run any code.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON instead of a table.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Figures of stored targets (coverage, bytes an hour, blanks, entropy, word errors), or what a TEACHER could teach a STUDENT.

    A store's every shard is tested first by its checksum; a damaged one is named.
    """
    from lhotse import CutSet

    from asrkd.targets.store import HEADER, TargetsStore

    if (utterance is None) != (picture is None):
        raise ValueError("--utterance, --picture: expected both or neither")
    wanted = [cut for path in cuts or [] for cut in CutSet.from_file(path)]
    if not (Path(subject) / HEADER).is_file():
        if wanted or picture is not None:
            raise ValueError(f"{subject}: --cuts and --picture are for targets; found no {HEADER} there")
        opened = _open(subject, 1 if nbest is None else nbest, beam, trust_code, device, tuple(hidden or ()), decoder)
        _show_teacher(subject, opened, student, as_json)
        return
    store = TargetsStore(subject)
    if utterance is not None and picture is not None:
        live = None
        if teacher is not None:
            live = _open(teacher, nbest or 0, beam, trust_code, device, tuple(store.layers), decoder)
        _draw(store, wanted, utterance, picture, live)
        return
    _show_store(store, wanted if cuts else None, student, normaliser, worst, as_json)


def _open(
    name: str, nbest: int, beam: int, trust_code: bool, device: str, hidden: tuple[str, ...], decoder: bool
) -> Teacher:
    from asrkd.teachers.config import open_teacher, parse_teacher

    spec = parse_teacher(name)
    wanted = {"trust_code": trust_code, "hidden": hidden, "decoder": decoder}
    known = type(spec).model_fields.keys()
    for key, value in wanted.items():
        if value and key not in known:
            raise ValueError(f"--{key.replace('_', '-')}: not of a teacher of kind {spec.kind}")
    spec = spec.model_copy(update={key: value for key, value in wanted.items() if value})
    return open_teacher(spec, device=choose_device(device), nbest=nbest, beam=beam)


def _student(folder: Path) -> Student:
    from asrkd.data.text import Tokenizer
    from asrkd.models.package import load
    from asrkd.teachers.pair import Student

    if (folder / "tokenizer.json").is_file():
        return Student(Tokenizer.load(folder))
    model = load(folder)
    return Student(model.tokenizer, model.frame_shift_s, model.has_decoder)


def _draw(store: TargetsStore, cuts: list[Cut], utterance: str, picture: Path, live: Teacher | None) -> None:
    from asrkd.targets.picture import draw_utterance

    cut = next((c for c in cuts if c.id == utterance), None)
    if cut is None:
        raise ValueError(f"--utterance: {utterance} is in none of the manifests of --cuts")
    draw_utterance(store, cut, picture, live)
    typer.echo(str(picture))


def _show_teacher(name: str, teacher: Teacher, folder: Path | None, as_json: bool) -> None:
    from asrkd.teachers.pair import compare_pair, probe

    said = probe(teacher)
    rows: Rows = [
        ("teacher", f"{type(teacher).__name__} {teacher.identity[:16]}"),
        ("hears", f"{teacher.sample_rate_hz} Hz"),
        ("tokens", _tokens(teacher.vocabulary)),
        ("gives", ", ".join(_given(said))),
    ]
    pair = None
    if folder is not None:
        student = _student(folder)
        pair = compare_pair(said, student)
        rows += [("student's tokens", _tokens(student.tokenizer.vocabulary)), *_pair_rows(pair)]
    if as_json:
        header = {"teacher": teacher.identity, "gives": _given(said), "frame_shift_s": teacher.frame_shift_s}
        header |= {"sample_rate_hz": teacher.sample_rate_hz, "tokens": len(teacher.vocabulary)}
        _print_json({"header": header, "student": None if pair is None else pair.as_dict()})
        return
    _print_table(name if folder is None else f"{name} → {folder}", rows)


def _given(said: TeacherTargets) -> list[str]:
    """The kinds of targets, each with its frame shift or width."""
    kinds = []
    if said.posteriors is not None:
        kinds.append(f"frame posteriors every {1000 * said.posteriors.frame_shift_s:g} ms")
    if said.nbest is not None:
        kinds.append("hypotheses")
    kinds += [f"{layer} ({frames.values.shape[2]} units)" for layer, frames in said.hidden.items()]
    return kinds + ["decoder posteriors"] * (said.decoder is not None)


def _tokens(vocabulary: Vocabulary) -> str:
    if len(vocabulary) == 1:
        return "none: text alone"
    return f"{len(vocabulary)}, blank {vocabulary.tokens[vocabulary.blank_id]!r}"


def _pair_rows(pair: Pair) -> Rows:
    rows = [("tokens match", f"{pair.found.relation}: {pair.found.reason}")]
    if pair.found.student_ids is None:
        unknown = f"{len(pair.unknown)} of the teacher's characters: {' '.join(pair.unknown[:20])}"
        rows.append(
            ("letters", f"targets.case: {pair.case}" + f"; the student cannot write {unknown}" * bool(pair.unknown))
        )
    return rows + [(level.name, f"{'yes' if level.possible else 'no'}: {level.reason}") for level in pair.levels]


def _show_store(
    store: TargetsStore,
    cuts: list[Cut] | None,
    folder: Path | None,
    normaliser: str,
    worst: int,
    as_json: bool,
) -> None:
    from asrkd.evaluation.normalise import normaliser as find_normaliser
    from asrkd.targets.inspect import inspect_store
    from asrkd.teachers.pair import compare_pair

    with stages() as stage:
        progress = stage(f"inspect {store.folder}")
        found = inspect_store(store, cuts, normalise=find_normaliser(normaliser), worst=worst, progress=progress)
    pair = None if folder is None else compare_pair(store.read(store.ids[:1]), _student(folder))
    if as_json:
        kept = ("teacher", "frame_shift_s", "sample_rate_hz", "codec", "declared_error", "hidden")
        header = {**{k: store.header[k] for k in kept if k in store.header}, "tokens": len(store.vocabulary)}
        _print_json({**found.as_dict(), "header": header, "student": None if pair is None else pair.as_dict()})
        return
    _print_table(str(store.folder), _store_rows(store, found) + (_pair_rows(pair) if pair is not None else []))
    for one in found.worst:
        typer.echo(
            f"{one.utterance}: {one.errors}/{one.words} wrong\n  said  {one.hypothesis}\n  reference  {one.reference}"
        )


def _store_rows(store: TargetsStore, found: Inspection) -> Rows:
    header = store.header
    coverage = "not asked (--cuts)"
    if found.covered is not None:
        coverage = f"{found.covered} of {found.asked} cuts" + (
            f"; missing {', '.join(found.missing)}" * bool(found.missing)
        )
    wer = "no references" if found.wer is None else f"{100 * found.wer:.2f} % of {found.reference_words} words"
    return [
        ("utterances", f"{found.utterances}, {found.hours:.2f} h"),
        ("coverage", coverage),
        ("teacher", header["teacher"][:16]),
        ("tokens", _tokens(store.vocabulary)),
        ("frames", f"{found.frames} of {1000 * store.frame_shift_s:g} ms"),
        ("codec", ", ".join(f"{key} {value}" for key, value in header["codec"].items())),
        ("declared error", header["declared_error"]),
        ("posteriors", f"{found.posterior_mb_per_hour:.3f} MB an hour"),
        ("N-best lists", f"{found.nbest_mb_per_hour:.3f} MB an hour, {found.hypotheses:.1f} hypotheses"),
        ("hidden states", f"{found.hidden_mb_per_hour:.3f} MB an hour: {_layers(store)}"),
        ("blank", f"{100 * found.blank_mass:.1f} % of mass, likeliest in {100 * found.blank_frames:.1f} % of frames"),
        ("entropy", f"{found.entropy_nats:.4f} nats a frame"),
        ("entries", f"{found.entries_per_frame:.2f} a frame; {100 * found.tail_mass:.3f} % of mass outside"),
        ("teacher's WER", wer),
    ]


def _layers(store: TargetsStore) -> str:
    shown = []
    for name, layer in store.layers.items():
        if store.quantisers is None:
            shown.append(f"{name} {layer.size} units as float16")
        else:
            shown.append(f"{name} {layer.size} codes, {100 * store.quantisers.errors[name]:.1f} % of variance lost")
    return ", ".join(shown) or "none"


def _print_json(values: dict[str, Any]) -> None:
    typer.echo(json.dumps(values, ensure_ascii=False))


def _print_table(title: str, rows: Rows) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("figure", "value", title=Text(title), show_header=False)
    for name, value in rows:
        table.add_row(name, Text(value))
    Console(highlight=False).print(table)
