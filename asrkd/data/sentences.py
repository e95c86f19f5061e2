"""Sentences of any text file in LibriSpeech's style: words in upper case, with apostrophes; numbers spelled out.

What cannot be written so is left out whole and counted by its reason. Commas and the like stay, since a voice pauses at them;
:func:`asrkd.data.synthetic.transcript` takes them out.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from asrkd.data.number_phrases import cardinal, ordinal, year
from asrkd.data.synthetic import transcript

MAX_CHARACTERS = 300  # about 25 s
_ONE_LETTER = str.maketrans({"‘": "'", "’": "'", "`": "'", "´": "'", "“": '"', "”": '"', "«": '"', "»": '"', "Æ": "AE",
                             "Œ": "OE", "Ø": "O", "Ł": "L", "Đ": "D", "ẞ": "SS"})  # fmt: skip
_TITLES = {"MR": "MISTER", "MRS": "MISSUS", "MESSRS": "MESSIEURS", "DR": "DOCTOR"}
_SHORTENED = ("'TIS", "'TWAS", "'TWERE", "'TWILL", "'TWOULD", "'EM", "'TILL")
_CURRENCIES = {"$": "DOLLAR", "€": "EURO", "£": "POUND"}
_NUMBER = re.compile(r"([$€£]?)(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(ST|ND|RD|TH|S)?(\s?%)?(?![\w])")
_NOTHING_ELSE = re.compile(r"[A-Z' ,;:.?!]*")


@dataclass(frozen=True)
class Sentences:
    """What a text file holds.

    Args:
        texts: Different sentences in the order of the file, upper case, with the marks of pauses.
        left_out: Lines that are not among them, by reason.
    """

    texts: tuple[str, ...]
    left_out: dict[str, int]


def read_sentences(path: str | Path) -> Sentences:
    """Reads a text file with one sentence a line; empty lines do not count.

    Raises:
        ValueError: If there is no such file or it holds no sentence that can be used.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected text with one sentence a line")
    found = _sentences(path.read_bytes().splitlines())
    if not found.texts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.left_out.items())
        raise ValueError(f"{path}: expected one sentence a line, found none that can be used ({reasons or 'empty'})")
    return found


def _sentences(lines: Iterable[bytes]) -> Sentences:
    texts: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    for line in lines:
        if not line.strip():
            continue
        try:
            text = normalise(line.decode())
        except UnicodeDecodeError:
            left_out["not UTF-8"] += 1
        except ValueError as error:
            left_out[str(error)] += 1
        else:
            words = transcript(text)
            if words in texts:
                left_out["said before"] += 1
            else:
                texts[words] = text
    return Sentences(tuple(texts.values()), dict(sorted(left_out.items())))


def normalise(line: str) -> str:
    """One sentence in upper-case words, with ``,;:.?!`` where a voice pauses.

    Numbers are spelled out, numbers from 1100 to 2099 without a comma as years; letters lose their accents; ``&`` and ``%``
    become words, dashes and brackets pauses; quotation marks go.

    Raises:
        ValueError: With the reason, if the line has other signs or letters, no word, or more than ``MAX_CHARACTERS``.
    """
    text = line.strip().removeprefix("\ufeff").upper().translate(_ONE_LETTER)
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = re.sub(r"\b(MR|MRS|MESSRS|DR)\b\.?", lambda match: _TITLES[match[1]], text)
    text = _NUMBER.sub(_spelled, text)
    text = re.sub(r"\s*(?:--+|[\u2012-\u2015]|\s-\s|[()\[\]{}]|\.\.\.|…)\s*", ", ", text)
    text = re.sub(r"[-/\u2010\u2011]", " ", text.replace("&", " AND ").replace('"', " "))
    text = " ".join(map(_apostrophes, text.split()))
    text = re.sub(r"\s*([,;:.?!])[\s,;:.?!]*", r"\1 ", text).strip(" ,;:")
    if not _NOTHING_ELSE.fullmatch(text):
        raise ValueError("with digits in no known form" if re.search(r"\d", text) else "with other signs or letters")
    if not re.search(r"[A-Z]", text):
        raise ValueError("without a word")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"of more than {MAX_CHARACTERS} characters")
    return text


def _spelled(match: re.Match[str]) -> str:
    """The words of a number; what is too long or in no form that is known stays as it is."""
    currency, digits, fraction, ending, percent = match.groups()
    number = int(digits.replace(",", ""))
    try:
        if ending == "S":
            if not (1100 <= number < 2100 and number % 10 == 0 and not (currency or fraction or percent)):
                return match[0]
            words = year(number)
            return f" {words[:-1]}IES " if words.endswith("Y") else f" {words}S "
        if ending is not None:
            return match[0] if currency or fraction or percent else f" {ordinal(number)} "
        plain = not (currency or fraction or percent or "," in digits)
        words = year(number) if plain and 1100 <= number < 2100 and len(digits) == 4 else cardinal(number)
        if fraction:
            words += " POINT " + " ".join(map(cardinal, map(int, fraction[1:])))
        if currency:
            words += f" {_CURRENCIES[currency]}" + ("" if number == 1 and not fraction else "S")
        return f" {words}{' PERCENT' if percent else ''} "
    except ValueError:
        return match[0]


def _apostrophes(word: str) -> str:
    """``word`` with apostrophes only where they belong to it, not where they are quotation marks."""
    bare = word.strip("',;:.?!")
    before, _, after = word.partition(bare) if bare else (word, "", "")
    start = "'" if before.endswith("'") and f"'{bare}" in _SHORTENED else ""
    end = "'" if after.startswith("'") and bare.endswith("S") and "'" not in before else ""
    return before.replace("'", "") + start + bare + end + after.replace("'", "")
