"""The corpus ``spoken_numbers``: number phrases spoken by espeak-ng in made-up rooms, in LibriSpeech's layout.

A speaker is a voice; no voice variant of the training part speaks in the others, and no test phrase occurs in training.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from asrkd.data.chapters import claim
from asrkd.data.number_phrases import phrase
from asrkd.data.synthetic import CONDITIONS, Chapter, make_corpus
from asrkd.data.voices import Voice, cast

PARTS = ("train", "dev", "test-clean", "test-other")
_FORMAT = 2  # raise when the same seed would give other files
_MEAN_UTTERANCE_S = 2.6  # measured; turns minutes into a number of utterances
_UTTERANCES_A_SPEAKER = 6  # few, since strange voices are what a recogniser stumbles over


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
    claim(out, "spoken_numbers", {"format": _FORMAT, "seed": seed, "minutes": minutes})
    make_corpus(out, plan(seed, minutes), seed=seed, workers=workers, progress=progress)
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
        # Unique in the corpus, also where a part has more than a thousand speakers.
        ids = [(1000 if i < 1000 else 10_000) * (number + 1) + i for i in range(speakers)]
        for i, voice in enumerate(cast(part, speakers, voices, generator)):
            mine = tuple(texts[i::speakers])
            chapters.append(Chapter(part, ids[i], 1, voice, mine, CONDITIONS[part]))
    return chapters[::-1]


def _phrases(count: int, part: str, taken: dict[str, str], generator: np.random.Generator) -> list[str]:
    texts: list[str] = []
    while len(texts) < count:
        text = phrase(generator)
        if taken.setdefault(text, part) == part and (part == "train" or text not in texts):
            texts.append(text)
    return texts
