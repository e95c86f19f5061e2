"""Synthetic corpora: texts spoken by espeak-ng in made-up rooms with noise, in LibriSpeech's layout.

Beside the transcripts of each chapter lies ``<speaker>-<chapter>.conditions.tsv``: signal-to-noise ratio, reverberation time,
direct-to-reverberant ratio and the slope of the noise, of each utterance. Every file is a function of the seed and the
chapters alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soxr
import torch
from torch.nn import functional

from asrkd.data.acoustics import add_noise_at_snr, coloured_noise, reverberate, room_impulse_response
from asrkd.data.chapters import Job, make_chapters, write_flac, write_lines
from asrkd.data.files import write_atomically
from asrkd.data.voices import Samples, Voice, speak

PAUSES = ",;:.?!"  # spoken as pauses, not written in transcripts


@dataclass(frozen=True)
class Conditions:
    """Ranges from which each utterance's conditions are drawn evenly; the level is the root mean square."""

    snr_db: tuple[float, float]
    rt60_s: tuple[float, float]
    direct_to_reverberant_db: tuple[float, float]
    level_dbfs: tuple[float, float] = (-30.0, -20.0)


CONDITIONS = {
    "train": Conditions((8.0, 30.0), (0.05, 0.5), (2.0, 18.0)),
    "dev": Conditions((10.0, 30.0), (0.05, 0.5), (3.0, 18.0)),
    "test-clean": Conditions((20.0, 30.0), (0.05, 0.25), (10.0, 18.0)),
    "test-other": Conditions((8.0, 15.0), (0.25, 0.5), (2.0, 8.0)),
}


@dataclass(frozen=True)
class Chapter:
    """All that one speaker says in one part.

    Args:
        part: Of the corpus.
        speaker: Number of the speaker, unique in the corpus.
        chapter: Number of the chapter.
        voice: Who speaks.
        texts: In upper case; ``PAUSES`` may stand in them.
        conditions: Under which they are heard.
    """

    part: str
    speaker: int
    chapter: int
    voice: Voice
    texts: tuple[str, ...]
    conditions: Conditions

    @property
    def name(self) -> str:
        return f"{self.speaker}-{self.chapter}"


def transcript(text: str) -> str:
    """``text`` without the marks of its pauses."""
    return " ".join(text.translate(dict.fromkeys(map(ord, PAUSES), " ")).split())


def make_corpus(
    out: Path,
    chapters: Sequence[Chapter],
    *,
    seed: int,
    sample_rate_hz: int = 16000,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Speaks all chapters, or those that are missing; killed at any moment, the same call continues.

    Args:
        out: Folder of the corpus, claimed already.
        chapters: Who says what in each part.
        seed: Of the rooms and noises.
        sample_rate_hz: Of the files.
        workers: Chapters made at the same time, each by its own espeak-ng process; default: the number of cores.
        progress: Called with the utterances done and their total, now and then.

    Raises:
        OSError: If espeak-ng cannot be started or a file cannot be written.
    """
    write_atomically(out / "SPEAKERS.TXT", _speakers_table(chapters).encode())
    jobs = [
        Job(c.part, str(c.speaker), str(c.chapter), len(c.texts), partial(_make_chapter, c, seed, sample_rate_hz))
        for c in chapters
    ]
    make_chapters(out, jobs, workers=workers, progress=progress)


def _speakers_table(chapters: Sequence[Chapter]) -> str:
    lines = [";ID  |SUBSET      |VOICE"]
    for chapter in chapters:
        lines.append(f"{chapter.speaker:<5}| {chapter.part:<11}| {' '.join(map(str, asdict(chapter.voice).values()))}")
    return "\n".join(lines) + "\n"


def _make_chapter(chapter: Chapter, seed: int, sample_rate_hz: int, folder: Path) -> None:
    spoken, rate_hz = speak(chapter.voice, chapter.texts)
    transcripts, conditions = [], ["id\tsnr_db\trt60_s\tdirect_to_reverberant_db\tnoise_exponent"]
    for number, (text, speech) in enumerate(spoken):
        generator = np.random.default_rng([seed, chapter.speaker, chapter.chapter, number])
        utterance = f"{chapter.name}-{number:04d}"
        speech = soxr.resample(_trimmed(speech), rate_hz, sample_rate_hz)
        samples, described = _record(speech, sample_rate_hz, chapter.conditions, generator)
        write_flac(folder / f"{utterance}.flac", samples, sample_rate_hz)
        transcripts.append(f"{utterance} {transcript(text)}")
        conditions.append("\t".join([utterance, *(f"{value:.2f}" for value in described)]))
    write_lines(folder / f"{chapter.name}.trans.txt", transcripts)
    write_lines(folder / f"{chapter.name}.conditions.tsv", conditions)


def _trimmed(speech: Samples) -> Samples:
    """Without the silence at both ends."""
    loud = np.flatnonzero(np.abs(speech) > 0.01 * np.max(np.abs(speech)))
    return speech[loud[0] : loud[-1] + 1]


def _record(
    speech: Samples, sample_rate_hz: int, conditions: Conditions, generator: np.random.Generator
) -> tuple[Samples, tuple[float, float, float, float]]:
    """Puts clean speech into a room with noise; gives the samples and SNR (dB), RT60 (s), DRR (dB), noise exponent."""
    snr_db = round(generator.uniform(*conditions.snr_db), 2)
    rt60_s = round(generator.uniform(*conditions.rt60_s), 2)
    drr_db = round(generator.uniform(*conditions.direct_to_reverberant_db), 2)
    exponent = round(generator.uniform(0.0, 2.0), 2)
    before, after = (round(generator.uniform(0.1, 0.3) * sample_rate_hz) for _ in range(2))
    dry = functional.pad(torch.from_numpy(speech), (before, after))
    torch_generator = torch.Generator().manual_seed(int(generator.integers(2**62)))
    heard = reverberate(dry, room_impulse_response(rt60_s, drr_db, sample_rate_hz, torch_generator))
    noise = coloured_noise(heard.numel(), exponent, sample_rate_hz, torch_generator)
    noisy = add_noise_at_snr(heard, noise, snr_db).numpy()
    noisy *= 10 ** (generator.uniform(*conditions.level_dbfs) / 20) / np.sqrt(np.mean(noisy**2))
    peak = float(np.max(np.abs(noisy)))
    if peak > 0.99:  # turned down rather than clipped
        noisy *= 0.99 / peak
    return noisy, (snr_db, rt60_s, drr_db, exponent)
