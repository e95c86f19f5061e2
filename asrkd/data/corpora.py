"""Prepared corpora: a folder with ``cuts_<part>.jsonl.gz`` (lhotse ``CutSet``) for each part, and ``corpus.json``.

Each kind of source (:mod:`asrkd.data.librispeech` and others) lists its utterances; :func:`write_corpus` checks their
audio, writes the cuts, and remembers from what, so that a second call with unchanged input has nothing to do.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import lhotse
import soundfile
from lhotse import CutSet, MonoCut, MultiCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.cut import Cut

import asrkd
from asrkd.data.audio import AudioInfo, audio_info, check_audio
from asrkd.data.batching import audio_files, read_cut
from asrkd.data.files import write_atomically

SAMPLE_RATE_HZ = 16000
_RECORD = "corpus.json"
_FORMAT = 1

Progress = Callable[[int, int], None]
Check = Literal["full", "header"]


@dataclass(frozen=True)
class Utterance:
    """One utterance as a source lists it.

    Args:
        id: Unique in its part.
        audio: File that holds it.
        text: Transcript; empty where there is none.
        speaker: Or ``None`` where not known.
        start_s: Where in the file it begins.
        end_s: Where it ends; ``None`` for the file's end.
        language: Name of the language, where known.
        custom: Further fields for the cut.
    """

    id: str
    audio: Path
    text: str
    speaker: str | None = None
    start_s: float = 0.0
    end_s: float | None = None
    language: str | None = None
    custom: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """What a source found in one part.

    Args:
        utterances: In the order in which the cuts are written; cuts where lhotse has described the audio already.
        problems: One line for each thing that could not be used, naming file and reason.
        inputs: Every file read for it or found beside: with sizes and times they tell whether anything changed.
    """

    utterances: Sequence[Utterance | Cut]
    problems: Sequence[str]
    inputs: Sequence[Path]


@dataclass(frozen=True)
class PartReport:
    """What became of one part.

    Args:
        cuts: File name of the cuts within the corpus folder.
        sha256: Of that file.
        utterances: Their number.
        speakers: Their number (0 where speakers are not known).
        duration_s: Sum over the utterances.
        fingerprint: Of the input it was made from.
        problems: One line each for what was left out.
    """

    cuts: str
    sha256: str
    utterances: int
    speakers: int
    duration_s: float
    fingerprint: str
    problems: tuple[str, ...]


@dataclass(frozen=True)
class CorpusReport:
    """What :func:`write_corpus` did.

    Args:
        folder: Of the prepared corpus.
        parts: Every part that was asked for.
        reused: Names of those that were there already, from the same input.
        notes: What is worth saying besides, as that parts are missing.
    """

    folder: Path
    parts: Mapping[str, PartReport]
    reused: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(problem for part in self.parts.values() for problem in part.problems)


def write_corpus(
    out: str | Path,
    kind: str,
    root: str | Path,
    parts: Mapping[str, Callable[[], Listing]],
    *,
    check: Check = "full",
    jobs: int | None = None,
    progress: Progress | None = None,
    notes: Sequence[str] = (),
) -> CorpusReport:
    """Turns listings into a prepared corpus, part by part; each part appears whole or not at all.

    Args:
        out: Folder of the prepared corpus; other parts in it stay.
        kind: Of the source, for the record.
        root: Of the source, for the record.
        parts: What gives each part's listing.
        check: ``full`` decodes every file once, so that damage is found now; ``header`` trusts what headers say.
        jobs: Files looked at side by side; default: the number of cores.
        progress: Called with the utterances looked at and their total, part by part.
        notes: Passed on to the report.

    Raises:
        ValueError: If nothing in a part can be used.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    record = _read_record(out)
    reports: dict[str, PartReport] = {}
    reused = []
    for name, listing_of in parts.items():
        listing = listing_of()
        fingerprint = _fingerprint(kind, check, listing)
        known = record["parts"].get(name)
        if known and known["fingerprint"] == fingerprint and _sha256(out / known["cuts"]) == known["sha256"]:
            reports[name] = PartReport(**{**known, "problems": tuple(known["problems"])})
            reused.append(name)
            continue
        reports[name] = _write_part(out, name, listing, fingerprint, check, jobs, progress, root)
        record["parts"][name] = asdict(reports[name])
        record |= {
            "format": _FORMAT,
            "kind": kind,
            "root": str(Path(root).resolve()),
            "versions": {
                "asrkd": asrkd.__version__,
                "lhotse": lhotse.__version__,
                "soundfile": soundfile.__version__,
                "libsndfile": soundfile.__libsndfile_version__,
            },
        }
        write_atomically(out / _RECORD, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    return CorpusReport(out, reports, tuple(reused), tuple(notes))


def corpus_parts(folder: str | Path) -> dict[str, PartReport]:
    """The parts of a prepared corpus.

    Raises:
        ValueError: If ``folder`` is none.
    """
    folder = Path(folder)
    if not (folder / _RECORD).is_file():
        raise ValueError(f"{folder}: no prepared corpus (no {_RECORD}); make one with `asrkd prepare`")
    parts = _read_record(folder)["parts"]
    return {name: PartReport(**{**part, "problems": tuple(part["problems"])}) for name, part in parts.items()}


def load_cuts(folder: str | Path, part: str) -> CutSet:
    """The cuts of one part of a prepared corpus, in memory.

    Raises:
        ValueError: If the folder is no prepared corpus or has no such part; the message names those it has.
    """
    parts = corpus_parts(folder)
    if part not in parts:
        raise ValueError(f"{folder}: no part {part!r}; it has {', '.join(parts) or 'none'}")
    path = Path(folder) / parts[part].cuts
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run `asrkd prepare` again")
    return CutSet.from_file(path).to_eager()


def _write_part(
    out: Path,
    name: str,
    listing: Listing,
    fingerprint: str,
    check: Check,
    jobs: int | None,
    progress: Progress | None,
    root: str | Path,
) -> PartReport:
    cuts, problems = _make_cuts(listing, check, jobs, progress)
    if not cuts:
        first = f"; the first: {problems[0]}" if problems else ""
        raise ValueError(f"{root}: part {name}: none of {len(listing.utterances)} utterances can be used{first}")
    path = out / f"cuts_{name}.jsonl.gz"
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as file:  # no time, no name: same in, same out
        for cut in cuts:
            file.write((json.dumps(cut.to_dict(), ensure_ascii=False) + "\n").encode())
    write_atomically(path, buffer.getvalue())
    return PartReport(
        cuts=path.name,
        sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
        utterances=len(cuts),
        speakers=len({cut.supervisions[0].speaker for cut in cuts} - {None}),
        duration_s=round(sum(cut.duration for cut in cuts), 3),
        fingerprint=fingerprint,
        problems=tuple(problems),
    )


def _make_cuts(
    listing: Listing, check: Check, jobs: int | None, progress: Progress | None
) -> tuple[list[Cut], list[str]]:
    """Looks at the audio of every utterance; gives the cuts of the good ones and a line for each bad one."""
    things = list(dict.fromkeys(u.audio if isinstance(u, Utterance) else u.id for u in listing.utterances))
    cuts_by_id = {u.id: u for u in listing.utterances if not isinstance(u, Utterance)}

    def try_to_look(thing: Path | str) -> AudioInfo | str | None:
        try:
            if isinstance(thing, Path):
                return check_audio(thing) if check == "full" else audio_info(thing)
            _look_at_cut(cuts_by_id[thing], check)
            return None
        except (OSError, ValueError) as error:
            return str(error)

    found: dict[Path | str, AudioInfo | str | None] = {}
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:  # libsndfile decodes without the interpreter lock
        for thing, result in zip(things, pool.map(try_to_look, things), strict=True):
            found[thing] = result
            if progress and (len(found) % 50 == 0 or len(found) == len(things)):
                progress(len(found), len(things))
    cuts: list[Cut] = []
    problems = list(listing.problems)
    seen: set[str] = set()
    for utterance in listing.utterances:
        result = found[utterance.audio if isinstance(utterance, Utterance) else utterance.id]
        if isinstance(result, str):
            problems.append(result)
        elif utterance.id in seen:
            problems.append(f"utterance {utterance.id}: the same id a second time")
        elif not isinstance(utterance, Utterance):
            cuts.append(utterance.resample(SAMPLE_RATE_HZ))
        elif result is not None and (problem := _wrong_times(utterance, result)):
            problems.append(problem)
        elif result is not None:
            cuts.append(_cut(utterance, result))
        seen.add(utterance.id)
    return cuts, list(dict.fromkeys(problems))


def _look_at_cut(cut: Cut, check: Check) -> None:
    """Raises if the audio of a cut that lhotse described cannot be read, or for ``header`` is not there."""
    if check == "full":
        read_cut(cut, SAMPLE_RATE_HZ)
    for path in audio_files(cut):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")


def _wrong_times(utterance: Utterance, info: AudioInfo) -> str | None:
    end_s = info.duration_s if utterance.end_s is None else utterance.end_s
    if 0.0 <= utterance.start_s < min(end_s, info.duration_s):
        return None
    return (
        f"{utterance.audio}: utterance {utterance.id}: from {utterance.start_s} to {utterance.end_s} s, "
        f"in a file of {info.duration_s:.2f} s"
    )


def _cut(utterance: Utterance, info: AudioInfo) -> Cut:
    whole = utterance.start_s == 0.0 and utterance.end_s is None
    channels = list(range(info.channels))
    recording = Recording(
        id=utterance.id if whole else str(utterance.audio),
        sources=[AudioSource(type="file", channels=channels, source=str(utterance.audio.resolve()))],
        sampling_rate=info.sample_rate_hz,
        num_samples=info.num_samples,
        duration=info.num_samples / info.sample_rate_hz,
    ).resample(SAMPLE_RATE_HZ)  # done when the audio is read
    start = utterance.start_s
    end = recording.duration if utterance.end_s is None else min(utterance.end_s, recording.duration)
    duration = recording.duration if whole else round(end - start, 8)
    channel: int | list[int] = 0 if info.channels == 1 else channels
    supervision = SupervisionSegment(
        id=utterance.id,
        recording_id=recording.id,
        start=0.0,
        duration=duration,
        channel=channel,
        text=utterance.text,
        language=utterance.language,
        speaker=utterance.speaker,
    )
    kind = MonoCut if info.channels == 1 else MultiCut
    return kind(
        id=utterance.id,
        start=start,
        duration=duration,
        channel=channel,
        supervisions=[supervision],
        recording=recording,
        custom=dict(utterance.custom) or None,
    )


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / _RECORD
    if not path.exists():
        return {"format": _FORMAT, "parts": {}}
    try:
        record = json.loads(path.read_text("utf-8"))
        if record["format"] != _FORMAT or not isinstance(record["parts"], dict):
            raise ValueError(f"format {record['format']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected format {_FORMAT} of asrkd's corpus record, found {error}") from None
    return record


def _fingerprint(kind: str, check: Check, listing: Listing) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {kind} {check} {len(listing.utterances)} {len(listing.problems)}".encode())
    files = set(listing.inputs)
    for utterance in listing.utterances:
        if isinstance(utterance, Utterance):
            files.add(utterance.audio)
        else:
            files.update(audio_files(utterance))
            digest.update(json.dumps(utterance.to_dict(), sort_keys=True).encode())
    for path in sorted(files):
        try:
            status = path.stat()
            digest.update(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{path}\0missing\n".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
