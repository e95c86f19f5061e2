"""LibriSpeech, whole or in part, and every corpus in its layout: ``<part>/<speaker>/<chapter>/*.trans.txt`` + audio.

Layout and parts: Panayotov et al. 2015, https://www.openslr.org/12 (and 31 for the mini parts).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from asrkd.data.audio import AUDIO_SUFFIXES
from asrkd.data.chapters import kind_of
from asrkd.data.corpora import Check, CorpusReport, Listing, Progress, Utterance, write_corpus

# Utterances of each part as published; a copy with fewer is told to be partial.
PUBLISHED_UTTERANCES = {
    "train-clean-100": 28539,
    "train-clean-360": 104014,
    "train-other-500": 148688,
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
    "train-clean-5": 1519,
    "dev-clean-2": 1089,
}
_MINI = ("train-clean-5", "dev-clean-2")


def prepare_librispeech(
    root: str | Path,
    out: str | Path,
    parts: Sequence[str] | None = None,
    *,
    check: Check = "full",
    jobs: int | None = None,
    progress: Progress | None = None,
) -> CorpusReport:
    """Prepares LibriSpeech or a corpus in its layout; partial copies are taken as they are.

    Args:
        root: Folder that holds the parts, or a ``LibriSpeech`` folder that does. Audio may be .flac, .opus, .ogg, .wav
            or .mp3 at any rate; it is resampled to 16 kHz when read.
        out: Folder for ``cuts_<part>.jsonl.gz`` and ``corpus.json``.
        parts: Names of parts; default: all there are.
        check: ``full`` decodes every file once; ``header`` reads headers only.
        jobs: Files looked at side by side; default: the number of cores.
        progress: Called with files done and their total, for each part.

    Returns:
        What was prepared, what could not be used (one line each), and what is missing.

    Raises:
        ValueError: If there is no such part, or nothing in one can be used.
    """
    root = _inner_root(Path(root))
    there = [folder.name for folder in sorted(root.iterdir()) if folder.is_dir() and _is_part(folder)]
    if not there:
        raise ValueError(f"{root}: no part found; expected folders <part>/<speaker>/<chapter>/ with *.trans.txt")
    wanted = list(parts) if parts else there
    for part in wanted:
        if part not in there:
            raise ValueError(f"{root}: no part {part!r}; found {', '.join(there)}")
    listings = {part: list_part(root / part) for part in wanted}
    made_here = kind_of(root)
    return write_corpus(
        out,
        made_here or "librispeech",
        root,
        {part: partial(listings.__getitem__, part) for part in wanted},
        check=check,
        jobs=jobs,
        progress=progress,
        notes=[] if made_here else _what_is_missing(there, listings, everything=not parts),
    )


def list_part(folder: Path) -> Listing:
    """Lists one part by its transcripts; what does not fit together becomes a problem line."""
    utterances: list[Utterance] = []
    problems: list[str] = []
    inputs: list[Path] = []
    for chapter in sorted(folder.glob("*/*"), key=lambda path: (path.parent.name, path.name)):
        if not chapter.is_dir() or chapter.name.startswith("."):
            continue
        files = sorted(path for path in chapter.iterdir() if path.is_file() and not path.name.startswith("."))
        inputs += files
        audio = {path.stem: path for path in files if path.suffix.lower() in AUDIO_SUFFIXES}
        conditions: dict[str, dict[str, float]] = {}
        for path in files:
            if path.name.endswith(".conditions.tsv"):
                conditions |= _read_conditions(path)
        transcribed = set()
        for path in files:
            if not path.name.endswith(".trans.txt"):
                continue
            for identity, text, problem in _read_transcripts(path):
                transcribed.add(identity)
                if problem is None and identity not in audio:
                    problem = f"{path}: {identity}: no audio file beside the transcript"
                if problem is not None:
                    problems.append(problem)
                    continue
                utterances.append(
                    Utterance(
                        id=identity,
                        audio=audio[identity],
                        text=text,
                        speaker=chapter.parent.name,
                        language="English",
                        custom=conditions.get(identity, {}),
                    )
                )
        problems += [f"{audio[stem]}: no transcript" for stem in sorted(set(audio) - transcribed)]
    return Listing(utterances, problems, inputs)


def _inner_root(root: Path) -> Path:
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    inner = root / "LibriSpeech"
    return inner if inner.is_dir() else root


def _is_part(folder: Path) -> bool:
    return next(folder.glob("*/*/*.trans.txt"), None) is not None


def _read_transcripts(path: Path) -> list[tuple[str, str, str | None]]:
    """Id, text and, for lines that cannot be used, the problem."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return [("", "", f"{path}: cannot be read as UTF-8 text: {error}")]
    found: list[tuple[str, str, str | None]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        identity, _, text = line.strip().partition(" ")
        problem = None if text.strip() else f"{path}: line {number}: no text after {identity}"
        found.append((identity, text.strip(), problem))
    return found


def _read_conditions(path: Path) -> dict[str, dict[str, float]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    try:
        return {row["id"]: {key: float(value) for key, value in row.items() if key != "id"} for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a column id and numbers in the others, found {error}") from None


def _what_is_missing(there: Sequence[str], listings: dict[str, Listing], everything: bool) -> list[str]:
    notes = []
    for part, listing in listings.items():
        found, published = len(listing.utterances), PUBLISHED_UTTERANCES.get(part, 0)
        if found < published:
            notes.append(f"{part}: {found} of {published} utterances: a partial copy")
    missing = [part for part in PUBLISHED_UTTERANCES if part not in there and part not in _MINI]
    if everything and missing:
        notes.append(f"parts of LibriSpeech that are not there: {', '.join(missing)}")
    return notes
