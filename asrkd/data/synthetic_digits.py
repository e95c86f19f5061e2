"""The corpus ``synthetic_digits``: sequences of digits spoken by espeak-ng, at 8 kHz, in LibriSpeech's layout.

Synthetic speech to pre-train on, where real recordings of digits (:mod:`asrkd.data.spoken_digits`) are few.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from asrkd.data.chapters import claim
from asrkd.data.number_phrases import cardinal
from asrkd.data.synthetic import Chapter, Conditions, make_corpus
from asrkd.data.voices import Voice, cast

DIGITS = tuple(map(cardinal, range(10)))
MAX_DIGITS = 7
SAMPLE_RATE_HZ = 8000
PARTS = ("train", "dev")
_FORMAT = 1  # raise when the same seed would give other files
_MEAN_UTTERANCE_S = 2.26  # measured; turns minutes into a number of utterances
_UTTERANCES_A_SPEAKER = 8
# From close to far: the levels of real speakers are up to 20 dB apart.
_CONDITIONS = Conditions((8.0, 40.0), (0.02, 0.4), (2.0, 18.0), level_dbfs=(-42.0, -18.0))


def synthesise(
    out: str | Path,
    *,
    seed: int = 0,
    train_minutes: float = 60.0,
    dev_minutes: float = 3.0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Makes the corpus, or what is missing of it; killed at any moment, the same call continues.

    Args:
        out: Folder of the corpus; made if need be.
        seed: Of everything that is drawn.
        train_minutes: About so much speech in ``train``.
        dev_minutes: In ``dev``, by other voices.
        workers: Speakers made at the same time, each by its own espeak-ng process; default: the number of cores.
        progress: Called with the utterances done and their total, now and then.

    Returns:
        ``out`` as a path.

    Raises:
        ValueError: If ``out`` holds a corpus of another seed or other sizes, or a size is not positive.
        OSError: If espeak-ng cannot be started.
    """
    out = Path(out)
    minutes = {"train": train_minutes, "dev": dev_minutes}
    for part, value in minutes.items():
        if not value > 0:
            raise ValueError(f"minutes of {part}: expected more than 0, found {value:g}")
    claim(out, "synthetic_digits", {"format": _FORMAT, "seed": seed, "minutes": minutes})
    chapters = plan(seed, minutes)
    make_corpus(out, chapters, seed=seed, sample_rate_hz=SAMPLE_RATE_HZ, workers=workers, progress=progress)
    return out


def plan(seed: int, minutes: dict[str, float]) -> list[Chapter]:
    """Who says which digits in each part."""
    voices: set[Voice] = set()
    chapters: list[Chapter] = []
    for number, part in reversed(list(enumerate(PARTS))):
        generator = np.random.default_rng([seed, number])
        utterances = max(2, round(minutes[part] * 60 / _MEAN_UTTERANCE_S))
        speakers = max(2, round(utterances / _UTTERANCES_A_SPEAKER))
        texts = [_sequence(generator) for _ in range(utterances)]
        for i, voice in enumerate(cast(part, speakers, voices, generator)):
            speaker = 1000 + len(chapters)
            chapters.append(Chapter(part, speaker, 1, voice, tuple(texts[i::speakers]), _CONDITIONS))
    return chapters


def _sequence(generator: np.random.Generator) -> str:
    """One to ``MAX_DIGITS`` digits, in every other case with a pause after each."""
    digits = generator.integers(0, 10, size=int(generator.integers(1, MAX_DIGITS + 1)))
    return (" " if generator.random() < 0.5 else ", ").join(DIGITS[digit] for digit in digits)
