"""Word and character error rates with their alignments.

Counts are those of the Levenshtein alignment with unit costs (as in jiwer), over the whole set: WER = (S + D + I) / N.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Editop, Levenshtein

from asrkd.evaluation.normalise import normaliser as find_normaliser

Operation = Literal["equal", "substitute", "delete", "insert"]


@dataclass(frozen=True)
class Edit:
    """One column of an alignment.

    Args:
        operation: ``equal``, ``substitute``, ``delete`` (the reference word is missing) or ``insert``.
        reference: The reference word; empty for an insertion.
        hypothesis: The recognised word; empty for a deletion.
    """

    operation: Operation
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class UtteranceScore:
    """The counts of one utterance.

    Args:
        id: Of the utterance.
        reference: Reference words after normalisation.
        hypothesis: Recognised words after normalisation.
        substitutions: Words recognised as another word.
        deletions: Reference words that were left out.
        insertions: Recognised words that nobody said.
        character_errors: Levenshtein distance in characters, spaces between words included.
        reference_characters: Characters of the reference, spaces between words included.
        changes: ``(operation, position in the reference, position in the hypothesis)`` of every error, in order.
    """

    id: str
    reference: tuple[str, ...]
    hypothesis: tuple[str, ...]
    substitutions: int
    deletions: int
    insertions: int
    character_errors: int
    reference_characters: int
    changes: tuple[tuple[Operation, int, int], ...] = ()

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        return rate(self.errors, len(self.reference))

    @property
    def alignment(self) -> tuple[Edit, ...]:
        """Every column of the alignment, correct words included."""
        return tuple(_columns(self.reference, self.hypothesis, self.changes))


@dataclass(frozen=True)
class WerResult:
    """Error rates of a test set.

    Args:
        normaliser: Name of the normaliser that reference and hypothesis went through.
        utterances: In the order of the references.
    """

    normaliser: str
    utterances: tuple[UtteranceScore, ...]

    @cached_property
    def substitutions(self) -> int:
        return sum(u.substitutions for u in self.utterances)

    @cached_property
    def deletions(self) -> int:
        return sum(u.deletions for u in self.utterances)

    @cached_property
    def insertions(self) -> int:
        return sum(u.insertions for u in self.utterances)

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @cached_property
    def reference_words(self) -> int:
        return sum(len(u.reference) for u in self.utterances)

    @property
    def wer(self) -> float:
        """(S + D + I) / N as a fraction; 0 for nothing said and nothing recognised, infinite for insertions alone."""
        return rate(self.errors, self.reference_words)

    @cached_property
    def cer(self) -> float:
        """Character errors / reference characters as a fraction, spaces between words counted as characters."""
        return rate(
            sum(u.character_errors for u in self.utterances), sum(u.reference_characters for u in self.utterances)
        )

    @cached_property
    def error_counts(self) -> NDArray[np.int64]:
        """``(utterances,)`` word errors of each."""
        return np.array([u.errors for u in self.utterances], dtype=np.int64)

    @cached_property
    def word_counts(self) -> NDArray[np.int64]:
        """``(utterances,)`` reference words of each."""
        return np.array([len(u.reference) for u in self.utterances], dtype=np.int64)

    def most_frequent(self, operation: Operation, limit: int = 20) -> list[tuple[str, str, int]]:
        """The commonest errors of one kind.

        Args:
            operation: ``substitute``, ``delete`` or ``insert``.
            limit: How many to give at most.

        Returns:
            ``(reference word, recognised word, count)``, most frequent first, ties in alphabetical order.
        """
        counts: Counter[tuple[str, str]] = Counter()
        for utterance in self.utterances:
            for kind, i, j in utterance.changes:
                if kind == operation:
                    said = "" if kind == "insert" else utterance.reference[i]
                    heard = "" if kind == "delete" else utterance.hypothesis[j]
                    counts[said, heard] += 1
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return [(said, heard, count) for (said, heard), count in ranked[:limit]]


def score(references: Mapping[str, str], hypotheses: Mapping[str, str], normaliser: str = "none") -> WerResult:
    """Aligns and counts a test set.

    Args:
        references: Transcript of each utterance id.
        hypotheses: Recognised text of each utterance id; exactly the same ids.
        normaliser: A key of `asrkd.evaluation.normalise.NORMALISERS`, applied to both sides.

    Returns:
        Counts, rates and alignments, in the order of ``references``.

    Raises:
        ValueError: If the ids differ (an utterance that was not decoded must not pass as recognised) or the
            normaliser is unknown.
    """
    if references.keys() != hypotheses.keys():
        missing = [i for i in references if i not in hypotheses]
        extra = [i for i in hypotheses if i not in references]
        found = ", ".join(
            f"{len(ids)} {what} (first: {ids[0]})"
            for what, ids in (("missing", missing), ("without a reference", extra))
            if ids
        )
        raise ValueError(f"hypotheses: expected one for each of {len(references)} references, found {found}")
    normalise = find_normaliser(normaliser)
    return WerResult(
        normaliser, tuple(_score(i, normalise(r), normalise(hypotheses[i])) for i, r in references.items())
    )


def rate(errors: int, total: int) -> float:
    """``errors / total``; 0 where both are 0, infinite where only ``total`` is.

    Args:
        errors: Counted errors.
        total: Reference words or characters.
    """
    if total == 0:
        return 0.0 if errors == 0 else math.inf
    return errors / total


def _score(utterance_id: str, reference: str, hypothesis: str) -> UtteranceScore:
    said, heard = tuple(reference.split()), tuple(hypothesis.split())
    if said == heard:
        return UtteranceScore(utterance_id, said, heard, 0, 0, 0, 0, len(reference))
    changes = tuple(map(_change, Levenshtein.editops(said, heard)))
    kinds = [kind for kind, _, _ in changes]
    return UtteranceScore(
        utterance_id,
        said,
        heard,
        substitutions=kinds.count("substitute"),
        deletions=kinds.count("delete"),
        insertions=kinds.count("insert"),
        character_errors=Levenshtein.distance(reference, hypothesis),
        reference_characters=len(reference),
        changes=changes,
    )


_OPERATIONS: dict[str, Operation] = {"replace": "substitute", "delete": "delete", "insert": "insert"}


def _change(editop: Editop) -> tuple[Operation, int, int]:
    return _OPERATIONS[editop.tag], editop.src_pos, editop.dest_pos


def _columns(
    said: Sequence[str], heard: Sequence[str], changes: Sequence[tuple[Operation, int, int]]
) -> Iterator[Edit]:
    i = j = 0
    for kind, change_i, change_j in changes:
        while i < change_i and j < change_j:
            yield Edit("equal", said[i], heard[j])
            i, j = i + 1, j + 1
        if kind == "substitute":
            yield Edit(kind, said[i], heard[j])
            i, j = i + 1, j + 1
        elif kind == "delete":
            yield Edit(kind, said[i], "")
            i += 1
        else:
            yield Edit(kind, "", heard[j])
            j += 1
    for a, b in zip(said[i:], heard[j:], strict=True):
        yield Edit("equal", a, b)
