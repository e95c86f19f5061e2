"""Voices of espeak-ng: who speaks in which part of a synthetic corpus, and what they say when given texts.

A speaker is a voice: accent, variant, pitch, pitch range and rate; no variant of the training part speaks in the others.
"""

from __future__ import annotations

import json
import logging
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]

_LOG = logging.getLogger(__name__)

_MAX_CRASHES = 3  # of the library for one speaker, each costing one text

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


def cast(part: str, count: int, taken: set[Voice], generator: np.random.Generator) -> list[Voice]:
    """Draws ``count`` voices for the speakers of a part; none is in ``taken``, to which they are added.

    Args:
        part: ``train``, ``dev``, or any other for a test part: each of the three has variants of its own.
        count: Speakers.
        taken: Voices that speak already.
        generator: Where the randomness comes from.
    """
    variants = {"train": _TRAIN_VARIANTS, "dev": _DEV_VARIANTS}.get(part, _TEST_VARIANTS)
    order = generator.permutation(len(variants))
    return [_draw_voice(variants[order[i % len(variants)]], taken, generator) for i in range(count)]


def _draw_voice(variant: str, taken: set[Voice], generator: np.random.Generator) -> Voice:
    while True:
        voice = Voice(
            name=f"{_ACCENTS[generator.integers(len(_ACCENTS))]}+{variant}",
            rate_wpm=int(generator.integers(140, 181)),
            pitch=int(generator.integers(30, 71)),
            pitch_range=int(generator.integers(25, 81)),
        )
        if voice not in taken:
            taken.add(voice)
            return voice


def speak(voice: Voice, texts: Sequence[str]) -> tuple[list[tuple[str, Samples]], int]:
    """The texts with their speech as espeak-ng gives it, and its sample rate in Hz.

    A text on which the library crashes, twice in a row, is left out, and the rest is spoken without it.

    Args:
        voice: Who speaks.
        texts: In any case; commas and the like become pauses.

    Raises:
        OSError: If espeak-ng cannot be started, has no such voice, or fails again and again.
    """
    texts = list(texts)
    for _ in range(_MAX_CRASHES + 1):
        speech, rate_hz, complaint = _run_espeak(voice, texts)
        if len(speech) < len(texts):
            speech, rate_hz, complaint = _run_espeak(voice, texts)
        if len(speech) == len(texts):
            pairs = [(t, s) for t, s in zip(texts, speech, strict=True) if s.size and np.max(np.abs(s)) > 0]
            if not pairs:
                raise OSError(f"espeak-ng: voice {voice.name} spoke no sound")
            return pairs, rate_hz
        _LOG.warning("espeak-ng failed on %r with voice %s; left out", texts[len(speech)], voice.name)
        del texts[len(speech)]
        if not texts:
            break
    raise OSError(f"espeak-ng: failed again and again with voice {voice.name}: {complaint}")


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
