"""Decoders of one segment of a stream, fed frame by frame: CTC (greedy, beam, words with a language model), transducer labels.

Dimension legend: T frames, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from asrkd.data.text import UNKNOWN_ID, Tokenizer
from asrkd.decoding.ctc import DecodedTokens
from asrkd.decoding.hotwords import HotWords
from asrkd.decoding.prefix_beam import PrefixBeam, align
from asrkd.decoding.transducer import Emissions, emitted
from asrkd.decoding.word_lm import WordLm
from asrkd.types import Vocabulary

Heard = TypeVar("Heard", contravariant=True)


class SegmentDecoder(Protocol[Heard]):
    """A decoder between two endpoints.

    Attributes:
        num_frames: Frames heard.
        trailing_blanks: Frames at the end in which nothing was said.
    """

    num_frames: int
    trailing_blanks: int

    def advance(self, heard: Heard, /) -> None:
        """Take the next frames: log-probabilities ``(T, V)``, or what a transducer's search emitted."""

    def best_tokens(self) -> tuple[int, ...]:
        """Token ids of the best hypothesis so far."""

    def num_settled(self) -> int:
        """How many of the first tokens no further frame can change."""

    def nbest(self, n: int) -> tuple[DecodedTokens, ...]:
        """The best hypotheses with times from the segment's start."""


class GreedySegment:
    """Best path, in a few numbers a token; equal to :func:`asrkd.decoding.ctc.greedy` over the whole.

    Args:
        vocabulary: Tokens of the posteriors.
        frame_shift_s: Seconds from one frame to the next.
        previous_id: Likeliest token of the frame before the segment, whose repetition is not heard again.
    """

    def __init__(self, vocabulary: Vocabulary, frame_shift_s: float, previous_id: int | None = None) -> None:
        self.blank_id = vocabulary.blank_id
        self.frame_shift_s = frame_shift_s
        self.previous_id = vocabulary.blank_id if previous_id is None else previous_id
        self.num_frames = 0
        self.trailing_blanks = 0
        self._carried = self.previous_id != self.blank_id
        self._tokens: list[int] = []
        self._first: list[int] = []
        self._last: list[int] = []
        self._peaks: list[float] = []
        self._score = 0.0

    def advance(self, log_probs: NDArray[np.float32]) -> None:
        ids = log_probs.argmax(axis=1).tolist()
        best = log_probs.max(axis=1).tolist()
        for token, log_prob in zip(ids, best, strict=True):
            self._score += log_prob
            if token == self.blank_id:
                self.trailing_blanks += 1
                self._carried = False
            else:
                self.trailing_blanks = 0
                if token != self.previous_id:
                    self._carried = False
                    self._tokens.append(token)
                    self._first.append(self.num_frames)
                    self._last.append(self.num_frames)
                    self._peaks.append(log_prob)
                elif not self._carried:
                    self._last[-1] = self.num_frames
                    self._peaks[-1] = max(self._peaks[-1], log_prob)
            self.previous_id = token
            self.num_frames += 1

    def best_tokens(self) -> tuple[int, ...]:
        return tuple(self._tokens)

    def num_settled(self) -> int:
        return len(self._tokens)

    def nbest(self, n: int) -> tuple[DecodedTokens, ...]:
        decoded = DecodedTokens(
            tokens=tuple(self._tokens),
            times_s=tuple(frame * self.frame_shift_s for frame in self._first),
            ends_s=tuple((frame + 1) * self.frame_shift_s for frame in self._last),
            confidences=tuple(min(1.0, float(np.exp(peak))) for peak in self._peaks),
            score=self._score,
        )
        return (decoded,)


class _KeepsPosteriors:
    """What a search needs beside itself: the posteriors, for the times of its tokens, and how long nothing was said."""

    def __init__(self, blank_id: int, frame_shift_s: float) -> None:
        self.blank_id = blank_id
        self.frame_shift_s = frame_shift_s
        self.num_frames = 0
        self.trailing_blanks = 0
        self._log_probs: list[NDArray[np.float32]] = []

    def keep(self, log_probs: NDArray[np.float32]) -> None:
        self._log_probs.append(log_probs)
        self.num_frames += len(log_probs)
        spoken = np.flatnonzero(log_probs.argmax(axis=1) != self.blank_id)
        self.trailing_blanks = (
            len(log_probs) - 1 - int(spoken[-1]) if len(spoken) else self.trailing_blanks + len(log_probs)
        )

    def aligned(self, hypotheses: Sequence[tuple[tuple[int, ...], float]]) -> tuple[DecodedTokens, ...]:
        if not self._log_probs:
            return (DecodedTokens((), (), (), (), 0.0),)
        self._log_probs = [np.concatenate(self._log_probs)]
        return tuple(
            align(self._log_probs[0], tokens, score, self.blank_id, self.frame_shift_s) for tokens, score in hypotheses
        )


class BeamSegment(_KeepsPosteriors):
    """Prefix beam search; keeps the segment's posteriors for the times of its tokens.

    Args:
        vocabulary: Tokens of the posteriors.
        frame_shift_s: Seconds from one frame to the next.
        beam: Prefixes kept after each frame.
        tokens_per_frame: Likeliest tokens that may extend a prefix.
        hotwords: Phrases that are made likelier.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        frame_shift_s: float,
        beam: int,
        tokens_per_frame: int,
        hotwords: HotWords | None = None,
    ) -> None:
        super().__init__(vocabulary.blank_id, frame_shift_s)
        self._search = PrefixBeam(vocabulary, beam, tokens_per_frame, hotwords)

    def advance(self, log_probs: NDArray[np.float32]) -> None:
        self._search.advance(log_probs)
        self.keep(log_probs)

    def best_tokens(self) -> tuple[int, ...]:
        return self._search.hypotheses(1)[0][0]

    def num_settled(self) -> int:
        return self._search.num_settled()

    def nbest(self, n: int) -> tuple[DecodedTokens, ...]:
        return self.aligned(self._search.hypotheses(n))


class WordSegment(_KeepsPosteriors):
    """A lexicon and a language model; partial results hold whole words, and nothing is settled before the end.

    Args:
        lm: Shared by all segments.
        frame_shift_s: Seconds from one frame to the next.
    """

    def __init__(self, lm: WordLm, frame_shift_s: float) -> None:
        super().__init__(lm.vocabulary.blank_id, frame_shift_s)
        self._search = lm.search()

    def advance(self, log_probs: NDArray[np.float32]) -> None:
        self._search.advance(log_probs)
        self.keep(log_probs)

    def best_tokens(self) -> tuple[int, ...]:
        return self._search.best()

    def num_settled(self) -> int:
        return 0

    def nbest(self, n: int) -> tuple[DecodedTokens, ...]:
        return self.aligned(self._search.hypotheses(n))


class TransducerSegment:
    """What a transducer's greedy search emitted, in a few numbers a token; equal to the search over the whole.

    Args:
        frame_shift_s: Seconds from one frame to the next.
    """

    def __init__(self, frame_shift_s: float) -> None:
        self.frame_shift_s = frame_shift_s
        self.num_frames = 0
        self.trailing_blanks = 0
        self._tokens: list[int] = []
        self._frames: list[int] = []
        self._log_probs: list[float] = []
        self._score = 0.0

    def advance(self, emissions: Emissions) -> None:
        frames, places = np.nonzero(emissions.tokens >= 0)
        self._tokens += emissions.tokens[frames, places].tolist()
        self._frames += (self.num_frames + frames).tolist()
        self._log_probs += emissions.log_probs[frames, places].tolist()
        self._score += float(emissions.scores.sum(dtype=np.float64))
        self.num_frames += len(emissions)
        self.trailing_blanks = self.num_frames - 1 - self._frames[-1] if self._frames else self.num_frames

    def best_tokens(self) -> tuple[int, ...]:
        return tuple(self._tokens)

    def num_settled(self) -> int:
        return len(self._tokens)

    def nbest(self, n: int) -> tuple[DecodedTokens, ...]:
        return (emitted(self._tokens, self._frames, self._log_probs, self._score, self.frame_shift_s),)


@dataclass(frozen=True)
class Decoding:
    """How a CTC model's segments are decoded.

    Args:
        beam: Width of the prefix beam search; 1: greedy.
        tokens_per_frame: Of the beam search.
        hotwords: For the beam search.
        lm: Takes the place of the beam search.
    """

    beam: int = 1
    tokens_per_frame: int = 20
    hotwords: HotWords | None = None
    lm: WordLm | None = None

    def segment(
        self, vocabulary: Vocabulary, frame_shift_s: float, previous: SegmentDecoder[Any] | None = None
    ) -> SegmentDecoder[NDArray[np.float32]]:
        """A decoder for the stretch of speech after ``previous``."""
        if self.lm is not None:
            return WordSegment(self.lm, frame_shift_s)
        if self.beam > 1 or self.hotwords is not None:
            return BeamSegment(vocabulary, frame_shift_s, self.beam, self.tokens_per_frame, self.hotwords)
        previous_id = previous.previous_id if isinstance(previous, GreedySegment) else None
        return GreedySegment(vocabulary, frame_shift_s, previous_id)


def encode_hotwords(phrases: Sequence[str], tokenizer: Tokenizer, boost: float) -> HotWords:
    """Phrases as the tokenizer writes them.

    Raises:
        ValueError: Naming a phrase that is empty or holds characters that the vocabulary lacks.
    """
    encoded = []
    for phrase in phrases:
        tokens = tokenizer.encode(phrase)
        unknown = tokenizer.unknown_characters(phrase)
        if unknown or not tokens:
            raise ValueError(f"hotwords: {phrase!r}: expected the vocabulary's characters, found {' '.join(unknown)!r}")
        encoded.append(tokens)
    return HotWords(encoded, len(tokenizer), boost)


def open_word_lm(
    path: str, tokenizer: Tokenizer, *, words: Sequence[str] | None = None, weight: float = 0.5, word_score: float = 0.0
) -> WordLm:
    """An n-gram model whose words the tokenizer spells; see :class:`asrkd.decoding.word_lm.WordLm`."""

    def spell(word: str) -> list[int] | None:
        tokens = tokenizer.encode(word)
        return None if UNKNOWN_ID in tokens else tokens

    separator = None
    if tokenizer.kind == "char":
        separator = tokenizer.vocabulary.tokens.index("\u2581")
    return WordLm(path, spell, tokenizer.vocabulary, separator, words=words, weight=weight, word_score=word_score)
