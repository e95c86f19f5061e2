"""Named text normalisers: what is done to reference and hypothesis alike before words are counted.

A word error rate means nothing without the name of its normaliser, so results carry it and only results of one
normaliser are compared.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

Normaliser = Callable[[str], str]

_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ＇`", "'"))
_NOT_A_WORD = re.compile(r"[^\w']|_")
_LOOSE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")


def keep(text: str) -> str:
    """Changes nothing but white space, which becomes single spaces.

    Args:
        text: Any text.

    Returns:
        The words of ``text`` with one space between them.
    """
    return " ".join(text.split())


def librispeech(text: str) -> str:
    """Writes text the way LibriSpeech transcripts are written: capitals, apostrophes inside words, no punctuation.

    Accents are dropped, hyphens and other punctuation separate words, apostrophes stay only inside a word. Letters
    outside the Latin alphabet and digits are kept, since dropping them would hide errors.

    Args:
        text: Any text.

    Returns:
        Upper-case words with one space between them.
    """
    plain = unicodedata.normalize("NFKD", text.translate(_APOSTROPHES))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    plain = _LOOSE_APOSTROPHE.sub(" ", _NOT_A_WORD.sub(" ", plain))
    return keep(unicodedata.normalize("NFC", plain.upper()))


def whisper_english(text: str) -> str:
    """Whisper's English normaliser: lower case, numbers as digits, contractions spelled out, American spelling.

    Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", appendix C, in the
    packaging of ``whisper-normalizer`` (the same code and spelling table, without the model).

    Args:
        text: English text.

    Returns:
        The normalised words with one space between them.
    """
    return keep(_whisper_normaliser()(text))


@cache
def _whisper_normaliser() -> Normaliser:
    # Imported on first use: its spelling table and number parser are not needed by the other normalisers.
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


NORMALISERS: dict[str, Normaliser] = {
    "none": keep,
    "librispeech": librispeech,
    "whisper-english": whisper_english,
}


def normaliser(name: str) -> Normaliser:
    """Finds a normaliser by its name.

    Args:
        name: A key of `NORMALISERS`.

    Raises:
        ValueError: If there is no such normaliser.
    """
    if name not in NORMALISERS:
        raise ValueError(f"normaliser: expected one of {', '.join(NORMALISERS)}, found {name!r}")
    return NORMALISERS[name]
