"""The corpus ``spoken_numbers``: number phrases spoken by espeak-ng in made-up rooms, in LibriSpeech's layout.

``<out>/<part>/<speaker>/<chapter>/<speaker>-<chapter>-NNNN.flac`` with ``<speaker>-<chapter>.trans.txt`` and
``<speaker>-<chapter>.conditions.tsv`` (signal-to-noise ratio and reverberation time of each utterance) beside them.
A speaker is a voice: accent, variant, pitch, pitch range and rate; no voice variant of the training part speaks in the
others, and no test phrase occurs in training. Every file is a function of the seed and the sizes alone.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from torch.nn import functional

from asrkd.data.acoustics import add_noise_at_snr, coloured_noise, reverberate, room_impulse_response
from asrkd.data.files import named_errors, write_atomically
from asrkd.data.number_phrases import phrase

Samples = NDArray[np.float32]

_LOG = logging.getLogger(__name__)

SAMPLE_RATE_HZ = 16000
PARTS = ("train", "dev", "test-clean", "test-other")
RECORD = "spoken_numbers.json"
_FORMAT = 2  # raise when the same seed would give other files
_MEAN_UTTERANCE_S = 2.6  # measured; turns minutes into a number of utterances
_UTTERANCES_A_SPEAKER = 6  # few, since strange voices are what a recogniser stumbles over
_MAX_CRASHES = 3  # of the library in one chapter, each costing one phrase

_ACCENTS = (
    "en-us",
    "en",
    "en-gb-scotland",
    "en-gb-x-rp",
    "en-029",
)
# Robots, whispers and effects are left out. The held-out ones are ordinary voices, so that conditions make a part hard.
# fmt: off
_TRAIN_VARIANTS = (
    "Alex", "Alicia", "Andrea", "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Marco", "Mario",
    "Michael", "Nguyen", "Reed", "RicishayMax", "RicishayMax3", "adam", "anika", "announcer", "antonio",
    "aunty", "belinda", "benjamin", "boris", "ed", "edward", "f1", "f3", "f5", "grandma", "grandpa", "gustave",
    "iven3", "john", "klatt", "klatt3", "linda", "m1", "m3", "m5", "m7", "m8", "marcelo", "max", "miguel",
    "norbert", "pablo", "paul", "pedro", "quincy", "rob", "sandro", "steph", "travis", "zac",
)
_DEV_VARIANTS = (
    "Lee", "caleb", "f4", "m4", "michel", "robert",
)
_TEST_VARIANTS = (
    "Andy", "Mike", "david", "edward2", "f2", "ian", "m2", "m6", "mike2", "shelby", "steph2", "victor",
)
# fmt: on


@dataclass(frozen=True)
class Voice:
    """What makes a speaker: an espeak-ng voice and its settings."""

    name: str
    rate_wpm: int
    pitch: int
    pitch_range: int


@dataclass(frozen=True)
class Conditions:
    """Ranges from which each utterance's conditions are drawn evenly."""

    snr_db: tuple[float, float]
    rt60_s: tuple[float, float]
    direct_to_reverberant_db: tuple[float, float]


CONDITIONS = {
    "train": Conditions((8.0, 30.0), (0.05, 0.5), (2.0, 18.0)),
    "dev": Conditions((10.0, 30.0), (0.05, 0.5), (3.0, 18.0)),
    "test-clean": Conditions((20.0, 30.0), (0.05, 0.25), (10.0, 18.0)),
    "test-other": Conditions((8.0, 15.0), (0.25, 0.5), (2.0, 8.0)),
}


@dataclass(frozen=True)
class Chapter:
    """All that one speaker says in one part."""

    part: str
    speaker: int
    chapter: int
    voice: Voice
    texts: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.speaker}-{self.chapter}"

    def folder(self, out: Path) -> Path:
        return out / self.part / str(self.speaker) / str(self.chapter)


def synthesise(
    out: str | Path,
    *,
    seed: int = 0,
    train_minutes: float = 100.0,
    dev_minutes: float = 4.0,
    test_minutes: float = 14.0,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Makes the corpus, or what is missing of it; killed at any moment, the same call continues.

    Args:
        out: Folder of the corpus; made if need be.
        seed: Of everything that is drawn.
        train_minutes: About so much speech in ``train``.
        dev_minutes: In ``dev``.
        test_minutes: In ``test-clean``, and the same again in ``test-other``.
        workers: Chapters made at the same time, each by its own espeak-ng process.
        progress: Called with the utterances done and their total, now and then.

    Returns:
        ``out`` as a path.

    Raises:
        ValueError: If ``out`` holds a corpus of another seed or other sizes, or a size is not positive.
        OSError: If espeak-ng cannot be started.
    """
    out = Path(out)
    minutes = {"train": train_minutes, "dev": dev_minutes, "test-clean": test_minutes, "test-other": test_minutes}
    for part, value in minutes.items():
        if not value > 0:
            raise ValueError(f"minutes of {part}: expected more than 0, found {value}")
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, {"format": _FORMAT, "seed": seed, "minutes": minutes})
    chapters = plan(seed, minutes)
    write_atomically(out / "SPEAKERS.TXT", _speakers_table(chapters).encode())
    for stale in out.glob("*/*/.making-*"):
        shutil.rmtree(stale, ignore_errors=True)
    total, done = sum(len(c.texts) for c in chapters), 0
    missing = []
    for chapter in chapters:
        if _is_complete(chapter, out):
            done += len(chapter.texts)
        else:
            missing.append(chapter)
    if progress:
        progress(done, total)
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        # Threads suffice: the speaking is done by child processes, and FFTs and FLAC release the interpreter lock.
        jobs = {pool.submit(_make_chapter, chapter, out, seed): chapter for chapter in missing}
        try:
            for job in as_completed(jobs):
                job.result()
                done += len(jobs[job].texts)
                if progress:
                    progress(done, total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return out


def plan(seed: int, minutes: dict[str, float]) -> list[Chapter]:
    """Who says what in each part: speakers with their voices, and phrases of which none is in two parts."""
    taken: dict[str, str] = {}
    voices: set[Voice] = set()
    chapters = []
    for number, part in reversed(list(enumerate(PARTS))):  # tests choose first, or they would lack the common phrases
        generator = np.random.default_rng([seed, number])
        utterances = max(2, round(minutes[part] * 60 / _MEAN_UTTERANCE_S))
        speakers = max(2, round(utterances / _UTTERANCES_A_SPEAKER))
        texts = _phrases(utterances, part, taken, generator)
        variants = {"train": _TRAIN_VARIANTS, "dev": _DEV_VARIANTS}.get(part, _TEST_VARIANTS)
        order = generator.permutation(len(variants))
        for i in range(speakers):
            voice = _draw_voice(variants[order[i % len(variants)]], voices, generator)
            mine = tuple(texts[i::speakers])
            chapters.append(Chapter(part, 1000 * (number + 1) + i, 1, voice, mine))
    return chapters[::-1]


def _phrases(count: int, part: str, taken: dict[str, str], generator: np.random.Generator) -> list[str]:
    texts: list[str] = []
    while len(texts) < count:
        text = phrase(generator)
        if taken.setdefault(text, part) == part and (part == "train" or text not in texts):
            texts.append(text)
    return texts


def _draw_voice(variant: str, voices: set[Voice], generator: np.random.Generator) -> Voice:
    while True:
        voice = Voice(
            name=f"{_ACCENTS[generator.integers(len(_ACCENTS))]}+{variant}",
            rate_wpm=int(generator.integers(140, 181)),
            pitch=int(generator.integers(30, 71)),
            pitch_range=int(generator.integers(25, 81)),
        )
        if voice not in voices:
            voices.add(voice)
            return voice


def _claim(out: Path, record: dict[str, object]) -> None:
    """Says what ``out`` is for, or refuses if it is for something else."""
    path = out / RECORD
    if path.exists():
        try:
            found = json.loads(path.read_text("utf-8"))
        except ValueError:
            found = None
        if found != record:
            raise ValueError(f"{path}: expected {json.dumps(record)}, found {json.dumps(found)}; choose another folder")
        return
    if any(out.iterdir()):
        raise ValueError(f"{out}: expected an empty folder or one with {RECORD}, found other files")
    write_atomically(path, (json.dumps(record) + "\n").encode())


def _speakers_table(chapters: Sequence[Chapter]) -> str:
    lines = [";ID  |SUBSET      |VOICE"]
    for chapter in chapters:
        lines.append(f"{chapter.speaker:<5}| {chapter.part:<11}| {' '.join(map(str, asdict(chapter.voice).values()))}")
    return "\n".join(lines) + "\n"


def _is_complete(chapter: Chapter, out: Path) -> bool:
    """Whether the folder is there (it appears whole) and nobody has since taken anything out of it."""
    folder = chapter.folder(out)
    try:
        lines = (folder / f"{chapter.name}.trans.txt").read_text("utf-8").splitlines()
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
    except OSError:
        return False
    return bool(lines) and all(sizes.get(line.split(" ", 1)[0] + ".flac", 0) > 0 for line in lines)


def _make_chapter(chapter: Chapter, out: Path, seed: int) -> None:
    spoken, rate_hz = _speak(chapter)
    final = chapter.folder(out)
    final.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".making-", dir=final.parent))
    try:
        _write_chapter(chapter, folder, spoken, rate_hz, seed)
        folder.chmod(0o755)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(folder, final)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_chapter(
    chapter: Chapter, folder: Path, spoken: Sequence[tuple[str, Samples]], rate_hz: int, seed: int
) -> None:
    transcripts, conditions = [], ["id\tsnr_db\trt60_s\tdirect_to_reverberant_db\tnoise_exponent"]
    for number, (text, speech) in enumerate(spoken):
        generator = np.random.default_rng([seed, chapter.speaker, chapter.chapter, number])
        utterance = f"{chapter.name}-{number:04d}"
        samples, described = _record(speech, rate_hz, CONDITIONS[chapter.part], generator)
        flac = io.BytesIO()  # libsndfile would not say that a disk is full
        soundfile.write(flac, samples, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
        path = folder / f"{utterance}.flac"
        with named_errors(path):
            path.write_bytes(flac.getvalue())
        transcripts.append(f"{utterance} {text}")
        conditions.append("\t".join([utterance, *(f"{value:.2f}" for value in described)]))
    for name, lines in ((f"{chapter.name}.trans.txt", transcripts), (f"{chapter.name}.conditions.tsv", conditions)):
        write_atomically(folder / name, ("\n".join(lines) + "\n").encode())


def _record(
    speech: Samples, rate_hz: int, conditions: Conditions, generator: np.random.Generator
) -> tuple[Samples, tuple[float, float, float, float]]:
    """Puts clean speech into a room with noise; gives the samples and SNR (dB), RT60 (s), DRR (dB), noise exponent."""
    snr_db = round(generator.uniform(*conditions.snr_db), 2)
    rt60_s = round(generator.uniform(*conditions.rt60_s), 2)
    drr_db = round(generator.uniform(*conditions.direct_to_reverberant_db), 2)
    exponent = round(generator.uniform(0.0, 2.0), 2)
    loud = np.flatnonzero(np.abs(speech) > 0.01 * np.max(np.abs(speech)))
    speech = soxr.resample(speech[loud[0] : loud[-1] + 1], rate_hz, SAMPLE_RATE_HZ)
    before, after = (round(generator.uniform(0.1, 0.3) * SAMPLE_RATE_HZ) for _ in range(2))
    dry = functional.pad(torch.from_numpy(speech), (before, after))
    torch_generator = torch.Generator().manual_seed(int(generator.integers(2**62)))
    heard = reverberate(dry, room_impulse_response(rt60_s, drr_db, SAMPLE_RATE_HZ, torch_generator))
    noise = coloured_noise(heard.numel(), exponent, SAMPLE_RATE_HZ, torch_generator)
    noisy = add_noise_at_snr(heard, noise, snr_db).numpy()
    noisy *= 10 ** (generator.uniform(-30.0, -20.0) / 20) / np.sqrt(np.mean(noisy**2))
    peak = float(np.max(np.abs(noisy)))
    if peak > 0.99:  # turned down rather than clipped
        noisy *= 0.99 / peak
    return noisy, (snr_db, rt60_s, drr_db, exponent)


def _speak(chapter: Chapter) -> tuple[list[tuple[str, Samples]], int]:
    """The chapter's texts with their speech as espeak-ng gives it, and its sample rate.

    A text on which the library crashes, twice in a row, is left out, and the rest is spoken without it.
    """
    texts = list(chapter.texts)
    for _ in range(_MAX_CRASHES + 1):
        speech, rate_hz, complaint = _run_espeak(chapter.voice, texts)
        if len(speech) < len(texts):
            speech, rate_hz, complaint = _run_espeak(chapter.voice, texts)
        if len(speech) == len(texts):
            pairs = [(t, s) for t, s in zip(texts, speech, strict=True) if s.size and np.max(np.abs(s)) > 0]
            if not pairs:
                raise OSError(f"espeak-ng: voice {chapter.voice.name} spoke no sound")
            return pairs, rate_hz
        _LOG.warning("espeak-ng failed on %r with voice %s; left out", texts[len(speech)], chapter.voice.name)
        del texts[len(speech)]
        if not texts:
            break
    raise OSError(f"espeak-ng: failed again and again with voice {chapter.voice.name}: {complaint}")


def _run_espeak(voice: Voice, texts: Sequence[str]) -> tuple[list[Samples], int, str]:
    """Speaks ``texts`` in a fresh process: what came out before it ended, the sample rate, and its last complaint."""
    import espeakng_loader

    request = {
        "library": espeakng_loader.get_library_path(),
        "data": espeakng_loader.get_data_path(),
        "voice": voice.name,
        "rate_wpm": voice.rate_wpm,
        "pitch": voice.pitch,
        "pitch_range": voice.pitch_range,
        "texts": [text.lower() for text in texts],  # upper case might be spelled
    }
    worker = Path(__file__).with_name("espeak_worker.py")
    result = subprocess.run(
        [sys.executable, "-I", "-S", str(worker)], input=json.dumps(request).encode(), capture_output=True, check=False
    )
    data, place = result.stdout, 4
    speech: list[Samples] = []
    while place + 4 <= len(data):
        (count,) = struct.unpack_from("<I", data, place)
        place += 4
        if place + 2 * count > len(data):
            break
        speech.append(np.frombuffer(data, "<i2", count, place).astype(np.float32) / np.float32(32768))
        place += 2 * count
    rate_hz = struct.unpack_from("<I", data)[0] if len(data) >= 4 else 0
    lines = result.stderr.decode(errors="replace").strip().splitlines()
    complaint = lines[-1] if lines else f"exit status {result.returncode}"
    if not speech and result.returncode == 3:
        raise OSError(complaint)
    return speech, rate_hz, complaint
