"""What a live recogniser says, and how tokens become words with times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from asrkd.data.text import Tokenizer
from asrkd.decoding.ctc import DecodedTokens

WORD_START = "\u2581"  # SentencePiece's ▁, in character vocabularies too


@dataclass(frozen=True)
class Word:
    """One word.

    Args:
        text: As the tokenizer writes it.
        start_s: Start of its first token, in seconds from the start of the stream.
        end_s: End of its last token.
        confidence: Mean probability of its tokens, in ``[0, 1]``.
    """

    text: str
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True)
class Partial:
    """What the current segment reads by now; may still be revised.

    Args:
        text: The segment's text so far.
        start_s: Where the segment began.
        end_s: How far has been heard.
    """

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class WordHeard:
    """A word of the current segment that no further audio can change."""

    word: Word


@dataclass(frozen=True)
class Final:
    """A finished segment.

    Args:
        text: Of the segment.
        words: Its words.
        start_s: Where the segment began.
        end_s: Where it ended.
        reason: ``silence`` after speech, ``length`` of the segment, or ``end`` of the stream.
        alternatives: Texts of the other hypotheses, best first, where a beam search made them.
    """

    text: str
    words: tuple[Word, ...]
    start_s: float
    end_s: float
    reason: Literal["silence", "length", "end"]
    alternatives: tuple[str, ...] = ()


Event = Partial | WordHeard | Final


def words_of(decoded: DecodedTokens, tokenizer: Tokenizer, offset_s: float = 0.0) -> tuple[Word, ...]:
    """Group tokens into words.

    Args:
        decoded: Tokens with times and confidences.
        tokenizer: Whose word starts are marked by ``▁``.
        offset_s: Added to every time.
    """
    groups: list[list[int]] = []
    names = tokenizer.vocabulary.tokens
    for place, token in enumerate(decoded.tokens):
        if not tokenizer.decode([token]) and names[token] != WORD_START:
            continue  # sentence marks
        if not groups or names[token].startswith(WORD_START):
            groups.append([])
        # A bare ▁ only parts words: it is not where the next one sounds.
        if names[token] != WORD_START:
            groups[-1].append(place)
    words = []
    for group in groups:
        if not group:
            continue
        text = tokenizer.decode([decoded.tokens[place] for place in group])
        confidence = sum(decoded.confidences[place] for place in group) / len(group)
        start_s, end_s = decoded.times_s[group[0]] + offset_s, decoded.ends_s[group[-1]] + offset_s
        words.append(Word(text, start_s, end_s, confidence))
    return tuple(words)
