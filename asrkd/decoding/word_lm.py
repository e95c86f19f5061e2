"""Words and an n-gram language model in the search: flashlight-text's lexicon decoder, the one in torchaudio's ``ctc_decoder``.

torchaudio's class holds one utterance at a time; here many streams share one trie and one model. Extra ``lm``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asrkd.types import Vocabulary

UNKNOWN_WORD = "<unk>"
_NEVER = -1e4
"""Natural logarithm of what does not happen; flashlight's arithmetic wants a finite one."""
_LN_10 = math.log(10.0)  # KenLM gives common logarithms, and flashlight adds them as they are
_NOT_WORDS = ("<s>", "</s>", UNKNOWN_WORD)


class LmError(ValueError):
    """A language model or lexicon that cannot be used; one line says why."""


class WordLm:
    """A lexicon and an n-gram model, ready for any number of searches.

    Args:
        path: KenLM file (ARPA or binary).
        spell: A word as token ids; ``None`` where the vocabulary cannot write it.
        vocabulary: Tokens of the posteriors.
        separator_id: Token that stands between words (a character vocabulary's ``▁``); ``None``: pieces carry it.
        words: The lexicon; ``None``: the 1-grams of an ARPA file.
        weight: Of the model's log-probability (natural) beside that of CTC.
        word_score: Added for each word.
        beam: Hypotheses kept after each frame.
        tokens_per_frame: Likeliest tokens that may extend one.
        beam_threshold: A hypothesis further than this below the best, in nats, is dropped.

    Attributes:
        num_words: Words of the lexicon that the vocabulary can write.
        left_out: Words that it cannot.

    Raises:
        LmError: If the extra is not installed, a file is missing or damaged, or no word is left.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        spell: Callable[[str], Sequence[int] | None],
        vocabulary: Vocabulary,
        separator_id: int | None,
        *,
        words: Sequence[str] | None = None,
        weight: float = 0.5,
        word_score: float = 0.0,
        beam: int = 50,
        tokens_per_frame: int = 20,
        beam_threshold: float = 25.0,
    ) -> None:
        try:
            from flashlight.lib.text.decoder import CriterionType, LexiconDecoderOptions, SmearingMode, Trie
            from flashlight.lib.text.decoder.kenlm import KenLM
            from flashlight.lib.text.dictionary import Dictionary
        except ImportError as error:
            raise LmError(f"--lm: {error.name or error} is not installed: pip install 'asrkd[lm]'") from None
        if not Path(path).is_file():
            raise LmError(f"{path}: no such file; expected a KenLM model (ARPA or binary)")
        self.vocabulary, self.separator_id = vocabulary, separator_id
        spelled, self.left_out = self._spelled(list(words) if words is not None else arpa_words(path), spell)
        self.words, self.spellings = list(spelled), list(spelled.values())
        if not self.words:
            raise LmError(f"{path}: none of its {self.left_out} words can be written in the model's vocabulary")
        dictionary = Dictionary([*self.words, UNKNOWN_WORD])
        try:
            with _quiet():
                self._lm = KenLM(str(path), dictionary)
        except Exception as error:
            # KenLM's message begins with where in its source it stands, and ends with what is wrong.
            raise LmError(f"{path}: KenLM: …{' '.join(str(error).split())[-160:]}") from None
        # flashlight wants a token for silence beside the blank: one more than there are, which no frame ever holds.
        self._silence = len(vocabulary)
        self._trie = Trie(len(vocabulary) + 1, self._silence)
        start = self._lm.start(False)
        for index, spelling in enumerate(self.spellings):
            _, score = self._lm.score(start, index)
            self._trie.insert(list(spelling), index, score)
        self._trie.smear(SmearingMode.MAX)
        self._unknown = len(self.words)
        self._options = LexiconDecoderOptions(
            beam, min(tokens_per_frame, len(vocabulary)), beam_threshold, weight * _LN_10, word_score, -math.inf, 0.0, True,
            CriterionType.CTC,
        )  # fmt: skip

    @property
    def num_words(self) -> int:
        return len(self.words)

    def _spelled(
        self, words: Sequence[str], spell: Callable[[str], Sequence[int] | None]
    ) -> tuple[dict[str, tuple[int, ...]], int]:
        found, left_out = {}, 0
        for word in words:
            spelling = spell(word) if word not in _NOT_WORDS else None
            if spelling:
                # A word is complete when its separator is heard; :meth:`WordSearch.hypotheses` says the last one.
                found[word] = tuple(spelling) if self.separator_id is None else (*spelling, self.separator_id)
            else:
                left_out += word not in _NOT_WORDS
        return found, left_out

    def search(self) -> WordSearch:
        """A search over one stretch of speech."""
        from flashlight.lib.text.decoder import LexiconDecoder

        decoder = LexiconDecoder(
            self._options, self._trie, self._lm, self._silence, self.vocabulary.blank_id, self._unknown, [], False
        )
        return WordSearch(self, decoder)

    def tokens_of(self, words: Sequence[int]) -> tuple[int, ...]:
        """Words as the tokens that spell them, with what stands between them."""
        tokens = tuple(token for word in words for token in self.spellings[word])
        return tokens[:-1] if tokens and self.separator_id is not None else tokens


class WordSearch:
    """One search, fed as its posteriors come. Made by :meth:`WordLm.search`."""

    def __init__(self, lm: WordLm, decoder: Any) -> None:
        self._lm, self._decoder = lm, decoder
        self._ended = False
        decoder.decode_begin()

    def advance(self, log_probs: NDArray[np.float32]) -> None:
        """Take the next frames ``(T, V)``."""
        padded = np.full((len(log_probs), log_probs.shape[1] + 1), _NEVER, dtype=np.float32)
        np.maximum(log_probs, _NEVER, out=padded[:, :-1])
        self._decoder.decode_step(padded.ctypes.data, *padded.shape)

    def best(self) -> tuple[int, ...]:
        """Tokens of the best hypothesis so far, whole words only."""
        result = self._decoder.get_best_hypothesis()
        return self._lm.tokens_of([word for word in result.words if 0 <= word < self._lm.num_words])

    def hypotheses(self, n: int) -> list[tuple[tuple[int, ...], float]]:
        """The n best at the end of the stretch, best first: tokens, and the score of CTC and model together."""
        if not self._ended:
            if self._lm.separator_id is not None:
                last = np.full((1, len(self._lm.vocabulary)), _NEVER, dtype=np.float32)
                last[0, [self._lm.separator_id, self._lm.vocabulary.blank_id]] = 0.0
                self.advance(last)
            self._decoder.decode_end()
            self._ended = True
        found: dict[tuple[int, ...], float] = {}
        for result in self._decoder.get_all_final_hypothesis():
            tokens = self._lm.tokens_of([word for word in result.words if 0 <= word < self._lm.num_words])
            found.setdefault(tokens, float(result.score))
            if len(found) == n:
                break
        return list(found.items()) or [((), -math.inf)]


@contextmanager
def _quiet() -> Iterator[None]:
    """KenLM draws a progress bar on standard error, from C++ and whether or not it is a terminal."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def arpa_words(path: str | os.PathLike[str]) -> list[str]:
    """The 1-grams of an ARPA file.

    Raises:
        LmError: If it is none.
    """
    words: list[str] = []
    inside = False
    try:
        with Path(path).open(encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("\\1-grams:"):
                    inside = True
                elif inside and line.startswith("\\"):
                    return words
                elif inside and line.strip():
                    words.append(line.split("\t")[1].strip() if "\t" in line else line.split()[1])
    except (UnicodeDecodeError, IndexError):
        pass
    raise LmError(f"{path}: expected an ARPA file, or a binary one with --lexicon FILE (one word a line)")
