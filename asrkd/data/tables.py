"""Corpora that come as lists: tables (TSV, CSV, JSON lines), SpeechBrain's CSV and JSON, Kaldi data directories."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asrkd.data.audio import AUDIO_SUFFIXES
from asrkd.data.corpora import Listing, Utterance

# Names that columns go by (lower case): in SpeechBrain's, NeMo's, Common Voice's and Hugging Face's tables.
COLUMN_NAMES = {
    "id": ("id", "utt_id", "utterance", "utterance_id", "key"),
    "audio": ("audio", "path", "wav", "file", "audio_filepath", "audio_path", "file_name", "filename"),
    "text": ("text", "transcript", "transcription", "sentence", "wrd", "words", "normalized_text", "label"),
    "speaker": ("speaker", "spk_id", "speaker_id", "client_id", "spk"),
    "start": ("start", "start_s", "offset"),
    "end": ("end", "end_s", "stop"),
    "duration": ("duration", "length", "duration_s"),
}
_ROOT_MARKS = ("{data_root}", "$data_root", "{root}")


@dataclass(frozen=True)
class TableOptions:
    """How to read a table whose columns do not speak for themselves.

    Args:
        columns: Names for the columns of a table without a header line, in their order.
        audio: Pattern of the audio path where no column holds it, as ``{speaker}/{id}.flac``.
        root: Folder that relative paths start from; default: the table's own.
    """

    columns: Sequence[str] = ()
    audio: str | None = None
    root: Path | None = None


def list_table(path: str | Path, options: TableOptions | None = None) -> Listing:
    """Lists the utterances of a table: ``.tsv``, ``.csv``, ``.jsonl``, or SpeechBrain's ``.json``.

    Columns are found by the names in :data:`COLUMN_NAMES`; needed are audio and text. ``start`` and ``end`` (or
    ``duration`` beside ``start``) cut a piece out of a longer file, in seconds.

    Raises:
        ValueError: If the file cannot be read as a table, or a column that is needed cannot be found.
    """
    path, options = Path(path), options or TableOptions()
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    utterances: list[Utterance] = []
    problems: list[str] = []
    root = options.root or path.parent
    for place, row in _rows(path, options):
        fields = _known_fields(row)
        if options.audio is not None:
            try:
                fields["audio"] = options.audio.format_map({**row, **fields})
            except (KeyError, IndexError, ValueError) as error:
                raise ValueError(f"{path}: audio pattern {options.audio!r}: no column {error}") from None
        for name in ("audio", "text"):
            if name not in fields:
                raise ValueError(
                    f"{path}: {place}: no column for {name}; expected one of {', '.join(COLUMN_NAMES[name])}; "
                    f"found {', '.join(map(str, row))}"
                )
        try:
            utterances.append(_utterance(fields, root, place))
        except ValueError as error:
            problems.append(f"{path}: {place}: {error}")
    return Listing(utterances, problems, [path])


def _rows(path: Path, options: TableOptions) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with the words that say where it stands."""
    suffix = path.suffix.lower()
    try:
        if suffix in (".tsv", ".csv", ".txt"):
            with path.open(encoding="utf-8-sig", newline="") as file:
                if suffix == ".csv":
                    reader = csv.DictReader(file, list(options.columns) or None, skipinitialspace=True)
                else:
                    names = list(options.columns) or None
                    reader = csv.DictReader(file, names, delimiter="\t", quoting=csv.QUOTE_NONE)
                for row in reader:
                    fields = {key.strip(): value for key, value in row.items() if key and value is not None}
                    yield f"line {reader.line_num}", fields
        elif suffix == ".jsonl":
            for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
                if line.strip():
                    yield f"line {number}", _as_row(json.loads(line))
        elif suffix == ".json":
            entries = json.loads(path.read_text("utf-8"))
            if isinstance(entries, Mapping):
                for key, entry in entries.items():
                    yield f"entry {key}", {"id": key, **_as_row(entry)}
            else:
                for number, entry in enumerate(entries):
                    yield f"entry {number}", _as_row(entry)
        else:
            raise ValueError(f"expected .tsv, .csv, .txt, .jsonl or .json, found {suffix or 'no ending'}")
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: {error}") from None


def _as_row(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object with names and values, found {entry!r}")
    return dict(entry)


def _known_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    lower = {key.lower(): value for key, value in row.items()}
    fields = {}
    for field, names in COLUMN_NAMES.items():
        for name in names:
            if lower.get(name) not in (None, ""):
                fields[field] = lower[name]
                break
            if name in lower and field == "text":
                fields[field] = ""
    return fields


def _utterance(fields: Mapping[str, Any], root: Path, place: str) -> Utterance:
    audio = fields["audio"]
    if not isinstance(audio, str):
        raise ValueError(f"audio: expected a path, found {audio!r}")
    for mark in _ROOT_MARKS:
        audio = audio.replace(mark, str(root))
    path = Path(audio)
    start_s = _number(fields, "start") or 0.0
    end_s = _number(fields, "end")
    duration_s = _number(fields, "duration")
    if end_s is None and "start" in fields and duration_s is not None:
        end_s = start_s + duration_s
    text = fields["text"]
    return Utterance(
        id=str(fields.get("id") or path.stem),
        audio=path if path.is_absolute() else root / path,
        text=" ".join(text) if isinstance(text, list) else str(text).strip(),
        speaker=str(fields["speaker"]) if "speaker" in fields else None,
        start_s=start_s,
        end_s=end_s,
    )


def _number(fields: Mapping[str, Any], name: str) -> float | None:
    if name not in fields:
        return None
    try:
        return float(fields[name])
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected seconds, found {fields[name]!r}") from None


def list_kaldi(folder: str | Path) -> Listing:
    """Lists a Kaldi data directory: ``wav.scp`` and ``text``, and ``segments`` and ``utt2spk`` where they are.

    No command of ``wav.scp`` is run: ``flac -c -d … FILE |`` is understood as the file itself, others are problems.
    Relative paths start from the working directory, as in Kaldi.

    Raises:
        ValueError: If ``wav.scp`` or ``text`` is missing or a line is malformed.
    """
    folder = Path(folder)
    recordings, problems = _wav_scp(folder / "wav.scp")
    texts = _two_columns(folder / "text")
    speakers = _two_columns(folder / "utt2spk") if (folder / "utt2spk").is_file() else {}
    segments: dict[str, tuple[str, float, float | None]]
    if (folder / "segments").is_file():
        segments = {}
        for identity, rest in _two_columns(folder / "segments").items():
            try:
                recording, start, end = rest.split()
                segments[identity] = (recording, float(start), float(end))
            except ValueError:
                raise ValueError(
                    f"{folder / 'segments'}: {identity}: expected recording, start and end, found {rest!r}"
                ) from None
    else:
        segments = {identity: (identity, 0.0, None) for identity in texts}
    utterances = []
    for identity, text in texts.items():
        recording, start_s, end_s = segments.get(identity, ("", 0.0, None))
        if recording not in recordings:
            if not any(f" {recording}:" in problem for problem in problems):
                problems.append(f"{folder}: {identity}: no audio in wav.scp")
            continue
        utterances.append(
            Utterance(identity, recordings[recording], text, speakers.get(identity), start_s=start_s, end_s=end_s)
        )
    names = ("wav.scp", "text", "utt2spk", "segments")
    return Listing(utterances, problems, [folder / name for name in names if (folder / name).is_file()])


def _wav_scp(path: Path) -> tuple[dict[str, Path], list[str]]:
    recordings: dict[str, Path] = {}
    problems: list[str] = []
    for identity, source in _two_columns(path).items():
        if not source.endswith("|"):
            recordings[identity] = Path(source)
            continue
        words = shlex.split(source.rstrip("| "))
        files = [word for word in words[1:] if word.lower().endswith(AUDIO_SUFFIXES)]
        if Path(words[0]).name == "flac" and len(files) == 1 and "|" not in words:
            recordings[identity] = Path(files[0])
        else:
            problems.append(f"{path}: {identity}: a command ({words[0]}), which is not run; expected a file")
    return recordings, problems


def _two_columns(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a Kaldi data directory with wav.scp and text")
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text: {error}") from None
    pairs = (line.strip().split(None, 1) for line in lines if line.strip())
    return {pair[0]: pair[1] if len(pair) > 1 else "" for pair in pairs}
