"""The corpus ``read_speech``: sentences of any text file read out by espeak-ng, in LibriSpeech's layout. Synthetic speech.

Voices, rooms and noises are those of ``spoken_numbers``. No speaker, no variant of a voice and no sentence of the training part
occurs in the others. Where the text is shorter than the hours asked for, the training sentences are read again by other voices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from asrkd.data.chapters import claim
from asrkd.data.sentences import Sentences, read_sentences
from asrkd.data.synthetic import CONDITIONS, Chapter, make_corpus, transcript
from asrkd.data.voices import Voice, cast

PARTS = ("train", "dev", "test-clean", "test-other")
_FORMAT = 1  # raise when the same seed would give other files
_CHARACTER_S, _SILENCE_S = 0.0584, 0.4  # measured; turn a text into about the seconds that it takes
_UTTERANCES_A_SPEAKER = 10
_FIRST_SPEAKER = 1000


def synthesise(
    out: str | Path,
    text: str | Path,
    *,
    hours: float,
    dev_minutes: float = 10.0,
    test_minutes: float = 30.0,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sentences:
    """Makes the corpus, or what is missing of it; killed at any moment, the same call continues.

    Args:
        out: Folder of the corpus; made if need be.
        text: File with one sentence a line.
        hours: About so much speech in ``train``.
        dev_minutes: In ``dev``.
        test_minutes: In ``test-clean``, and with other sentences in ``test-other``.
        seed: Of everything that is drawn. Development and test parts do not depend on ``hours``.
        workers: Speakers made at the same time, each by its own espeak-ng process; default: the number of cores.
        progress: Called with the utterances done and their total, now and then.

    Returns:
        The sentences of the text, and how many lines were left out for what reason.

    Raises:
        ValueError: If a size is not positive, the text cannot be used or is too short, or ``out`` holds another corpus.
        OSError: If espeak-ng cannot be started.
    """
    out = Path(out)
    minutes = {"train": 60 * hours, "dev": dev_minutes, "test-clean": test_minutes, "test-other": test_minutes}
    for part, value in minutes.items():
        if not value > 0:
            raise ValueError(f"minutes of {part}: expected more than 0, found {value:g}")
    sentences = read_sentences(text)
    digest = hashlib.sha256("\n".join(sentences.texts).encode()).hexdigest()
    chapters = plan(sentences.texts, seed, minutes)
    claim(out, "read_speech", {"format": _FORMAT, "seed": seed, "minutes": minutes, "sentences_sha256": digest})
    make_corpus(out, chapters, seed=seed, workers=workers, progress=progress)
    return sentences


def plan(sentences: Sequence[str], seed: int, minutes: dict[str, float]) -> list[Chapter]:
    """Who reads what in each part.

    Raises:
        ValueError: If there are too few sentences to keep the parts apart.
    """
    order = np.random.default_rng([seed, len(PARTS)]).permutation(len(sentences))
    unread = [sentences[i] for i in order]
    voices: set[Voice] = set()
    chapters: list[Chapter] = []
    for number, part in reversed(list(enumerate(PARTS))):
        generator = np.random.default_rng([seed, number])
        if part == "train":
            texts = _enough(unread, 60 * minutes[part], generator)
        else:
            texts = _first(unread, 60 * minutes[part])
            unread = unread[len(texts) :]
        if not unread:
            raise ValueError(
                f"text: expected sentences enough for {minutes['dev']:g} minutes of dev, twice {minutes['test-clean']:g} of "
                f"tests, and others for training; found {len(sentences)}"
            )
        speakers = max(min(2, len(texts)), round(len(texts) / _UTTERANCES_A_SPEAKER))
        for i, voice in enumerate(cast(part, speakers, voices, generator)):
            speaker = _FIRST_SPEAKER + len(chapters)
            chapters.append(Chapter(part, speaker, 1, voice, tuple(texts[i::speakers]), CONDITIONS[part]))
    return chapters


def _duration_s(text: str) -> float:
    return _CHARACTER_S * len(transcript(text)) + _SILENCE_S


def _first(texts: Sequence[str], duration_s: float) -> list[str]:
    """As many from the start as last for ``duration_s``, about; all if they do not."""
    ends_s = np.cumsum([_duration_s(text) for text in texts])
    return list(texts[: int(np.searchsorted(ends_s, duration_s)) + 1])


def _enough(texts: Sequence[str], duration_s: float, generator: np.random.Generator) -> list[str]:
    """All, again and again in another order, until ``duration_s`` is full, about."""
    chosen: list[str] = []
    while duration_s > 0:
        more = _first([texts[i] for i in generator.permutation(len(texts))], duration_s)
        chosen += more
        duration_s -= sum(map(_duration_s, more))
    return chosen
