"""The corpus ``spoken_digits``: sequences of digits put together from real recordings of single ones, one speaker left out.

The recordings are those of the Free Spoken Digit Dataset (https://github.com/Jakobovski/free-spoken-digit-dataset) or others
in its form: ``recordings/{digit}_{speaker}_{index}.wav``, or ``transcripts.tsv`` (id, speaker, word) with
``{speaker}/{id}.flac``. Parts are ``train`` and ``dev`` (different recordings of the same speakers) and ``test``, in which the
left-out speaker says each recording once. Levels and rooms stay as they were recorded.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asrkd.data.audio import AUDIO_SUFFIXES, read_audio
from asrkd.data.chapters import Job, claim, make_chapters, write_flac, write_lines
from asrkd.data.synthetic_digits import DIGITS, MAX_DIGITS, SAMPLE_RATE_HZ

Samples = NDArray[np.float32]

PARTS = ("train", "dev", "test")
_FORMAT = 1  # raise when the same seed would give other files
_DEV_SHARE = 0.1  # of the recordings of each digit by each speaker
_READINGS = {"train": 4, "dev": 1, "test": 1}  # sequences that a recording is in; once only where something is measured
_FADE_S, _QUIET_S = 0.005, 0.02
_NAME = re.compile(r"([0-9])_([A-Za-z][\w-]*)_(\d+)")


@dataclass(frozen=True)
class Recording:
    """One digit spoken by one speaker; ``samples`` ``(S,)`` at 8 kHz."""

    id: str
    speaker: str
    digit: int
    samples: Samples


@dataclass(frozen=True)
class Chapter:
    """The sequences of one speaker in one part, each a tuple of recordings."""

    part: str
    speaker: str
    sequences: tuple[tuple[Recording, ...], ...]

    @property
    def number(self) -> str:
        return str(PARTS.index(self.part) + 1)  # so that no utterance of one part is called like one of another


def compose(
    out: str | Path,
    root: str | Path,
    left_out: str,
    *,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Makes the corpus, or what is missing of it; killed at any moment, the same call continues.

    Args:
        out: Folder of the corpus; made if need be.
        root: Folder of the recordings.
        left_out: Speaker of the test part, who is in no other.
        seed: Of everything that is drawn.
        workers: Speakers made at the same time; default: the number of cores.
        progress: Called with the utterances done and their total, now and then.

    Returns:
        One line for each recording that cannot be used.

    Raises:
        ValueError: If there are no recordings, ``left_out`` is none of their speakers or the only one, or ``out`` holds another
            corpus.
    """
    out = Path(out)
    recordings, problems = read_recordings(Path(root))
    chapters = plan(recordings, left_out, seed)
    digest = hashlib.sha256()
    for recording in recordings:
        digest.update(f"{recording.id} {recording.speaker} {recording.digit} {len(recording.samples)}\n".encode())
        digest.update(recording.samples.tobytes())
    record = {"format": _FORMAT, "seed": seed, "left_out": left_out, "recordings_sha256": digest.hexdigest()}
    claim(out, "spoken_digits", record)
    jobs = [
        Job(c.part, c.speaker, c.number, len(c.sequences), partial(_make_chapter, c, (seed, number)))
        for number, c in enumerate(chapters)
    ]
    make_chapters(out, jobs, workers=workers, progress=progress)
    return problems


def plan(recordings: Sequence[Recording], left_out: str, seed: int) -> list[Chapter]:
    """Which recordings follow each other in which part.

    Raises:
        ValueError: If ``left_out`` is none of the speakers, or the only one.
    """
    of_speaker: dict[str, list[Recording]] = defaultdict(list)
    for recording in sorted(recordings, key=lambda recording: recording.id):
        of_speaker[recording.speaker].append(recording)
    if left_out not in of_speaker or len(of_speaker) < 2:
        raise ValueError(f"left-out speaker: expected one of two or more; found {left_out!r}, of {_names(of_speaker)}")
    chapters = []
    for number, (speaker, mine) in enumerate(sorted(of_speaker.items())):
        generator = np.random.default_rng([seed, number])
        parts = {"test": mine} if speaker == left_out else _split(mine, generator)
        chapters += [Chapter(part, speaker, _sequences(some, part, generator)) for part, some in parts.items()]
    return chapters


def _split(recordings: Sequence[Recording], generator: np.random.Generator) -> dict[str, list[Recording]]:
    """``_DEV_SHARE`` of each digit for ``dev``, the rest for ``train``; a digit said once is for ``train``."""
    parts: dict[str, list[Recording]] = {"train": [], "dev": []}
    for digit in range(10):
        same = [recording for recording in recordings if recording.digit == digit]
        order = generator.permutation(len(same))
        held = max(min(1, len(same) - 1), round(_DEV_SHARE * len(same)))
        parts["dev"] += [same[i] for i in order[:held]]
        parts["train"] += [same[i] for i in order[held:]]
    return {part: some for part, some in parts.items() if some}


def _sequences(
    recordings: Sequence[Recording], part: str, generator: np.random.Generator
) -> tuple[tuple[Recording, ...], ...]:
    sequences = []
    for _ in range(_READINGS[part]):
        row = [recordings[i] for i in generator.permutation(len(recordings))]
        while row:
            length = int(generator.integers(1, MAX_DIGITS + 1))
            sequences.append(tuple(row[:length]))
            row = row[length:]
    return tuple(sequences)


def _make_chapter(chapter: Chapter, seeds: tuple[int, int], folder: Path) -> None:
    generator = np.random.default_rng([*seeds, len(PARTS)])
    name = f"{chapter.speaker}-{chapter.number}"
    transcripts = []
    for number, sequence in enumerate(chapter.sequences):
        utterance = f"{name}-{number:04d}"
        samples = _joined([recording.samples for recording in sequence], generator)
        write_flac(folder / f"{utterance}.flac", samples, SAMPLE_RATE_HZ)
        transcripts.append(f"{utterance} {' '.join(DIGITS[recording.digit] for recording in sequence)}")
    write_lines(folder / f"{name}.trans.txt", transcripts)


def _joined(recordings: Sequence[Samples], generator: np.random.Generator) -> Samples:
    """The recordings one after the other, faded at the joints, over noise as quiet as their quietest moment."""
    noise_rms = min(map(_quietest_rms, recordings))
    pauses = [round(generator.uniform(0.05, 0.3) * SAMPLE_RATE_HZ) for _ in range(len(recordings) + 1)]
    total = sum(pauses) + sum(map(len, recordings))
    joined = (noise_rms * generator.standard_normal(total)).astype(np.float32)
    place = 0
    for pause, samples in zip(pauses, recordings, strict=False):
        place += pause
        fade = min(round(_FADE_S * SAMPLE_RATE_HZ), len(samples) // 2)
        window = np.ones(len(samples), np.float32)
        window[:fade] = np.linspace(0, 1, fade, endpoint=False)
        window[len(samples) - fade :] = np.linspace(1, 0, fade)
        joined[place : place + len(samples)] *= 1 - window
        joined[place : place + len(samples)] += window * samples
        place += len(samples)
    return joined


def _quietest_rms(samples: Samples) -> float:
    length = round(_QUIET_S * SAMPLE_RATE_HZ)
    starts = range(0, max(1, len(samples) - length + 1), length)
    return min(float(np.sqrt(np.mean(samples[start : start + length] ** 2))) for start in starts)


def read_recordings(root: Path) -> tuple[list[Recording], list[str]]:
    """Every recording below ``root``, by id, and one line for each that cannot be used.

    Raises:
        ValueError: If there is none.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; expected recordings of digits")
    table = root / "transcripts.tsv"
    found, problems = _listed(table) if table.is_file() else _named(root)
    recordings: dict[str, Recording] = {}
    for identity, speaker, digit, path in found:
        if identity in recordings:
            problems.append(f"{path}: recording {identity}: the same id a second time")
            continue
        try:
            samples, _ = read_audio(path, SAMPLE_RATE_HZ)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        recordings[identity] = Recording(identity, speaker, digit, samples)
    if not recordings:
        first = f"; the first: {problems[0]}" if problems else ""
        raise ValueError(
            f"{root}: expected transcripts.tsv, or {{digit}}_{{speaker}}_{{index}}.wav there or in recordings/; found no "
            f"recording that can be used{first}"
        )
    return [recordings[identity] for identity in sorted(recordings)], problems


def _listed(table: Path) -> tuple[list[tuple[str, str, int, Path]], list[str]]:
    """Id, speaker, digit and file of each line of a table, and the problems."""
    found, problems = [], []
    for number, line in enumerate(table.read_text("utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) != 3 or fields[2].upper() not in DIGITS or not all(map(_is_plain, fields[:2])):
            problems.append(f"{table}: line {number}: expected id, speaker and the word of a digit; found {line!r}")
            continue
        identity, speaker, word = fields
        beside = table.parent / speaker
        path = next((p for suffix in AUDIO_SUFFIXES if (p := beside / f"{identity}{suffix}").is_file()), None)
        found.append((identity, speaker, DIGITS.index(word.upper()), path or beside / f"{identity}.flac"))
    return found, problems


def _is_plain(name: str) -> bool:
    """Whether it can name a file or folder without leading anywhere else."""
    return re.fullmatch(r"\w[\w.-]*", name) is not None


def _named(root: Path) -> tuple[list[tuple[str, str, int, Path]], list[str]]:
    """The same from the names of files, as in the original data set."""
    folder = root / "recordings" if (root / "recordings").is_dir() else root
    found, problems = [], []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in AUDIO_SUFFIXES):
        match = _NAME.fullmatch(path.stem)
        if match is None:
            problems.append(f"{path}: expected a name as {{digit}}_{{speaker}}_{{index}}{path.suffix}")
        else:
            found.append((path.stem, match[2], int(match[1]), path))
    return found, problems


def _names(speakers: dict[str, list[Recording]]) -> str:
    return ", ".join(sorted(speakers))
