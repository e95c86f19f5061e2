"""Corpora made here, in LibriSpeech's layout, chapter by chapter: each folder appears whole, and a killed run continues.

``<out>/<part>/<speaker>/<chapter>/<speaker>-<chapter>-NNNN.flac`` with ``<speaker>-<chapter>.trans.txt`` beside them. The file
``<out>/<kind>.json`` says what the folder is for: kind, seed, sizes.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from asrkd.data.files import named_errors, write_atomically

KINDS = ("spoken_numbers", "read_speech", "synthetic_digits", "spoken_digits")


@dataclass(frozen=True)
class Job:
    """One chapter to be made.

    Args:
        part: Of the corpus.
        speaker: Name of the speaker's folder.
        chapter: Name of the chapter's folder in it.
        utterances: About how many it will hold.
        make: Writes the chapter's files into the folder that it is given.
    """

    part: str
    speaker: str
    chapter: str
    utterances: int
    make: Callable[[Path], None]

    @property
    def name(self) -> str:
        return f"{self.speaker}-{self.chapter}"

    def folder(self, out: Path) -> Path:
        return out / self.part / self.speaker / self.chapter


def kind_of(root: Path) -> str | None:
    """Which of ``KINDS`` was made in ``root``; ``None`` for a corpus from elsewhere."""
    return next((kind for kind in KINDS if (root / f"{kind}.json").is_file()), None)


def claim(out: Path, kind: str, record: Mapping[str, object]) -> None:
    """Says what ``out`` is for, or refuses if it is for something else; makes the folder if need be.

    Raises:
        ValueError: If it holds a corpus of another kind, seed or size, or other files.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{kind}.json"
    if path.exists():
        try:
            found = json.loads(path.read_text("utf-8"))
        except ValueError:
            found = None
        if found != record:
            raise ValueError(f"{path}: expected {json.dumps(record)}, found {json.dumps(found)}; choose another folder")
        return
    if any(out.iterdir()):
        raise ValueError(f"{out}: expected an empty folder or one with {path.name}, found other files")
    write_atomically(path, (json.dumps(record) + "\n").encode())


def make_chapters(
    out: Path, jobs: Sequence[Job], *, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> None:
    """Makes the chapters that are not there, or no longer whole.

    Args:
        out: Folder of the corpus.
        jobs: Every chapter of it.
        workers: Chapters made at the same time; default: the number of cores.
        progress: Called with the utterances done and their total, now and then.
    """
    for stale in out.glob("*/*/.making-*"):
        shutil.rmtree(stale, ignore_errors=True)
    total, done = sum(job.utterances for job in jobs), 0
    missing = []
    for job in jobs:
        if _is_complete(job, out):
            done += job.utterances
        else:
            missing.append(job)
    if progress:
        progress(done, total)
    workers = workers or os.cpu_count() or 1
    # Threads suffice: child processes speak, and FFTs and FLAC release the interpreter lock.
    with _one_torch_thread(), ThreadPoolExecutor(max_workers=workers) as pool:
        running = {pool.submit(_make_chapter, job, out): job for job in missing}
        try:
            for made in as_completed(running):
                made.result()
                done += running[made].utterances
                if progress:
                    progress(done, total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Sums over many samples depend on the number of threads in their last bits, and with them the files."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_flac(path: Path, samples: NDArray[np.float32], sample_rate_hz: int) -> None:
    """Writes mono ``(S,)`` samples in ``[-1, 1]`` as 16-bit FLAC."""
    flac = io.BytesIO()  # libsndfile would not say that a disk is full
    soundfile.write(flac, samples, sample_rate_hz, format="FLAC", subtype="PCM_16")
    with named_errors(path):
        path.write_bytes(flac.getvalue())


def write_lines(path: Path, lines: Sequence[str]) -> None:
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def _is_complete(job: Job, out: Path) -> bool:
    """Whether the folder is there (it appears whole) and nobody has since taken anything out of it."""
    folder = job.folder(out)
    try:
        lines = (folder / f"{job.name}.trans.txt").read_text("utf-8").splitlines()
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
    except OSError:
        return False
    return bool(lines) and all(sizes.get(line.split(" ", 1)[0] + ".flac", 0) > 0 for line in lines)


def _make_chapter(job: Job, out: Path) -> None:
    final = job.folder(out)
    final.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".making-", dir=final.parent))
    try:
        job.make(folder)
        folder.chmod(0o755)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(folder, final)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
